"""The plan's tables, and the same as plain values for programs.

stages     steps, positions, operations and GPU hours
cache      files, and bytes before compression and at most
memory     what one process holds on its GPU
"""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cache_builder.cache.reader import DEFAULT_MEMORY_BYTES
from cache_builder.format.size import ArraySize, recommended_layout
from trainer.planning.model_size import GUESSED, ModelSize
from trainer.planning.plan import FORWARD, TRAINING, Plan, Stage
from trainer.planning.rates import Rate
from trainer.planning.units import format_bytes, format_count, format_hours

Rates = dict[str, Rate]


def to_json(plan: Plan, rates: Rates) -> dict[str, Any]:
    """Return everything as plain values: operations, GPU hours, bytes."""
    size = plan.cache
    stages = [{**asdict(stage), "gpu_hours": gpu_hours(stage, rates)} for stage in plan.stages()]
    return {
        "teacher": asdict(plan.teacher),
        "student": asdict(plan.student),
        "corpus": asdict(plan.corpus),
        "stages": stages,
        "cache": _cache_rows(plan)[-1]
        | {"shards_per_checkpoint": size.records.shards, "record_bytes": size.record_bytes},
        "memory": [{**asdict(memory), "total": memory.total} for memory in plan.memory()],
        "rates": {kind: asdict(rate) for kind, rate in rates.items()},
        "notes": notes(plan),
    }


def gpu_hours(stage: Stage, rates: Rates) -> float | None:
    """Return the hours of one GPU, or None where nothing is known of it."""
    rate = rates.get(stage.kind or "")
    return stage.flops / rate.flops_per_second / 3600 if rate else None


def plan_tables(plan: Plan, rates: Rates) -> RenderableType:
    """Return all tables, the notes, and where the rates are from."""
    lines = [Text(f"note: {note}") for note in notes(plan)]
    for kind in (FORWARD, TRAINING):
        told = f"{rates[kind].flops_per_second:.3g} FLOP/s ({rates[kind].source})" if kind in rates else "not known"
        lines.append(Text(f"{kind}, one GPU: {told}"))
    if len(rates) < 2:
        lines.append(Text("GPU hours need a rate: --flops gives it, or a stage that is done in the run folder"))
    return Group(_models(plan), _stages(plan, rates), _cache(plan), _memory(plan), *lines)


def notes(plan: Plan) -> list[str]:
    """Say which models' sizes are guessed, and which settings of the cache do not fit its size."""
    size, window_chunks = plan.cache, plan.experiment.distill.window_chunks
    said = [
        f"{role} {model.name}: parameters, layers and vocabulary are guessed from the number in its name, as neither "
        f"a folder nor the hub's cache has its config.json; get it by `hf download {_hub_id(model)} config.json`"
        for role, model in (("teacher", plan.teacher), ("student", plan.student))
        if model.origin == GUESSED
    ]
    shard, chunk = recommended_layout(size.positions)
    if (shard, chunk) > (size.shard_positions, size.chunk_positions):
        said.append(
            f"{size.records.shards:,} shards a checkpoint: --set cache.shard_positions={shard} "
            f"--set cache.chunk_positions={chunk} makes {-(-size.positions // shard):,}"
        )
    window = window_chunks * size.chunk_positions * size.record_bytes
    if window > DEFAULT_MEMORY_BYTES:
        fitting = max(1, DEFAULT_MEMORY_BYTES // (size.chunk_positions * size.record_bytes))
        said.append(
            f"a window of {window_chunks} chunks is {format_bytes(window)}, and a reader keeps "
            f"{format_bytes(DEFAULT_MEMORY_BYTES)}: --set distill.window_chunks={fitting}, else it reads twice"
        )
    if size.ledger_bytes > 2**30:
        said.append(f"opening the cache reads {format_bytes(size.ledger_bytes)} of JSON ledgers in every process")
    return said


def _hub_id(model: ModelSize) -> str:
    return model.name.partition("@")[0]


def _models(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, model in (("teacher", plan.teacher), ("student", plan.student)):
        sizes = f"hidden {model.hidden:,}, {model.layers} layers, vocabulary {model.vocabulary:,}"
        count = format_count(model.parameters)
        table.add_row(name, Text(f"{model.name}: {count} parameters ({model.origin}; {sizes})"))
    return table


def _stages(plan: Plan, rates: Rates) -> Table:
    table = _table(f"footsteps run → {plan.experiment.output_dir}", "stage", "what", "size", "FLOP", "GPU hours")
    stages = plan.stages()
    for stage in stages:
        flops = format_count(stage.flops) if stage.flops else ""
        table.add_row(stage.name, Text(stage.what), stage.size, flops, format_hours(gpu_hours(stage, rates)))
    table.add_section()
    hours = sum(gpu_hours(stage, rates) or 0.0 for stage in stages) if len(rates) == 2 else None
    table.add_row("all", "", "", format_count(sum(stage.flops for stage in stages)), format_hours(hours))
    return table


def _cache(plan: Plan) -> Table:
    table = _table(f"the cache, {plan.experiment.cache_url}", "what", "files", "uncompressed", "at most")
    for row in _cache_rows(plan):
        sizes = (format_bytes(row["uncompressed_bytes"]), format_bytes(row["bytes_at_most"]))
        table.add_row(row["what"], f"{row['files']:,}", *sizes)
    return table


def _cache_rows(plan: Plan) -> list[dict[str, Any]]:
    size = plan.cache
    once = [*size.corpus, *size.probe]
    rows = [
        _bytes("a checkpoint", 1 + sum(array.files for array in size.checkpoint), size.checkpoint),
        _bytes("corpus and probe, once", 2 + sum(array.files for array in once), once),
        _bytes(f"all, {size.checkpoints} checkpoints", size.files, [*size.checkpoint * size.checkpoints, *once]),
    ]
    rows[-1]["bytes_at_most"] = size.max_bytes  # the groups' and the cache's own documents included
    return rows


def _bytes(what: str, files: int, arrays: list[ArraySize]) -> dict[str, Any]:
    raw, most = sum(array.raw_bytes for array in arrays), sum(array.max_bytes for array in arrays)
    return {"what": what, "files": files, "uncompressed_bytes": raw, "bytes_at_most": most}


def _memory(plan: Plan) -> Table:
    parts = ("weights", "gradients", "adam", "activations", "logits", "total")
    table = _table("memory of one process's GPU, about", "process", *parts)
    for memory in plan.memory():
        values = {**asdict(memory), "total": memory.total}
        table.add_row(memory.name, *(format_bytes(values[part]) if values[part] else "" for part in parts))
    return table


def _table(title: str, *headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title), title_justify="left")
    for header in headers:
        table.add_column(header, justify="left" if header in ("stage", "what", "size", "process") else "right")
    return table

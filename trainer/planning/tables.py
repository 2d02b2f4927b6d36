"""The plan's tables, and the same as plain values for machines.

stages     time, GPU-hours and money of each, with and without a cache, and what is the slowest part
bytes      files, and bytes on disk as measured and at most
memory     what one process holds on its GPU
notes      what does not fit, what a folder or a ledger of this size means
sources    each input with its origin; each measured figure with its command, hardware and commit
"""

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cache_builder.cache.reader import DEFAULT_MEMORY_BYTES
from cache_builder.format.size import recommended_layout
from trainer.planning.estimate import Estimate, Stage
from trainer.planning.hardware import Hardware
from trainer.planning.measured import Measured
from trainer.planning.model_size import ModelSize
from trainer.planning.units import format_bytes, format_count, format_money, format_seconds, format_short
from trainer.planning.workload import Workload

MANY_SHARDS = 100_000
REMEDIES = {
    "sft teacher": "gradient_checkpointing, smaller batches, or configs/accelerate-fsdp2.yaml",
    "cache build": "teacher.device_map, teacher.tensor_parallel or teacher.quantization",
    "student": "smaller batches, gradient_checkpointing, or configs/accelerate-fsdp2.yaml",
    "student, online": "teacher and student would have to be spread over several",
}


@dataclass(frozen=True)
class Plan:
    """All that is said of an experiment's cost."""

    teacher: ModelSize
    student: ModelSize
    workload: Workload
    hardware: Hardware
    origins: dict[str, str]
    """"given" or "assumed", by the hardware's fields and by "positions", "share" and "length"."""
    measured: Measured
    estimate: Estimate


def to_json(plan: Plan) -> dict[str, Any]:
    """Return everything as plain values: seconds, bytes, dollars."""
    size, found = plan.workload.cache, plan.estimate
    return {
        "teacher": asdict(plan.teacher),
        "student": asdict(plan.student),
        "corpus": asdict(plan.workload.corpus),
        "students": plan.workload.students,
        "stages": [_stage_json(stage, plan.hardware) for stage in found.stages],
        "online": [_stage_json(stage, plan.hardware) for stage in found.online],
        "seconds": sum(stage.seconds for stage in found.stages),
        "online_seconds": sum(stage.seconds for stage in found.online),
        "money": found.money(found.stages, plan.hardware),
        "online_money": found.money(found.online, plan.hardware),
        "storage_money": found.storage_money(plan.hardware),
        "cache": {
            "files": size.files,
            "shards_per_checkpoint": size.records.shards,
            "bytes_per_position": plan.workload.bytes_per_position[0],
            "bytes_per_position_at_most": size.record_bytes,
            "bytes_per_position_source": plan.workload.bytes_per_position[1],
            "checkpoint_bytes": found.checkpoint_bytes,
            "bytes": found.cache_bytes,
            "bytes_at_most": found.cache_max_bytes,
            "ledger_bytes": size.ledger_bytes,
            "open_seconds": open_cost(plan)[0],
            "open_bytes": open_cost(plan)[1],
        },
        "memory": [{"name": memory.name, **memory.parts, "total": memory.total} for memory in found.memory],
        "notes": notes(plan),
        "inputs": {
            name: {"value": value, "origin": plan.origins.get(name, "assumed")} for name, value in _inputs(plan)
        },
        "measured": [asdict(constant) for constant in plan.measured.constants.values()],
    }


def plan_tables(plan: Plan) -> RenderableType:
    """Return the tables, the notes and the inputs."""
    said = [Text(f"note: {note}") for note in notes(plan)]
    return Group(
        _head(plan), _stages(plan), _bytes(plan), _memory(plan), *said, *([Text()] if said else []), *_inputs_of(plan)
    )


def measured_figures(measured: Measured) -> RenderableType:
    """Return each measured figure with the command, the hardware and the commit of its measurement."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="measured by this project", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right", no_wrap=True)
    for header in ("of what", "command, hardware, commit"):
        table.add_column(header)
    for row in measured.constants.values():
        where = f"{row.command}; {row.hardware}; {row.commit}"
        table.add_row(row.name, f"{row.value:,.4g}", f"{row.unit}: {row.meaning}", where)
    return table


def open_cost(plan: Plan) -> tuple[float, float]:
    """Return the seconds and the peak bytes of opening the cache, by what was measured; every process needs both."""
    size, measured = plan.workload.cache, plan.measured
    arrays = [*size.corpus, *size.probe, *size.checkpoint * size.checkpoints]
    shards, chunks = sum(array.shards for array in arrays), sum(array.chunks for array in arrays)
    counts = ((shards, "open_shard"), (chunks, "open_chunk"), (size.sequences, "open_sequence"))
    seconds = sum(count * measured[name] for count, name in counts) / 1e6
    return seconds, sum(count * measured[f"{name}_bytes"] for count, name in counts)


def notes(plan: Plan) -> list[str]:
    """Say what does not fit, and what is unusual at this size."""
    size, hardware, measured = plan.workload.cache, plan.hardware, plan.measured
    said = []
    for memory in plan.estimate.memory:
        if memory.total > hardware.gpu_memory:
            needs = f"{format_bytes(memory.total)} do not fit a GPU of {format_bytes(hardware.gpu_memory)}"
            said.append(f"{memory.name}: {needs}; {REMEDIES[memory.name]}")
    shard, chunk = recommended_layout(size.positions)
    if (shard, chunk) > (size.shard_positions, size.chunk_positions):
        said.append(
            f"{size.records.shards:,} shards a checkpoint: --set cache.shard_positions={shard} "
            f"--set cache.chunk_positions={chunk} makes {-(-size.positions // shard):,}"
        )
    window = plan.workload.window_chunks * size.chunk_positions * size.record_bytes
    if window > DEFAULT_MEMORY_BYTES:
        fitting = DEFAULT_MEMORY_BYTES // (size.chunk_positions * size.record_bytes)
        said.append(
            f"a window of {plan.workload.window_chunks} chunks is {format_bytes(window)}, and a reader keeps "
            f"{format_bytes(DEFAULT_MEMORY_BYTES)}: --set distill.window_chunks={max(1, fitting)}, else it reads twice"
        )
    seconds, memory_bytes = open_cost(plan)
    if seconds > 10 or memory_bytes > 2**30:
        said.append(
            f"opening takes every process {format_seconds(seconds)} and {format_bytes(memory_bytes)} "
            f"of memory; its ledgers are {format_bytes(size.ledger_bytes)} of JSON"
        )
    order = size.sequences * measured["order_sequence_bytes"]
    if order > 2**30:
        said.append(f"the order of an epoch takes every training process {format_bytes(order)} of memory")
    if size.records.shards > MANY_SHARDS:
        wait = format_seconds(size.records.shards * measured["continue_shard"] / 1e6)
        said.append(
            f"a builder that continues reads {size.records.shards:,} small files of each checkpoint, {wait} on a local "
            "disk"
        )
    return said


def _head(plan: Plan) -> RenderableType:
    corpus = plan.workload.corpus
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, model in (("teacher", plan.teacher), ("student", plan.student)):
        table.add_row(
            name,
            f"{model.name}: {format_count(model.parameters)} parameters ({model.origin}; hidden {model.hidden:,}, "
            f"{model.layers} layers, vocabulary {model.vocabulary:,})",
        )
    table.add_row(
        "corpus",
        f"{corpus.positions:,} positions, {corpus.tokens:,} tokens, {corpus.sequences:,} sequences ({corpus.source})",
    )
    return table


def _stages(plan: Plan) -> RenderableType:
    found, hardware = plan.estimate, plan.hardware
    gpus = f"{hardware.gpus} GPU" + "s" * (hardware.gpus > 1)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"time and money, on {gpus}", title_justify="left")
    for header in ("stage", "what", "FLOP", "time", "GPU hours", "money", "slowest part"):
        right = header in ("FLOP", "time", "GPU hours", "money")
        table.add_column(header, justify="right" if right else "left", no_wrap=True)
    for stages, label in ((found.stages, "from a cache"), (found.online, "online, no cache")):
        for stage in stages:
            if stages is found.online and stage.name in (*found.shared_stages, "losses"):
                continue
            table.add_row(*_stage_row(stage, hardware))
        storage = f"+ {format_money(found.storage_money(hardware))} storage" if stages is found.stages else ""
        table.add_row(
            Text(label, style="bold"),
            storage,
            format_count(sum(stage.flops for stage in stages)),
            format_seconds(sum(stage.seconds for stage in stages)),
            format_short(sum(stage.gpu_hours for stage in stages)),
            format_money(found.money(stages, hardware)),
            "",
            end_section=True,
        )
    return table


def _stage_row(stage: Stage, hardware: Hardware) -> list[str]:
    return [
        stage.name,
        stage.what,
        format_count(stage.flops) if stage.flops else "",
        format_seconds(stage.seconds),
        format_short(stage.gpu_hours),
        format_money(stage.gpu_hours * hardware.gpu_price),
        f"{stage.bottleneck} {_share(stage):.0%}",
    ]


def _bytes(plan: Plan) -> RenderableType:
    size, found = plan.workload.cache, plan.estimate
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="the cache", title_justify="left")
    for header in ("what", "files", "bytes", "at most"):
        table.add_column(header, justify="left" if header == "what" else "right", no_wrap=True)
    corpus = [*size.corpus, *size.probe]
    stored = plan.workload.bytes_per_position[0]
    table.add_row(
        f"a checkpoint: {stored:.1f} B a position ({size.record_bytes} uncompressed), probe",
        f"{1 + sum(array.files for array in size.checkpoint):,}",
        format_bytes(found.checkpoint_bytes),
        format_bytes(sum(array.max_bytes for array in size.checkpoint)),
    )
    table.add_row(
        "corpus and probe, once; uncompressed",
        f"{2 + sum(array.files for array in corpus):,}",
        format_bytes(sum(array.raw_bytes for array in corpus)),
        format_bytes(sum(array.max_bytes for array in corpus)),
    )
    table.add_row(
        f"all, with {size.checkpoints} checkpoints",
        f"{size.files:,}",
        format_bytes(found.cache_bytes),
        format_bytes(found.cache_max_bytes),
    )
    return table


def _memory(plan: Plan) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="memory of one process's GPU", title_justify="left")
    parts = ("teacher", "weights", "gradients", "Adam", "activations", "logits")
    for header in ("process", *parts, "all"):
        table.add_column(header, justify="left" if header == "process" else "right", no_wrap=True)
    for memory in plan.estimate.memory:
        cells = [format_bytes(memory.parts[part]) if memory.parts.get(part) else "" for part in parts]
        table.add_row(memory.name, *cells, format_bytes(memory.total))
    return table


def _inputs_of(plan: Plan) -> list[RenderableType]:
    by_origin: dict[str, list[str]] = {"given": [], "assumed": []}
    for name, value in _inputs(plan):
        by_origin[plan.origins.get(name, "assumed")].append(f"{name.replace('_', '-')} {value:,.4g}")
    lines: list[RenderableType] = []
    if by_origin["given"]:
        lines.append(Text(f"Given: {', '.join(by_origin['given'])}."))
    if by_origin["assumed"]:
        lines.append(Text(f"Assumed, not measured; give your own: {', '.join(by_origin['assumed'])}."))
    lines.append(Text(f"Bytes a position: {plan.workload.bytes_per_position[1]}. --sources lists what was measured."))
    return lines


def _inputs(plan: Plan) -> list[tuple[str, float]]:
    return list(asdict(plan.hardware).items())


def _stage_json(stage: Stage, hardware: Hardware) -> dict[str, Any]:
    return {
        "name": stage.name,
        "flops": stage.flops,
        "seconds": stage.seconds,
        "beside": stage.beside,
        "after": stage.after,
        "bottleneck": stage.bottleneck,
        "gpu_hours": stage.gpu_hours,
        "money": stage.gpu_hours * hardware.gpu_price,
    }


def _share(stage: Stage) -> float:
    parts = {**stage.beside, **stage.after}
    return parts[stage.bottleneck] / stage.seconds if stage.seconds else 0.0

"""`footsteps doctor`: is all there that a run needs? A line each, and what to do where something is not.

ok    torch 2.13.0, transformers 5.23.0, …
note  no GPU: …                                        a run goes, but not as one may want
fix   runs/mine cannot be written to: …; choose …      a run does not go
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from cache_builder.config import load_experiment
from cache_builder.errors import UserError, first_line
from trainer.config import Experiment
from trainer.planning.model_size import GUESSED
from trainer.planning.units import format_bytes

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "matplotlib")
LEAST_FREE_BYTES = 10 << 30
ROWS = 3
"""Rows that the template is tried on."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    state: Literal["ok", "note", "fix"]
    text: str


def examine(config: Path | None) -> Iterator[Line]:
    """Yield a line for each thing that a run needs, of an experiment where one is given."""
    yield Line("ok", f"footsteps {_version('footsteps')}, Python {sys.version.split()[0]}, {sys.platform}")
    yield from _libraries()
    yield from _devices()
    yield _memory()
    yield _hub()
    experiment = None
    if config is not None:
        try:
            experiment = load_experiment(Experiment, config)
            yield Line("ok", f"config {config}: every setting is known and of its type")
        except UserError as error:
            yield Line("fix", str(error))
            return
    folder = Path(".") if experiment is None else experiment.output_dir
    yield _writing(folder)
    yield _disk(folder)
    if experiment is not None:
        yield _stages(experiment)
        yield _template(experiment)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libraries() -> Iterator[Line]:
    found = {name: _version(name) for name in LIBRARIES}
    there = ", ".join(f"{name} {number}" for name, number in found.items() if number is not None)
    missing = [name for name, number in found.items() if number is None]
    if there:
        yield Line("ok", there)
    if missing:
        text = f"not installed: {', '.join(missing)}; caches can be read, checked and copied"
        yield Line("note", f'{text}, for more pip install "footsteps[train]"')


def _devices() -> Iterator[Line]:
    if _version("torch") is None:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        yield Line("ok", f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not count:
        driver = "; there is nvidia-smi, so install a torch that fits the driver" if shutil.which("nvidia-smi") else ""
        cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
        yield Line("note", f"no GPU that torch sees{driver}; {cores}: enough for models of some million weights")


def _memory() -> Line:
    if (found := _machine_bytes()) is None:
        return Line("note", "memory: this system does not say; `footsteps plan CONFIG` says what a run takes")
    whole, free = found
    text = f"memory: {free / 2**30:.1f} GiB free of {whole / 2**30:.1f}"
    return Line("ok", f"{text}; `footsteps plan CONFIG` says what a run takes")


def _machine_bytes() -> tuple[int, int] | None:
    """Return (all, free) of the machine's memory; None where the system does not say."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _hub() -> Line:
    from huggingface_hub import get_token

    if get_token() is None:
        return Line("note", "hub: no token; for gated models and for pushing, `hf auth login` or HF_TOKEN")
    return Line("ok", "hub: there is a token")


def _writing(folder: Path) -> Line:
    there = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        return Line("fix", f"{folder} cannot be written to: {error.strerror} ({there}); choose another run.output_dir")
    return Line("ok", f"{folder} can be written to")


def _disk(folder: Path) -> Line:
    usage = shutil.disk_usage(_existing(folder))
    text = f"disk: {usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f} at {folder}"
    if usage.free < LEAST_FREE_BYTES:
        return Line("note", f"{text}; `footsteps plan CONFIG` says what checkpoints and cache take")
    return Line("ok", text)


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that is there."""
    return next(each for each in (folder, *folder.absolute().parents) if each.is_dir())


def _stages(experiment: Experiment) -> Line:
    """Compare what the plan says of each stage's memory with what there is."""
    from trainer.planning.command import make_plan

    if (there := _capacity()) is None:
        return Line(
            "note", "memory of each stage: `footsteps plan CONFIG` says it; of its own this system does not say"
        )
    try:
        plan = make_plan(experiment, {"positions": "1"})  # how many there are changes nothing here
        needed = {stage.name: stage.total for stage in plan.memory()}
    except UserError as error:
        return Line("note", f"memory of each stage: {first_line(error)}")
    if experiment.teacher.device_map is not None:
        needed.pop("cache build")  # it has more than one device
    line = compare_memory(needed, *there)
    guessed = [model.name for model in (plan.teacher, plan.student) if model.origin == GUESSED]
    return Line(line.state, f"{line.text}; by sizes {GUESSED}: {', '.join(guessed)}") if guessed else line


def _capacity() -> tuple[int, str] | None:
    """Return the bytes of the smallest GPU, or of the machine where torch sees none, and what has them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return min(torch.cuda.get_device_properties(index).total_memory for index in range(count)), "the GPU"
    machine = _machine_bytes()
    return None if machine is None else (machine[0], "this machine")


def compare_memory(needed: Mapping[str, float], there: float, where: str) -> Line:
    """Say which stages need more bytes than there are."""
    told = ", ".join(f"{stage} {format_bytes(count)}" for stage, count in needed.items())
    text = f"memory of each stage, about: {told}; {where} has {format_bytes(there)}"
    larger = [stage for stage, count in needed.items() if count > there]
    if not larger:
        return Line("ok", text)
    return Line(
        "note",
        f"{text}, too little for {' and '.join(larger)}: lower per_device_train_batch_size and raise "
        "gradient_accumulation_steps, set gradient_checkpointing = true, train adapters (lora), shard (FSDP), or see "
        "docs/big-teachers.md",
    )


def _template(experiment: Experiment) -> Line:
    """Try the rows, the tokenizer and its template on the first rows."""
    from cache_builder.data.prepare import check_checkpoint_tokenizer
    from cache_builder.data.splits import load_splits
    from cache_builder.data.tokenising import encode_all
    from trainer.starting.models import tokenizer_for

    try:
        train = load_splits(experiment.data, experiment.run.seed)["train"]
        rows = [train[row] for row in range(min(ROWS, len(train)))]
        tokenizer = tokenizer_for(experiment.tokenizer, experiment.teacher, train)
        check_checkpoint_tokenizer(experiment, train, tokenizer)
        lengths = []
        for name, encoded in encode_all(rows, tokenizer, experiment.text):
            if encoded is None:
                return Line("fix", f"example {name!r}: its completion does not fit text.max_length; raise it")
            lengths.append(f"{len(encoded.input_ids)} tokens, {sum(encoded.completion)} of them learned")
    except UserError as error:
        return Line("fix", first_line(error))
    return Line("ok", f"template, on the first {len(rows)} of {len(train):,} training rows: {'; '.join(lengths)}")

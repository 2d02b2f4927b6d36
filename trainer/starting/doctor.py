"""`footsteps doctor`: is all there that a run needs? A line each, and what to do where something is not.

ok    torch 2.13.0, transformers 5.23.0, …
note  no GPU: …                                        a run goes, but not as one may want
fix   runs/mine cannot be written to: …; choose …      a run does not go
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from cache_builder.config import load_experiment
from cache_builder.errors import UserError, first_line
from trainer.config import Experiment

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
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        whole, free = (page * os.sysconf(name) / 2**30 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return Line("note", "memory: this system does not say; `footsteps plan CONFIG` says what a run takes")
    return Line("ok", f"memory: {free:.1f} GiB free of {whole:.1f}; `footsteps plan CONFIG` says what a run takes")


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


def _template(experiment: Experiment) -> Line:
    """Try the rows, the tokenizer and its template on the first rows."""
    from cache_builder.data.splits import load_splits
    from cache_builder.data.tokenising import encode_all
    from trainer.starting.models import tokenizer_for

    try:
        train = load_splits(experiment.data, experiment.run.seed)["train"]
        rows = [train[row] for row in range(min(ROWS, len(train)))]
        tokenizer = tokenizer_for(experiment.tokenizer, experiment.teacher, train)
        lengths = []
        for name, encoded in encode_all(rows, tokenizer, experiment.text):
            if encoded is None:
                return Line("fix", f"example {name!r}: its completion does not fit text.max_length; raise it")
            lengths.append(f"{len(encoded.input_ids)} tokens, {sum(encoded.completion)} of them learned")
    except UserError as error:
        return Line("fix", first_line(error))
    return Line("ok", f"template, on the first {len(rows)} of {len(train):,} training rows: {'; '.join(lengths)}")

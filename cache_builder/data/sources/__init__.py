"""Known data sets, one module each.

    load(config, seed) -> {"train", "validation", "test"} of examples        files(config) -> what it reads

A benchmark's files are counted when they are read: a damaged or partial one is refused by name, because a score on part
of a test set looks like any other score.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_builder.config import DataConfig, expand
from cache_builder.data.examples import Example, Message, random_part
from cache_builder.errors import ConfigError, DataError, MissingError


def benchmark_folder(config: DataConfig) -> Path:
    """Return the folder that `data.path` names.

    Raises:
        ConfigError: `data.path` is not given.
        MissingError: there is no such folder.
    """
    if config.path is None:
        raise ConfigError(f'data.path is not given; with source = "{config.source}" it is the folder of the benchmark')
    folder = Path(expand(config.path))
    if not folder.is_dir():
        raise MissingError(f"data.path {folder}: no such folder; expected the files of {config.source}")
    return folder


def chosen_tasks(config: DataConfig, known: Sequence[str]) -> list[str]:
    """Return the source's tasks that `data.tasks` names, all of them unless given.

    Raises:
        ConfigError: one is not known.
    """
    unknown = [task for task in config.tasks or () if task not in known]
    if unknown:
        raise ConfigError(f"data.tasks: {config.source} has no task {unknown[0]!r}; it has {', '.join(known)}")
    return [task for task in known if config.tasks is None or task in config.tasks]


def read_text(path: Path, encodings: Sequence[str] = ("utf-8",)) -> str:
    """Read a file in the first of the encodings that fits.

    Raises:
        MissingError: there is no such file.
        DataError: none fits.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such file; expected a file of the benchmark, unchanged")
    content = path.read_bytes()
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path}: not {' or '.join(encodings)} text; the file is damaged, get it again")


def read_json(path: Path, encodings: Sequence[str] = ("utf-8",)) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is not JSON; mostly, it ends too early.
    """
    try:
        return json.loads(read_text(path, encodings))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error}); the file is damaged or partial, get it again") from None


def check_counts(path: Path, what: str, labels: Iterable[str], expected: Mapping[str, int]) -> None:
    """Refuse a file whose labels are not those of the published one.

    Raises:
        DataError: names the file and every label whose count differs.
    """
    counts = Counter(labels)
    wrong = [label for label in sorted({*counts, *expected}) if counts[label] != expected.get(label, 0)]
    if wrong:
        shown = ", ".join(f"{label} {counts[label]} instead of {expected.get(label, 0)}" for label in wrong[:5])
        raise DataError(
            f"{path}: {counts.total()} {what}, expected {sum(expected.values())} ({shown}"
            f"{', …' if len(wrong) > 5 else ''}); the file is damaged, partial or another version, get it again"
        )


def turns(prompt: str, answer: str, system: str | None = None) -> list[Message]:
    """Return a conversation of one question and its answer."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def limited(splits: dict[str, list[Example]], config: DataConfig, seed: int) -> dict[str, list[Example]]:
    """Keep a random part of each split's examples, where the config limits them, in their order."""
    return {split: list(random_part(splits[split], limit, seed)) for split, limit in limits_of(config).items()}


def limits_of(config: DataConfig) -> dict[str, int | None]:
    """Return how many examples of each split are used; None for all."""
    return {
        "train": config.train_examples,
        "validation": config.validation_examples,
        "test": config.test_examples,
    }

"""Where examples come from: files, the hub, or a known source, all brought to one shape.

    {"messages": [{"role", "content"}, …]}                        kept
    {"conversations": [{"from": "human" | "gpt" | "system", "value"}, …]}   ShareGPT, roles mapped    ──▶  Example
    {"prompt": str | messages, "completion": str | messages}      one user and one assistant turn

`id`, `task`, `answer`, `choices` and `group` columns are kept where there are any.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, overload

import numpy as np

from cache_builder.config import DataConfig, expand
from cache_builder.errors import DataError, MissingError

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SOURCES = {
    "rows": "cache_builder.data.sources.rows",
    "demo": "cache_builder.data.sources.demo",
    "pubmedqa": "cache_builder.data.sources.pubmedqa",
    "jmed-llm": "cache_builder.data.sources.jmed_llm",
    "clinc150": "cache_builder.data.sources.clinc150",
    "snips": "cache_builder.data.sources.snips",
}


class Message(TypedDict):
    role: str
    content: str


class Example(TypedDict):
    """One conversation; the last assistant turn is what evaluation asks for."""

    id: str
    task: str
    messages: list[Message]
    answer: NotRequired[str | list[str]]
    """The gold answer, where it is not simply the last assistant turn."""
    choices: NotRequired[list[str]]
    group: NotRequired[str]
    """The document it was made from; a grouped split keeps a document on one side."""


Split = Sequence[Example]


def load_splits(config: DataConfig, seed: int) -> dict[str, Split]:
    """Return the "train", "validation" and "test" examples; a split that there is none of is empty.

    Raises:
        DataError: there is no training example, or a row is not of a known shape.
        MissingError: a file or folder is not there.
    """
    if config.source == "files":
        splits = _load_files(config, seed)
    else:
        splits = dict(importlib.import_module(SOURCES[config.source]).load(config, seed))
    if not len(splits["train"]):
        raise DataError(f"the training data of {_named(config)} is empty; at least one example is needed")
    if not len(splits["validation"]) and config.validation_fraction > 0 and len(splits["train"]) > 1:
        splits["train"], splits["validation"] = _hold_out(splits["train"], config.validation_fraction, seed)
    return splits


def normalize(row: Mapping[str, Any], default_id: str, where: str) -> Example:
    """Bring one row of any known shape to an `Example`.

    Raises:
        DataError: unknown shape or role, or content that is not text; the message names `where`.
    """
    if row.get("messages") is not None:
        turns = [(turn.get("role"), turn.get("content")) for turn in _turns(row["messages"], where)]
    elif row.get("conversations") is not None:
        turns = [(turn.get("from"), turn.get("value")) for turn in _turns(row["conversations"], where)]
    elif row.get("prompt") is not None and row.get("completion") is not None:
        turns = _side(row["prompt"], "user", where) + _side(row["completion"], "assistant", where)
    else:
        raise DataError(
            f"{where}: expected `messages`, `conversations`, or `prompt` and `completion`, got {sorted(row)}; "
            "rename the columns or convert the file"
        )
    messages: list[Message] = []
    for role, content in turns:
        if role not in ROLES or not isinstance(content, str):
            raise DataError(
                f"{where}: expected a role of {sorted(ROLES)} with text, got {role!r} with {type(content).__name__}"
            )
        messages.append({"role": ROLES[role], "content": content})
    example: Example = {
        "id": str(row["id"]) if row.get("id") is not None else default_id,
        "task": str(row["task"]) if row.get("task") is not None else "default",
        "messages": messages,
    }
    if row.get("answer") is not None:
        answer = row["answer"]
        example["answer"] = [str(item) for item in answer] if isinstance(answer, list) else str(answer)
    if row.get("choices") is not None:
        example["choices"] = [str(choice) for choice in row["choices"]]
    if row.get("group") is not None:
        example["group"] = str(row["group"])
    return example


class Subset(Sequence[Example]):
    """Some rows of a split, by index, without copying it."""

    def __init__(self, base: Split, rows: np.ndarray) -> None:
        self.base, self.rows = base, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Subset": ...
    def __getitem__(self, index: int | slice) -> "Example | Subset":
        if isinstance(index, slice):
            return Subset(self.base, self.rows[index])
        return self.base[int(self.rows[index])]


class FileRows(Sequence[Example]):
    """The rows of a data set on disk, normalised when they are read."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Example]:
        for index, row in enumerate(self.dataset):
            yield normalize(row, f"{self.name}-{index}", f"{self.name}, row {index}")

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Example | Subset:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        return normalize(self.dataset[index], f"{self.name}-{index}", f"{self.name}, row {index}")


def random_part(split: Split, limit: int | None, seed: int) -> Split:
    """Return `limit` examples by the seed, in their order: the first ones of a file sorted by label have few labels."""
    if limit is None or limit >= len(split):
        return split
    return Subset(split, np.sort(np.random.default_rng([seed, 0x11317]).permutation(len(split))[:limit]))


def _load_files(config: DataConfig, seed: int) -> dict[str, Split]:
    if config.train is None:
        raise DataError('data.train is not given; name a file or a hub id, or choose a source such as "demo"')
    splits: dict[str, Split] = {}
    limits = {"train": config.train_examples, "validation": None, "test": config.test_examples}
    for split, limit in limits.items():
        location = getattr(config, split)
        rows: Split = FileRows(open_table(expand(location), f"data.{split}", split), split) if location else []
        splits[split] = random_part(rows, limit, seed)
    return splits


def open_table(location: str, setting: str, split: str) -> Any:
    """Open a JSONL, CSV or Parquet file, a pattern of them, or a hub data set as rows; `setting` names it in errors.

    Raises:
        MissingError: there is no such file.
        DataError: it cannot be read.
    """
    import datasets

    suffix = Path(location).suffix
    if suffix in LOADERS:
        sizes = [path.stat().st_size for path in _matches(location)]
        if not sizes:
            raise MissingError(f"{setting} {location}: no such file")
        if not any(sizes):
            raise DataError(f"{setting} {location} is empty; at least one example is needed")
        try:
            return datasets.load_dataset(LOADERS[suffix], data_files=location, split="train")
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            cause = error.__cause__ or error
            raise DataError(f"{setting} {location} could not be read as {LOADERS[suffix]}: {cause}") from error
    if Path(location).is_absolute() or location.startswith(".") or location.count("/") > 1:
        raise MissingError(f"{setting} {location}: expected a .jsonl, .json, .csv or .parquet file, or a hub id")
    name, _, hub_split = location.partition(":")
    name, _, revision = name.partition("@")
    return datasets.load_dataset(name, revision=revision or None, split=hub_split or split)


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    return [path] if path.is_file() else sorted(path.parent.glob(path.name))


def _hold_out(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    shuffled = np.random.default_rng([seed, 0x5011]).permutation(len(train))
    held_out = max(1, round(fraction * len(train)))
    return Subset(train, np.sort(shuffled[held_out:])), Subset(train, np.sort(shuffled[:held_out]))


def _turns(value: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise DataError(f"{where}: expected a list of turns, got {type(value).__name__}")
    return value


def _side(value: Any, role: str, where: str) -> list[tuple[Any, Any]]:
    if isinstance(value, list):
        return [(turn.get("role"), turn.get("content")) for turn in _turns(value, where)]
    return [(role, value)]


def _named(config: DataConfig) -> str:
    return f"data.train {config.train}" if config.source == "files" else f"source {config.source!r}"

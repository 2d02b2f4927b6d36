"""An experiment's examples by split: read from files, or made by a known source.

data.train, data.validation, data.test ──▶ tables ──▶ examples, normalised when they are read
data.source = "demo", "rows", …        ──▶ the source's `load`
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from cache_builder.config import DataConfig, expand
from cache_builder.data.examples import Example, Split, Subset, random_part
from cache_builder.data.rows.shapes import normalize
from cache_builder.data.rows.tables import CsvRows, Joined, Table, matches, open_table
from cache_builder.data.sources import clinc150, demo, jmed_llm, limits_of, pubmedqa, rows, snips
from cache_builder.errors import ConfigError, DataError

SOURCES = {
    "rows": rows,
    "demo": demo,
    "pubmedqa": pubmedqa,
    "jmed-llm": jmed_llm,
    "clinc150": clinc150,
    "snips": snips,
}
SPLITS = ("train", "validation", "test")


def load_splits(config: DataConfig, seed: int) -> dict[str, Split]:
    """Return the "train", "validation" and "test" examples; a split that there is none of is empty.

    Raises:
        ConfigError: it limits a validation set that there is none of.
        DataError: there is no training example, a row is not of a known shape, or all of them are of one group.
        MissingError: a file or folder is not there.
    """
    splits = _load_files(config, seed) if config.source == "files" else dict(SOURCES[config.source].load(config, seed))
    if not len(splits["train"]):
        raise DataError(f"the training data of {_named(config)} is empty; at least one example is needed")
    if config.validation_examples is not None and not len(splits["validation"]):
        raise ConfigError(
            f"data.validation_examples is {config.validation_examples:,}, but {_named(config)} has no validation set "
            "of its own; data.validation_fraction says how much of the training data is held out"
        )
    if not len(splits["validation"]) and config.validation_fraction > 0 and len(splits["train"]) > 1:
        splits["train"], splits["validation"] = _hold_out(splits["train"], config.validation_fraction, seed)
    return splits


def data_files(config: DataConfig) -> list[Path]:
    """Return every file that the examples are read from, patterns resolved; hub data sets have none."""
    if config.source == "files":
        locations = [getattr(config, split) for split in SPLITS]
        return [path for location in locations if location for path in matches(expand(location))]
    return SOURCES[config.source].files(config)


class TableExamples(Sequence[Example]):
    """The rows of a table, normalised when they are read; an empty cell of a CSV file is a key that is not there."""

    def __init__(self, table: Table, name: str, ignored: frozenset[str] = frozenset()) -> None:
        self.table, self.name, self.ignored = table, name, ignored
        first = table.tables[0] if isinstance(table, Joined) else table
        self.cells_are_text = isinstance(first, CsvRows)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Example]:
        for index, (where, row) in enumerate(self.table):
            yield self._example(index, where, row)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Example | Subset:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        return self._example(index, *self.table[range(len(self))[index]])

    def _example(self, index: int, where: str, row: dict[str, object]) -> Example:
        if self.cells_are_text:
            row = {key: cell for key, cell in row.items() if cell != ""}
        return normalize(row, f"{self.name}-{index}", where, self.ignored)


def _load_files(config: DataConfig, seed: int) -> dict[str, Split]:
    if config.train is None:
        raise DataError('data.train is not given; name a file or a hub id, or choose a source such as "demo"')
    splits: dict[str, Split] = {}
    ignored = frozenset(config.ignore_keys)
    for split, limit in limits_of(config).items():
        location = getattr(config, split)
        rows: Split = []
        if location:
            rows = TableExamples(open_table(expand(location), f"data.{split}", split), split, ignored)
        splits[split] = random_part(rows, limit, seed)
    return splits


def _hold_out(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Return the rest and a random part of about that fraction; rows of a group stay together."""
    wanted = max(1, round(fraction * len(train)))
    shuffled = np.random.default_rng([seed, 0x5011]).permutation(len(train))
    groups = _groups(train)
    is_held_out = np.zeros(len(train), np.bool_)
    is_held_out[_whole_groups(groups, shuffled, wanted) if any(groups) else shuffled[:wanted]] = True
    if is_held_out.all():
        raise DataError(
            "every training row has the same `group`, so none can be held out without training on its document; give "
            "data.validation, or set data.validation_fraction = 0"
        )
    return Subset(train, np.flatnonzero(~is_held_out)), Subset(train, np.flatnonzero(is_held_out))


def _whole_groups(groups: Sequence[str | None], shuffled: np.ndarray, wanted: int) -> list[int]:
    """Return about so many rows, in the order of `shuffled`, each with all of its group.

    A group larger than what is still wanted is passed over; where none fits, the smallest one is taken.
    """
    members: dict[object, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(row if group is None else group, []).append(row)
    taken: list[int] = []
    for row in shuffled.tolist():
        group = row if groups[row] is None else groups[row]
        if len(taken) + len(members.get(group, ())) <= wanted:
            taken += members.pop(group, ())
    return taken or min(members.values(), key=len)


def _groups(split: Split) -> list[str | None]:
    """Return each row's group; of a table as its cells are, since a row is normalised when it is used."""
    if isinstance(split, Subset):
        base = _groups(split.base)
        return [base[row] for row in split.rows]
    rows = (row for _, row in split.table) if isinstance(split, TableExamples) else split
    groups = (row.get("group") for row in rows)
    return [None if group is None or group == "" else str(group) for group in groups]


def _named(config: DataConfig) -> str:
    return f"data.train {config.train}" if config.source == "files" else f"source {config.source!r}"

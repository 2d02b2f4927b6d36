"""A table's rows → the `[data]` settings that read them: which shape they have, and what nothing would use.

    a folder                       a known benchmark                              source = "pubmedqa", …
    rows of a shape in data.md     conversations, prompt and completion, …        source = "files"
    any other table                columns that ask, and a column that answers    source = "rows"

Columns are told by their names alone; where the names tell nothing, `--prompt` and `--answer` have to.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache_builder.config import DataConfig, expand
from cache_builder.data.rows.shapes import shape_of
from cache_builder.data.rows.tables import Table, open_table
from cache_builder.data.sources.rows import COLUMN
from cache_builder.data.splits import SOURCES, TableExamples
from cache_builder.errors import ConfigError, DataError, MissingError, UnknownKeyError

LOOKED_AT = 20_000
"""Rows of a table that are looked at, so that a large one is begun within a minute."""
TASK = "main"
"""The name of the one task that a table's columns make."""
ASKING = (
    *("text", "sentence", "sentence1", "sentence2", "utterance", "premise", "hypothesis", "title", "abstract"),
    *("document", "article", "passage", "note", "review", "context", "contexts", "instruction", "input", "query"),
    *("question", "prompt"),
)
"""Names of columns that ask, in the order in which they are asked."""
ANSWERING = (
    *("answer", "label", "intent", "category", "class", "target", "final_decision", "decision", "sentiment"),
    *("completion", "response", "output", "summary"),
)
"""Names of the column that answers, the likeliest first."""
SHAPES = {
    ("messages",): "messages with role and content",
    ("conversations",): "ShareGPT conversations",
    ("prompt", "completion"): "prompt and completion",
    ("instruction", "output"): "Alpaca's instruction, input and output",
    ("text",): "plain texts",
}


@dataclass(frozen=True)
class Found:
    """How rows are read."""

    settings: dict[str, Any]
    """Of `[data]`."""
    what: str
    """What the rows are, in words."""
    unused: list[str] = field(default_factory=list)
    """Columns that nothing uses."""


@dataclass(frozen=True)
class Places:
    """What the user says of the data."""

    train: str
    test: str | None = None
    validation: str | None = None
    prompt: str | None = None
    """A text with `{columns}`."""
    answer: str | None = None
    """A column, or a text with `{columns}`."""

    def tables(self) -> dict[str, str]:
        """Return the tables by split."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: location for split, location in named.items() if location is not None}


def look_at(places: Places) -> Found:
    """Find how the rows are to be read.

    Raises:
        ConfigError: the names of the columns do not tell, or what was given contradicts the rows.
        DataError: a row is damaged, or of no shape.
        MissingError: there is no such table, or no test set.
    """
    if Path(expand(places.train)).is_dir():
        return _benchmark(places)
    if places.test is None:
        raise MissingError(
            "no test set is given; name a table of rows that are not trained on with --test, or the same data set of "
            "the hub again, of which the split `test` is read"
        )
    tables = {split: open_table(expand(location), f"--{split}", split) for split, location in places.tables().items()}
    where, first = next(iter(tables["train"]))
    asked = places.prompt is not None or places.answer is not None
    try:
        shape = shape_of(first, where)
    except DataError:
        shape = ()
    if asked or not shape or (shape == ("text",) and _named(first, ANSWERING) is not None):
        return _columns(places, first, where)
    ignored = _unknown_keys(tables)
    settings: dict[str, Any] = dict(places.tables())
    if ignored:
        settings["ignore_keys"] = sorted(ignored)
    return Found(settings, SHAPES[shape])


def _benchmark(places: Places) -> Found:
    given = [name for name in ("test", "validation", "prompt", "answer") if getattr(places, name) is not None]
    for source, module in SOURCES.items():
        if source in ("rows", "demo"):
            continue
        config = DataConfig.model_validate({"source": source, "path": places.train})
        files = module.files(config)
        if not files or any(not path.is_file() for path in files):  # none: of a source that names those that are there
            continue
        if given:
            raise ConfigError(
                f"--{given[0]}: {places.train} is the folder of {source}, which has its own; leave it out"
            )
        return Found({"source": source, "path": places.train}, f"the benchmark {source}, in its official split")
    known = ", ".join(name for name in SOURCES if name not in ("rows", "demo"))
    raise MissingError(f"--train {places.train}: a folder, but not that of {known}; name a file, a pattern or a hub id")


def _unknown_keys(tables: Mapping[str, Table]) -> set[str]:
    """Return the keys that no shape knows, as `data.ignore_keys` names them."""
    ignored: set[str] = set()
    for split, table in tables.items():
        for index in range(min(len(table), LOOKED_AT)):
            while True:
                try:
                    TableExamples(table, split, frozenset(ignored))[index]
                    break
                except UnknownKeyError as unknown:
                    ignored.add(unknown.key)
    return ignored


def _columns(places: Places, first: Mapping[str, Any], where: str) -> Found:
    """Make a task of a table's columns."""
    columns = dict(_leaves(first))
    usable = [name for name in columns if COLUMN.fullmatch(f"{{{name}}}")]
    answer, prompt = places.answer, places.prompt
    if answer is None:
        answer = _named(columns, ANSWERING)
        if answer is None:
            raise ConfigError(
                f"{where}: no column's name tells the answer among {', '.join(columns)}; give --answer COLUMN"
            )
    if "{" not in answer:
        answer = f"{{{answer}}}"
    answering = COLUMN.findall(answer)
    if prompt is None:
        asking = sorted(
            (name for name in usable if _leaf(name) in ASKING and name not in answering),
            key=lambda name: ASKING.index(_leaf(name)),
        )
        if not asking:
            raise ConfigError(
                f"{where}: no column's name tells what is asked among {', '.join(columns)}; give --prompt, a text such "
                f'as "{{{next((name for name in usable if name not in answering), "column")}}}"'
            )
        prompt = f"{{{asking[0]}}}" if len(asking) == 1 else "\n".join(f"{_leaf(name)}: {{{name}}}" for name in asking)
    used = {*COLUMN.findall(prompt), *answering}
    unknown = sorted(used - set(columns))
    if unknown:
        raise ConfigError(f"{where}: there is no column {unknown[0]!r}; there are {', '.join(columns)}")
    task = {**places.tables(), "prompt": prompt, "answer": answer}
    unused = [name for name in columns if name not in used]
    return Found({"source": "rows", "rows": {TASK: task}}, f"a table of columns, {', '.join(sorted(used))}", unused)


def _leaves(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each column, those of an object by a dot."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _leaf(column: str) -> str:
    return column.rpartition(".")[2].lower()


def _named(columns: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the column with the first of the names, whatever their case."""
    by_leaf = {_leaf(column): column for column in reversed(list(columns)) if COLUMN.fullmatch(f"{{{column}}}")}
    return next((by_leaf[name] for name in names if name in by_leaf), None)

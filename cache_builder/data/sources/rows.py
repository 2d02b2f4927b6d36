"""A user's own tasks: rows of a table, and how one becomes a question with its answer.

    [data]                                       note,department           Note: dry cough     the prompt
    source = "rows"                              dry cough,lungs     ──▶   Department?
    [data.rows.triage]                                                     lungs               the answer
    train = "notes.csv"
    prompt = "Note: {note}\\nDepartment?"
    answer = "{department}"
    choices = ["lungs", "skin"]

`{context.contexts}` is what an object has there, and a list of texts is its lines. How answers are judged follows from
the rows, or is said in `[tasks.triage]`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_builder.config import DataConfig, RowsConfig, expand
from cache_builder.data.examples import Example
from cache_builder.data.rows.tables import matches, open_table
from cache_builder.data.sources import chosen_tasks, limited, turns
from cache_builder.errors import ConfigError, DataError

COLUMN = re.compile(r"\{([A-Za-z_]\w*(?:\.\w+)*)\}")


def files(config: DataConfig) -> list[Path]:
    """Return the files of every task's tables, patterns resolved."""
    locations = [getattr(rows, split) for rows in config.rows.values() for split in ("train", "validation", "test")]
    return [path for location in locations if location is not None for path in matches(expand(location))]


def load(config: DataConfig, seed: int) -> dict[str, list[Example]]:
    """Read the tables of every chosen task.

    Raises:
        ConfigError: there is no `[data.rows.NAME]` section, or a text names a column that a table has not.
        MissingError: a table is not there.
        DataError: a table cannot be read, or a row's answer is empty.
    """
    if not config.rows:
        raise ConfigError('data.source is "rows", but there is no section [data.rows.NAME] that describes a task')
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for task in chosen_tasks(config, tuple(config.rows)):
        for split, examples in splits.items():
            location = getattr(config.rows[task], split)
            if location is not None:
                table = open_table(expand(location), f"data.rows.{task}.{split}", split)
                examples += [
                    _example(
                        f"{task}-{split}-{index}", task, row, config.rows[task], f"data.rows.{task}.{split} {where}"
                    )
                    for index, (where, row) in enumerate(table)
                ]
    return limited(splits, config, seed)


def _example(name: str, task: str, row: Mapping[str, Any], rows: RowsConfig, where: str) -> Example:
    answer = _answer(row, rows, where)
    text = str(answer)
    if not text.strip():
        raise DataError(f"{where}: the answer is empty; fill or remove the row")
    system = None if rows.system is None else _filled(rows.system, row, where)
    example: Example = {
        "id": name,
        "task": task,
        "messages": turns(_filled(rows.prompt, row, where), text, system),
        "where": where,
    }
    if isinstance(answer, list):
        example["answer"] = answer
    if rows.choices is not None:
        example["choices"] = rows.choices
    return example


def _answer(row: Mapping[str, Any], rows: RowsConfig, where: str) -> str | list[str]:
    alone = COLUMN.fullmatch(rows.answer)
    value = None if alone is None else _at(row, alone[1], rows.answer, where)
    if isinstance(value, list):
        return [str(item) for item in value]
    return _filled(rows.answer, row, where)


def _filled(text: str, row: Mapping[str, Any], where: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = _at(row, match[1], text, where)
        if isinstance(found, Mapping) or (
            isinstance(found, list) and any(isinstance(x, Mapping | list) for x in found)
        ):
            raise DataError(
                f"{where}, column {match[1]!r}: expected text, a number or a list of them, got {found!r:.60}"
            )
        return "\n".join(map(str, found)) if isinstance(found, list) else "" if found is None else str(found)

    return COLUMN.sub(value, text)


def _at(row: Mapping[str, Any], column: str, text: str, where: str) -> Any:
    """Return what a row has in a column; a dot goes into an object.

    Raises:
        ConfigError: it has none.
    """
    found: Any = row
    for name in column.split("."):
        if not isinstance(found, Mapping) or name not in found:
            raise ConfigError(f"{where} has no column {column!r}, which {text!r} names; it has {', '.join(row)}")
        found = found[name]
    return found

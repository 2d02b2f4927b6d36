"""The files of a run folder, each read or named in `missing` with what is wrong with it.

They may be from anybody: what is not of the expected shape, or not what its step has recorded, is refused by name, and
costs no other file.
"""

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from cache_builder.errors import MissingError, UserError
from cache_builder.steps import STAGE_FILE, STARTED_FILE, read_record
from trainer.losses_file import read_losses
from trainer.report.run.cache_view import CacheView

UNUSABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)
"""What reading a file that is not as it should be may raise; pydantic's and json's errors are ValueErrors."""
MAX_BYTES = 1 << 28
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_RENAMED: dict[str, str] = {"teacher_weight": "divergence_weight"}
"""Names in older logs."""


def read_json(path: Path, missing: list[str], label: str) -> Any:
    """Return a JSON file's value, or None."""
    try:
        return _value(_text(path))
    except FileNotFoundError:
        missing.append(f"{label}: {path.name} is not there")
    except UNUSABLE as error:
        missing.append(f"{label}: {path.name} is not valid JSON ({first_line(error)})")
    return None


def read_log(path: Path, missing: list[str], label: str) -> list[dict[str, float]]:
    """Return a training log's entries, their finite numbers by today's names; none where there is no log."""
    value = read_json(path, missing, label)
    if value is not None and not isinstance(value, list):
        missing.append(f"{label}: {path.name} cannot be used: expected a list of entries")
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    return [
        {_RENAMED.get(str(key), str(key)): number for key, number in entry.items() if _finite(number)}
        for entry in entries
    ]


def read_steps(path: Path, missing: list[str], label: str) -> dict[str, int]:
    """Return checkpoint -> optimizer step of the teacher's fine-tuning."""
    value = read_json(path, missing, label)
    entries = value.get("checkpoints") if isinstance(value, dict) else None
    named = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return {
        str(entry.get("name")): entry["step"]
        for entry in named
        if isinstance(entry.get("step"), int) and not isinstance(entry["step"], bool)
    }


def read_counts(path: Path) -> dict[str, int]:
    """Return what was counted while the corpus was tokenised."""
    value = read_json(path, [], "")
    counts = value.get("counts") if isinstance(value, dict) else None
    return (
        {key: number for key, number in counts.items() if isinstance(number, int)} if isinstance(counts, dict) else {}
    )


def read_model_losses(path: Path, cache: CacheView | None, missing: list[str], label: str) -> np.ndarray | None:
    """Return per-sequence losses of this cache's corpus, f64 [n]; those of another would pair different sequences."""
    if cache is None:
        if not path.is_file():
            missing.append(f"{label}: {path.name} is not there")
        return None
    try:
        return read_losses(path, cache.fingerprint, cache.n_sequences)
    except MissingError:
        missing.append(f"{label}: {path.name} is not there")
    except UserError as error:
        missing.append(f"{label}: not compared: {first_line(error)}")
    return None


@dataclass(frozen=True)
class RowScores:
    """Task -> row id -> the row's score, and how much it counts; a metric is their weighted mean."""

    score: dict[str, dict[str, float]]
    weight: dict[str, dict[str, float]]


def read_scores(path: Path, missing: list[str]) -> RowScores:
    """Return the rows' scores from a file of predictions, up to the first line that is none; older ones count alike."""
    scores = RowScores({}, {})
    if not path.exists():
        missing.append(f"{path.parent.name}: no predictions.jsonl, so no test paired by row")
        return scores
    number = 0
    try:
        for line in _text(path).split("\n"):  # not splitlines(): an answer may hold a line separator
            number += 1
            row = _value(line) if line.strip() else {}
            if row.get("score") is None:
                continue
            score, weight = row["score"], row.get("weight", 1.0)
            if not (_finite(score) and _finite(weight) and weight >= 0):
                raise ValueError(f"score {score!r}, weight {weight!r}: expected two numbers")
            task, name = str(row["task"]), str(row["id"])
            scores.score.setdefault(task, {})[name] = float(score)
            scores.weight.setdefault(task, {})[name] = float(weight)
    except UNUSABLE as error:
        where = f"{plain_name(path.parent.name)}/predictions.jsonl, line {number} and after"
        missing.append(f"{where}: {first_line(error)}")
    return scores


def read_config(path: Path, missing: list[str]) -> dict[str, Any]:
    """Return the run's settings as TOML has them, or nothing."""
    try:
        return tomllib.loads(_text(path))
    except FileNotFoundError:
        missing.append("config.toml is not there: the methods and seeds that were asked for are not known")
    except UNUSABLE as error:
        missing.append(f"config.toml is not valid TOML: {first_line(error)}")
    return {}


def plain_name(name: str) -> str:
    """Return a file's name with what is no Unicode in it written out: no page and no CSV file could hold it."""
    return name.encode("utf-8", "backslashreplace").decode()


def first_line(error: Exception) -> str:
    """Say what is wrong with a file in one line."""
    if isinstance(error, ValidationError):
        details = error.errors()[0]
        return f"{'.'.join(map(str, details['loc'])) or 'the file'}: {details['msg']}"
    text = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.splitlines()[:1]) or type(error).__name__


def _text(path: Path) -> str:
    """Return a file's text.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no plain file, larger than any that this program writes, or no UTF-8.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():  # a pipe would be waited for, and a device has no end
        raise ValueError("it is not a plain file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    content = path.read_bytes()
    recorded = _recorded(path.parent).get(path.name)
    if recorded is not None and recorded != hashlib.sha256(content).hexdigest():
        raise ValueError("it does not have the bytes that its step has recorded")
    return content.decode()


def _recorded(folder: Path) -> dict[str, Any]:
    """Return the digests of a folder's files that its step's record has; an older one has none."""
    for name in (STAGE_FILE, STARTED_FILE):
        record = folder / name
        if record.is_file() and record.stat().st_size <= MAX_BYTES:
            files = read_record(record).get("files")
            if isinstance(files, dict):
                return files
    return {}


def _value(text: str) -> Any:
    value: Any = json.loads(text)
    if _SURROGATE.search(text):  # half a character, which no page and no CSV file could hold
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _finite(value: object) -> bool:
    """Say whether a value is a number that arithmetic can use."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 1e300

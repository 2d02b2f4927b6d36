"""The files of a run folder, each read or named in `missing` with what is wrong with it."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open


def read_json(path: Path, missing: list[str], label: str) -> Any:
    """Return a JSON file's value, or None."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{label}: {path.name} is not there")
    except (ValueError, OSError) as error:
        missing.append(f"{label}: {path.name} is not valid JSON ({error})")
    return None


def entries_of(log: Any) -> list[dict[str, Any]]:
    """Return the entries of a training log that are one."""
    return [entry for entry in log if isinstance(entry, dict)] if isinstance(log, list) else []


def read_losses(path: Path, missing: list[str], label: str) -> np.ndarray | None:
    """Return per-sequence losses, f64 [n], or None."""
    if not path.is_file():
        missing.append(f"{label}: {path.name} is not there")
        return None
    try:
        with safe_open(path, framework="numpy") as tensors:
            return np.asarray(tensors.get_tensor("loss"), dtype=np.float64)
    except (SafetensorError, OSError) as error:
        missing.append(f"{label}: {path.name} cannot be read ({error})")
        return None


@dataclass(frozen=True)
class RowScores:
    """Task -> row id -> the row's score, and how much it counts; a metric is their weighted mean."""

    score: dict[str, dict[str, float]]
    weight: dict[str, dict[str, float]]


def read_scores(path: Path, missing: list[str]) -> RowScores:
    """Return the rows' scores from a file of predictions, up to the first line that is none; older ones count alike."""
    scores = RowScores({}, {})
    if not path.is_file():
        missing.append(f"{path.parent.name}: no predictions.jsonl, so no test paired by row")
        return scores
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:  # not splitlines(): an answer may hold a line separator
            for line in lines:
                number += 1
                row = json.loads(line) if line.strip() else {}
                if row.get("score") is not None:
                    task, name = str(row["task"]), str(row["id"])
                    weight = float(row.get("weight", 1.0))
                    scores.score.setdefault(task, {})[name] = float(row["score"])
                    scores.weight.setdefault(task, {})[name] = weight
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        missing.append(f"{path.parent.name}/predictions.jsonl, line {number} and after: {error!r}")
    return scores


def read_config(path: Path, missing: list[str]) -> dict[str, Any]:
    """Return the run's settings as TOML has them, or nothing."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append("config.toml is not there: the methods and seeds that were asked for are not known")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        missing.append(f"config.toml is not valid TOML: {error}")
    return {}


def setting(config: dict[str, Any], section: str, key: str) -> Any:
    """Return a setting, or None where it, or its section, is not one."""
    values = config.get(section)
    return values.get(key) if isinstance(values, dict) else None


def settings(config: dict[str, Any], section: str, key: str) -> list[Any]:
    """Return a setting that is a list, or nothing."""
    values = setting(config, section, key)
    return values if isinstance(values, list) else []

"""A stage's folder records what it was made from; a finished one is reused, and never for other inputs.

folder/inputs.json = {…}                       written first: what it is made from
folder/stage.json  = {…, "record_sha256": …}   its result, written last: its existence means that the stage is complete

A result seals itself: `record_sha256` is that of the rest. Those of before have no seal, and are read all the same.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_builder.atomic import write_json
from cache_builder.errors import CacheDamagedError, MissingError, OtherInputsError

STAGE_FILE = "stage.json"
STARTED_FILE = "inputs.json"
SEAL = "record_sha256"


def stage_result(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the recorded result of a finished stage, or None where it has yet to run or to finish.

    The inputs are recorded at the first call, so that an interrupted stage is never continued with others.

    Raises:
        OtherInputsError: the folder was made from other inputs; the message names each that differs.
        CacheDamagedError: a record is not what was written.
    """
    inputs = json.loads(json.dumps(inputs))
    started = folder / STARTED_FILE
    if started.is_file():
        recorded = read_record(started)
        if lines := differences(recorded, inputs):
            raise OtherInputsError(
                f"{folder} was made from other settings; remove it, or choose another run.output_dir:\n"
                + "\n".join(lines)
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(started, inputs)
    finished = folder / STAGE_FILE
    return read_record(finished) if finished.is_file() else None


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any], table: str = "") -> list[str]:
    """Return a line for each setting that differs, those of tables one by one; None is as good as absent."""
    lines = []
    for key in sorted(recorded.keys() | now.keys()):
        before, after = recorded.get(key), now.get(key)
        if before == after:
            continue
        within = []
        if all(isinstance(each, dict | None) for each in (before, after)):
            within = differences(before or {}, after or {}, f"{table}{key}.")
        # A table of nothing but absent settings is still another thing than no table.
        if within or (isinstance(before, dict) and isinstance(after, dict)):
            lines += within
        else:
            lines.append(f"  {table}{key}: it has {before!r}, now {after!r}")
    return lines


def finish_stage(folder: Path, result: dict[str, Any]) -> None:
    """Mark the stage complete and record its result."""
    write_record(folder / STAGE_FILE, result)


def finished_result(folder: Path, what: str, command: str) -> dict[str, Any]:
    """Return a finished stage's result.

    Raises:
        MissingError: it has not finished; the message names the command that makes it.
        CacheDamagedError: the record is not what was written.
    """
    if not (folder / STAGE_FILE).is_file():
        raise MissingError(f"{what} is not there: {folder} is missing or unfinished; run `{command}` first")
    return read_record(folder / STAGE_FILE)


def write_record(path: Path, value: dict[str, Any]) -> None:
    """Write a record with its seal."""
    write_json(path, {**value, SEAL: _seal(json.loads(json.dumps(value)))})


def read_record(path: Path) -> dict[str, Any]:
    """Return what `write_record` wrote, without the seal, or a record of before.

    Raises:
        CacheDamagedError: it is no JSON object, or its seal is not that of its content.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(value, dict):
        raise _damaged(path, f"expected an object, got {str(value)[:40]!r}")
    if SEAL in value and value.pop(SEAL) != _seal(value):
        raise _damaged(path, "its content is not what was written")
    return value


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, reason: str) -> CacheDamagedError:
    return CacheDamagedError(f"{path} is damaged: {reason}; remove {path.parent} to make it again")

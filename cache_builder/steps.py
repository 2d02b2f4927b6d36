"""A stage's folder records what it was made from; a finished one is reused, and never for other inputs.

folder/stage.json = {"inputs": {…}, "result": {…}}      written last: its existence means that the stage is complete
"""

import json
from pathlib import Path
from typing import Any

from cache_builder.atomic import write_json
from cache_builder.errors import CacheMismatchError, MissingError

STAGE_FILE = "stage.json"
STARTED_FILE = "inputs.json"


def stage_result(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the recorded result of a finished stage, or None where it has yet to run or to finish.

    The inputs are recorded at the first call, so that an interrupted stage is never continued with others.

    Raises:
        CacheMismatchError: the folder was made from other inputs; the message names each that differs.
    """
    inputs = json.loads(json.dumps(inputs))
    started = folder / STARTED_FILE
    if started.is_file():
        recorded = json.loads(started.read_text(encoding="utf-8"))
        differing = sorted(key for key in recorded.keys() | inputs.keys() if recorded.get(key) != inputs.get(key))
        if differing:
            lines = [f"  {key}: it has {recorded.get(key)!r}, now {inputs.get(key)!r}" for key in differing]
            raise CacheMismatchError(
                f"{folder} was made from other settings; remove it, or choose another run.output_dir:\n"
                + "\n".join(lines)
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(started, inputs)
    finished = folder / STAGE_FILE
    return json.loads(finished.read_text(encoding="utf-8")) if finished.is_file() else None


def finish_stage(folder: Path, result: dict[str, Any]) -> None:
    """Mark the stage complete and record its result."""
    write_json(folder / STAGE_FILE, result)


def finished_result(folder: Path, what: str, command: str) -> dict[str, Any]:
    """Return a finished stage's result.

    Raises:
        MissingError: it has not finished; the message names the command that makes it.
    """
    if not (folder / STAGE_FILE).is_file():
        raise MissingError(f"{what} is not there: {folder} is missing or unfinished; run `{command}` first")
    return json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))

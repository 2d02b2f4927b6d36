"""Which content a file has: its SHA-256, read again only where the file may have changed.

    digests.json     {path: {size, mtime, ctime, inode, sha256, noted}}          of data files
    stage.json       {…, "files": {path in the step's folder: sha256}}           of what a step has made

Size and times alone lie: an editor keeps the one, `touch` and `cp -p` the other. The change time cannot be set, but two
writes in one tick of the clock share it. So a recorded digest stands only where size, both times and the inode are the
recorded ones, and the file had been left alone for two seconds when it was read.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from cache_builder.atomic import write_json
from cache_builder.errors import CacheDamagedError
from cache_builder.steps import STAGE_FILE, read_record

SETTLED_NS = 2_000_000_000


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digests(paths: Iterable[Path], notes: Path) -> dict[str, str]:
    """Return the SHA-256 of each file; what is read is noted in `notes`, which may be removed at any time."""
    known = _read_notes(notes)
    digests: dict[str, str] = {}
    changed = False
    for path in paths:
        key = str(path.resolve())
        state = _state(path)
        note = known.get(key, {})
        settled = isinstance(note.get("noted"), int) and note["noted"] - max(state[1:3]) > SETTLED_NS
        if note.get("state") != state or not settled or not isinstance(note.get("sha256"), str):
            began = time.time_ns()
            known[key] = {"state": state, "sha256": sha256_of(path), "noted": began}
            changed = True
        digests[str(path)] = known[key]["sha256"]
    if changed:
        notes.parent.mkdir(parents=True, exist_ok=True)
        write_json(notes, known)
    return digests


def check_files(folder: Path, digests: dict[str, str], what: str, remedy: str) -> None:
    """Compare a folder's files with their recorded digests, once per process for the same files.

    Raises:
        CacheDamagedError: a file is missing or has other bytes; the message names it.
    """
    for name, expected in digests.items():
        path = folder / name
        if not path.is_file():
            raise CacheDamagedError(f"{path} is missing; {what} is damaged: {remedy}")
        if _digest_in_process(path, tuple(_state(path))) != expected:
            raise CacheDamagedError(f"{path} does not have the bytes that were written; {what} is damaged: {remedy}")


def check_recorded(folder: Path, begin: str, what: str) -> None:
    """Compare the files of a step's folder whose paths begin with `begin` with its stage.json, if there is one.

    Raises:
        CacheDamagedError: as `check_files`; or the record itself is damaged.
    """
    record = folder / STAGE_FILE
    files = read_record(record).get("files") if record.is_file() else None
    if isinstance(files, dict):
        own = {name: digest for name, digest in files.items() if name.startswith(begin)}
        check_files(folder, own, what, f"restore it, or remove {folder} to make it again")


def files_in(folder: Path, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder but those named in `leave_out`, by its path from there."""
    left_out = frozenset(leave_out)
    files = sorted(path for path in folder.rglob("*") if path.name not in left_out and path.is_file())
    return {path.relative_to(folder).as_posix(): _digest_in_process(path, tuple(_state(path))) for path in files}


@lru_cache(4096)
def _digest_in_process(path: Path, state: tuple[int, ...]) -> str:
    return sha256_of(path)


def _state(path: Path) -> list[int]:
    """Return (size, modification time, change time, inode, device)."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _read_notes(path: Path) -> dict[str, Any]:
    """Read the notes; damaged ones are as good as none, because they only save time."""
    try:
        notes = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(notes, dict):
        return {}
    return {key: note for key, note in notes.items() if isinstance(note, dict)}

"""Write a file or a folder whole or not at all, whatever interrupts it: the one place where this program does so.

    <name>….part ─ write ─ fsync ─ rename to <name> ─ fsync of the folder that holds it

A reader sees what was there before, or all of what is new. What a kill leaves has a name that ends with `.part`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache_builder.errors import ConfigError

PART_SUFFIX = ".part"
"""What is being written, or was when its writer was killed."""


def check_named_in_utf8(path: Path) -> None:
    """Refuse a path that this locale writes in other bytes than UTF-8, by which the tokenizers library opens files.

    Raises:
        ConfigError: it does.
    """
    try:
        alike = os.fsencode(path) == str(path).encode()
    except UnicodeEncodeError:
        alike = False
    if not alike:
        raise ConfigError(
            f"run.output_dir {str(path.parent)!r}: this locale does not write the name in UTF-8, by which libraries "
            "open files; choose a name in ASCII, or a UTF-8 locale such as LC_ALL=C.UTF-8"
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file; several processes may write it at once, and one of them wins."""
    # The process is in the name, as a second writer of one part would truncate it under the first.
    part = path.with_name(f"{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        write_synced(part, data)
        rename_synced(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file; lines end as they do in `text`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, indented."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the name under which the block writes a file; it becomes `path` where the block succeeds.

    The name is the same each time, so that a large file which a kill left half written is replaced by the next attempt.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    try:
        yield part
        _sync(part)
        rename_synced(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give the empty folder that the block fills; it becomes `path`, in place of what is there, if the block succeeds.

    What a kill leaves between the two renames of a replacement, `restore_folder` mends; so does the next attempt.
    """
    restore_folder(path)
    part = path.with_name(path.name + PART_SUFFIX)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for folder, _, files in os.walk(part):
            for file in files:
                _sync(Path(folder) / file)
            sync_folder(Path(folder))
        if path.exists():
            rename_synced(path, _replaced(path))  # no file system renames a folder over one that is not empty
        rename_synced(part, path)
    except BaseException:
        restore_folder(path)
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(_replaced(path), ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Give a folder its name back where a kill, or an error, came between the two renames of `new_folder`."""
    if path.exists():
        shutil.rmtree(_replaced(path), ignore_errors=True)
    elif _replaced(path).exists():
        rename_synced(_replaced(path), path)


def _replaced(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaced{PART_SUFFIX}")


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        # Before any rename: a file system may make a new name durable before the bytes, and after a power cut the name
        # would stand for an empty file.
        os.fsync(file.fileno())


def rename_synced(part: Path, path: Path) -> None:
    """Rename a file, over what is there, or a folder, and wait until the disk has the new name."""
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names."""
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())

"""A file or a folder is there whole or not at all, and what was there before stays until then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache_builder import atomic
from cache_builder.atomic import new_file, new_folder, restore_folder, write_bytes, write_json, write_text
from tests.support.paths import ROOT


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_was_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"\x00\xff")
    write_text(tmp_path / "b", "é\r\nx\n")
    write_json(tmp_path / "c", {"é": [1, None]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "é\r\nx\n".encode()
    assert json.loads((tmp_path / "c").read_text(encoding="utf-8")) == {"é": [1, None]}
    assert names(tmp_path) == ["a", "b", "c"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "before")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "a") as part:
        part.write_text("half")
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "f") as part:
        (part / "x").write_text("half")
        _ = 1 / 0
    with pytest.raises(TypeError):
        write_json(tmp_path / "a", {"x": object()})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "after")
    assert (tmp_path / "a").read_text() == "before"
    assert names(tmp_path) == ["a"]


def test_what_a_kill_left_half_written_is_replaced_by_the_next_attempt(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_text("of a writer that was killed")
    (tmp_path / "f.part").mkdir()
    (tmp_path / "f.part" / "old").write_text("of a writer that was killed")
    with new_file(tmp_path / "a") as part:
        part.write_text("whole")
    with new_folder(tmp_path / "f") as part:
        (part / "in").mkdir()
        (part / "in" / "x").write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert names(tmp_path) == ["a", "f", "f/in", "f/in/x"]


REPLACE_AND_DIE = """
import os, sys
from pathlib import Path
from cache_builder.atomic import new_folder
renames = 0
replace = Path.replace
def replace_or_die(self, target):
    global renames
    if renames == int(sys.argv[2]):
        os._exit(9)
    renames += 1
    return replace(self, target)
Path.replace = replace_or_die
with new_folder(Path(sys.argv[1])) as part:
    (part / "y").write_text("after")
"""


@pytest.mark.parametrize(("renames", "found"), [(0, "x"), (1, "x"), (2, "y")])
def test_a_folder_that_is_being_replaced_survives_a_kill_at_every_rename(
    renames: int, found: str, tmp_path: Path
) -> None:
    with new_folder(tmp_path / "f") as part:
        (part / "x").write_text("before")
    died = subprocess.run([sys.executable, "-c", REPLACE_AND_DIE, tmp_path / "f", str(renames)], cwd=ROOT)
    assert died.returncode == (0 if renames == 2 else 9)
    assert (tmp_path / "f").exists() == (renames != 1)
    restore_folder(tmp_path / "f")
    assert names(tmp_path / "f") == [found]
    with new_folder(tmp_path / "f") as part:
        (part / "z").write_text("at last")
    assert names(tmp_path) == ["f", "f/z"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_folder(tmp_path / "f") as part:
        (part / "x").write_text("before")
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if self.name == "f.part":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(OSError, match="No space"), new_folder(tmp_path / "f") as part:
        (part / "y").write_text("after")
    assert names(tmp_path) == ["f", "f/x"]


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append(f"fsync {path.relative_to(tmp_path).as_posix().replace(str(os.getpid()), 'process')}")
        fsync(descriptor)

    def noting_replace(self: Path, target: Path) -> Path:
        steps.append(f"rename to {target.relative_to(tmp_path)}")
        return replace(self, target)

    monkeypatch.setattr(atomic.os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    write_text(tmp_path / "a", "x")
    with new_file(tmp_path / "b") as part:
        part.write_text("x")
    with new_folder(tmp_path / "f") as part:
        (part / "x").write_text("x")
    assert steps == [
        *["fsync a.process.part", "rename to a", "fsync ."],
        *["fsync b.part", "rename to b", "fsync ."],
        *["fsync f.part/x", "fsync f.part", "rename to f", "fsync ."],
    ]


def test_many_processes_may_write_one_file(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cache_builder.atomic import write_text\n"
        "for _ in range(50): write_text(Path(sys.argv[1]), sys.argv[2] * 5000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "a", who], cwd=ROOT) for who in "xy"]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a").exists():
            assert (tmp_path / "a").read_text() in ("x" * 5000, "y" * 5000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["a"]

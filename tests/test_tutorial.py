"""docs/tutorial.md, typed in an empty folder: its `sh` blocks in order in one shell, which print its `text` blocks."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = {
    "python": 'exec {python} "$@"',
    "footsteps": 'exec {python} -m trainer.cli "$@"',
}
"""What the page calls, where the tests' Python and the code beside them stand for an install."""


@dataclass
class Block:
    """Commands, with what the page says that they print."""

    section: str
    commands: str
    said: list[str] = field(default_factory=list)


def blocks() -> list[Block]:
    found: list[Block] = []
    section = ""
    for heading, kind, content in re.findall(
        r"^## ([^\n]+)$|^```(sh|text)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    ):
        if heading:
            section = heading
        elif kind == "sh":
            found.append(Block(section, content))
        else:
            found[-1].said += content.splitlines()
    return found


def follow(followed: list[Block], folder: Path) -> None:
    """Run the blocks in one shell, as a reader types them, and look for what the page says in what each prints."""
    (folder / "bin").mkdir()
    for name, line in COMMANDS.items():
        command = folder / "bin" / name
        command.write_text(f"#!/bin/sh\n{line.format(python=sys.executable)}\n")
        command.chmod(0o755)
    empty = folder / "empty"
    empty.mkdir()
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = "".join(f"{block.commands}\nprintf '\\f'\n" for block in followed)
    shell = ["bash", "-e", "-c", script]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(shell, cwd=empty, env=environment, timeout=600, **output)
    assert done.returncode == 0, done.stdout[-5000:]
    for block, printed in zip(followed, done.stdout.split("\f")[:-1], strict=True):
        missing = [line for line in block.said if line not in printed.splitlines()]
        assert missing == [], (block.section, printed)


def test_rows_and_models_make_a_config_that_the_doctor_finds_nothing_to_fix_in(tmp_path: Path) -> None:
    follow([block for block in blocks() if block.section in ("", "Rows", "Models", "A first config")], tmp_path)
    assert (tmp_path / "empty" / "tickets.toml").is_file()


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs_in_an_empty_folder(tmp_path: Path) -> None:
    follow(blocks(), tmp_path)
    here = tmp_path / "empty"
    assert all((here / "runs" / run / "report" / "index.html").is_file() for run in ("tickets", "smaller"))
    assert (here / "runs" / "both" / "index.html").is_file()

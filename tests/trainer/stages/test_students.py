"""Students trained side by side, in real processes: the same bits, one message for a refusal, nothing left running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_builder.errors import ConfigError, TrainingError
from cache_builder.storage.locks import only_one_in
from tests.support.paths import ROOT
from tests.support.students import assert_same_bits
from tests.support.toys import Opened, open_toy
from trainer.stages.students import train_students

STUDENTS = [("td", 0), ("sft", 0), ("td", 1)]


@pytest.fixture(scope="module")
def alone(built_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the students, trained one after another."""
    experiment, cache, prepared = open_toy(built_toy, tmp_path_factory.mktemp("alone"))
    begun: list[tuple[str, int]] = []
    folders = list(train_students(experiment, STUDENTS, prepared, cache, begun=lambda *student: begun.append(student)))
    assert begun == STUDENTS and [folder.name for folder in folders] == ["seed-0", "seed-0", "seed-1"]
    return folders[0].parents[1]


def test_students_side_by_side_are_those_that_one_process_trains(alone: Path, toy: Callable[..., Opened]) -> None:
    experiment, cache, prepared = toy()
    folders = set(train_students(experiment, STUDENTS, prepared, cache, jobs=2))
    assert {(folder.parent.name, int(folder.name.removeprefix("seed-"))) for folder in folders} == set(STUDENTS)
    for method, seed in STUDENTS:
        where = Path(method) / f"seed-{seed}"
        assert_same_bits(alone / where, experiment.output_dir / "distill" / where)
    assert "FOOTSTEPS_LINES" not in os.environ


@pytest.mark.slow
def test_a_refusal_names_its_student_and_what_was_begun_goes_on_when_asked_again(
    alone: Path, toy: Callable[..., Opened]
) -> None:
    experiment, cache, prepared = toy()
    side = experiment.output_dir / "distill"
    with (
        only_one_in(side / "td/seed-1", "training this student"),
        pytest.raises(TrainingError, match=r"td, seed 1: .*is training this student now"),
    ):
        list(train_students(experiment, [("td", 1), ("td", 0)], prepared, cache, jobs=2))
    assert len(list(train_students(experiment, STUDENTS, prepared, cache, jobs=2))) == len(STUDENTS)
    for method, seed in STUDENTS:
        assert_same_bits(alone / method / f"seed-{seed}", side / method / f"seed-{seed}")


def test_several_jobs_under_a_launcher_are_refused(toy: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cache, prepared = toy()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--jobs 2 under a launcher of 2 processes"):
        list(train_students(experiment, STUDENTS, prepared, cache, jobs=2))


def processes_below(parent: int) -> set[int]:
    """Return the processes that a process has started, and theirs."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            number = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(number, []).append(int(folder.name))
    found, left = set(), [parent]
    while left:
        for each in children.get(left.pop(), []):
            found.add(each)
            left.append(each)
    return found


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_nothing_running_and_goes_on(
    built_toy: Path, alone: Path, toy: Callable[..., Opened], tmp_path: Path
) -> None:
    side = toy()[0].output_dir
    command = [sys.executable, "-m", "trainer.cli", "distill", str(built_toy / "experiment.toml"), "--jobs", "2"]
    for override in (f"run.output_dir='{side}'", "distill.methods=['td', 'sft']"):
        command += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    until = time.monotonic() + 120
    while len(list((side / "distill").glob("*/*/.busy"))) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    workers = processes_below(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until, "a process was left running"
        time.sleep(0.02)
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "Warning" not in done.stderr, done.stderr
    for method in ("td", "sft"):
        assert_same_bits(alone / method / "seed-0", side / "distill" / method / "seed-0")

"""What building and training took is noted, whoever was killed on the way, and never changes the cache."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cache_builder.build.costs import BUILD_FOLDER, CostNote, read_costs
from cache_builder.build.progress import BuildProgress
from cache_builder.cache.reader import open_cache
from cache_builder.steps import read_record, write_record
from tests.support.caches import Teaching, files_of
from tests.support.interruption import stops_at
from trainer.stages.distill import distill

NOTE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from cache_builder.build.costs import CostNote
note = CostNote(Path(sys.argv[1]), "step-1", "f00d", (0, 1), Console(stderr=True))
note.add(63)
note.add(63)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_builder_notes_its_positions_time_and_memory_outside_the_cache(
    teaching: Teaching, tmp_path: Path
) -> None:
    for part in ((0, 2), (1, 2)):
        teaching.build(tmp_path / "cache", part=part)
    costs, unreadable = read_costs(teaching.folder)
    cache = open_cache(str(tmp_path / "cache"))
    assert not unreadable
    assert {cost.part for cost in costs} == {(0, 2), (1, 2)}
    for name in cache.checkpoints:
        ours = [cost for cost in costs if cost.checkpoint == name and cost.cache == cache.fingerprint]
        assert sum(cost.positions for cost in ours) == cache.manifest.corpus.positions
        assert all(cost.finished and cost.seconds > 0 and cost.peak_memory_mib > 10 for cost in ours)
    assert not [path for path in files_of(tmp_path / "cache") if BUILD_FOLDER in path]


def test_the_note_has_tokens_waiting_and_memory_of_its_own_checkpoint(
    teaching: Teaching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading a sequence takes 5 ms here, so a known part of the time is waiting."""
    read, slept = type(teaching.corpus).sequence, 0.005

    def slow(self: Any, row: int) -> Any:
        time.sleep(slept)
        return read(self, row)

    monkeypatch.setattr(type(teaching.corpus), "sequence", slow)
    before = {cost.model_dump_json() for cost in read_costs(teaching.folder)[0]}
    teaching.build(tmp_path / "cache")
    costs = [cost for cost in read_costs(teaching.folder)[0] if cost.model_dump_json() not in before]
    tokens, held_out = (int(corpus.token_offsets[-1]) for corpus in (teaching.corpus, teaching.held_out))
    assert {cost.checkpoint for cost in costs} == {"step-1", "step-2"}
    for cost in costs:
        assert tokens + held_out <= cost.tokens < 3 * (tokens + held_out), "a shard's sample and the probe run twice"
        assert len(teaching.corpus) * slept < cost.waiting_seconds < cost.seconds
    said = " ".join(capsys.readouterr().err.split())
    assert len(re.findall(r"[\d,]+ tokens/s, waiting for data [\d.]+%, peak memory [\d,]+ MiB", said)) == 2


def test_a_killed_builder_leaves_the_note_of_what_it_had_done(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NOTE_AND_DIE, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (cost,), unreadable = read_costs(tmp_path)
    assert (cost.positions, cost.finished, unreadable) == (126, False, [])
    assert cost.seconds > 0


def test_a_build_that_fails_is_noted_as_unfinished(tmp_path: Path) -> None:
    console = Console(stderr=True)
    for error in (None, ValueError):
        with (
            suppress(ValueError),
            BuildProgress(console, "step-1", 9, CostNote(tmp_path, "step-1", "f", (0, 1), console)),
        ):
            if error:
                raise error
    costs, _ = read_costs(tmp_path)
    assert [cost.finished for cost in costs] == [True, False]


def test_what_is_not_a_note_is_named_and_not_counted(tmp_path: Path) -> None:
    note = CostNote(tmp_path, "step-1", "f00d", (0, 1), Console(stderr=True))
    note.add(5, finished=True)
    folder = note.path.parent
    (folder / "a.json").write_text('{"checkpoint": "step-1", "seconds": -1}')
    (folder / "b.json").write_text("{")
    (folder / f"{note.path.name}.{os.getpid()}.part").write_text("{")
    values = json.loads(note.path.read_text())
    (folder / "c.json").write_text(json.dumps(values | {"seconds": float("nan")}))
    costs, unreadable = read_costs(tmp_path)
    assert [cost.positions for cost in costs] == [5]
    assert [line.split()[0] for line in unreadable] == [f"build/step-1/{name}.json" for name in "abc"]


def test_a_note_that_cannot_be_written_does_not_stop_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / BUILD_FOLDER).write_text("in the way")
    CostNote(tmp_path, "step-1", "f00d", (0, 1), Console(stderr=True)).add(5)
    assert "no note of this build's time and memory" in " ".join(capsys.readouterr().err.split())


def test_a_resumed_training_counts_what_was_done_before_it_was_stopped(toy: Any) -> None:
    experiment, cache, prepared = toy("distill.save_steps=6")
    with stops_at(14):
        distill(experiment, "td", 0, cache, prepared)
    folder = experiment.output_dir / "distill" / "td" / "seed-0"
    path = max(folder.glob("checkpoint-*/train_state.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    progress = read_record(path)
    assert 0 < progress["seconds"] < 600 and progress["peak_memory_mib"] > 10
    write_record(path, progress | {"seconds": 1000.0, "peak_memory_mib": 1e9})
    distill(experiment, "td", 0, cache, prepared)
    last = next(entry for entry in json.loads((folder / "log.json").read_text()) if "train_runtime" in entry)
    assert 1000 < last["train_runtime"] < 1600 and last["peak_memory_mib"] == 1e9
    assert last["train_steps_per_second"] == pytest.approx(last["step"] / last["train_runtime"])

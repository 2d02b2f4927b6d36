"""A checkpoint that training would go on from is whole, or it is left out, and said so."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cache_builder.errors import ModelError
from cache_builder.steps import read_record, write_record
from tests.support.interruption import stops_at
from trainer.loop.state import checkpoints_of, last_whole_checkpoint
from trainer.stages.distill import distill

FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    *("config.json", "tokenizer.json", "train_state.json"),
)
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": lambda path: path.write_bytes(_flipped(path.read_bytes())),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


def _flipped(data: bytes) -> bytes:
    at = data.find(b"last_epoch")  # torch's archives have padding, of which a flip changes nothing
    at = at if at >= 0 else len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.fixture
def run(stopped_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def resumed(run: Path, total_steps: int = 45) -> tuple[str | None, list[str]]:
    """Return which checkpoint is gone on from, and what is said."""
    said: list[str] = []
    found = last_whole_checkpoint(run, total_steps, said.append)
    return (found[0].name if found else None), said


def test_the_newest_whole_checkpoint_is_gone_on_from_without_a_word(run: Path) -> None:
    assert resumed(run) == ("checkpoint-8", [])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_leaves_the_checkpoint_before_and_is_named(name: str, damage: str, run: Path) -> None:
    DAMAGES[damage](run / "checkpoint-8" / name)
    found, said = resumed(run)
    assert found == "checkpoint-4"
    if name != "train_state.json" or damage in ("a flipped bit", "cut", "empty", "grown"):
        assert len(said) == 1 and name in said[0] and said[0].endswith("so training goes on from checkpoint-4")
    assert [step for step, _ in checkpoints_of(run)] == [4]


def test_where_none_is_whole_training_begins_anew_and_says_so(run: Path) -> None:
    for step, _ in checkpoints_of(run):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    found, said = resumed(run)
    assert found is None and said[0].endswith("so training begins anew") and "\n" not in said[0]


@pytest.mark.parametrize("step", [10**9, -1, 7, None, "8", 10**400])
def test_a_step_that_is_not_the_checkpoints_is_refused(step: Any, run: Path) -> None:
    path = run / "checkpoint-8" / "train_state.json"
    write_record(path, {**read_record(path), "global_step": step})
    assert resumed(run)[0] == "checkpoint-4"


def test_a_step_beyond_the_runs_end_is_refused(run: Path) -> None:
    far = run / "checkpoint-1000000000"
    (run / "checkpoint-8").rename(far)
    write_record(far / "train_state.json", {**read_record(far / "train_state.json"), "global_step": 10**9})
    assert resumed(run)[0] == "checkpoint-4"


@pytest.mark.parametrize(
    "change",
    [
        {"plan": 3},
        {"plan": [{"stage": 0}]},
        {"plan": [[]]},
        {"taid": {"odd": 1}},
        {"taid": 5},
        {"seconds": "x"},
        {"files": {"../../x": "0"}},
        {"files": []},
        {"files": {"optimizer.pt": None}},
    ],
    ids=str,
)
def test_a_record_of_another_shape_is_refused_though_its_seal_agrees(change: dict[str, Any], run: Path) -> None:
    path = run / "checkpoint-8" / "train_state.json"
    write_record(path, {**read_record(path), **change})
    assert resumed(run)[0] == "checkpoint-4"


def test_a_folder_that_is_no_checkpoint_is_left_alone(run: Path) -> None:
    for name in ("checkpoint-final", "checkpoint-", "checkpoint-08", "checkpoint-" + "9" * 200, "checkpoint-²"):
        (run / name).mkdir()
    assert resumed(run) == ("checkpoint-8", [])
    assert (run / "checkpoint-final").is_dir()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["a flipped bit", "cut", "empty", "missing"])
def test_a_checkpoint_of_before_without_digests_is_checked_as_far_as_it_can_be(
    name: str, damage: str, run: Path
) -> None:
    for step in (4, 8):
        path = run / f"checkpoint-{step}" / "train_state.json"
        older = {key: value for key, value in read_record(path).items() if key != "files"}
        path.unlink()
        (path.parent / "progress.json").write_text(json.dumps(older))
    assert last_whole_checkpoint(run, 45, print)
    damaged = run / "checkpoint-8" / name
    if name == "trainer_state.json" and damage == "a flipped bit":
        return  # it may be in a digit: nothing could tell
    DAMAGES[damage](damaged)
    assert resumed(run)[0] == "checkpoint-4"


def test_training_on_from_the_checkpoint_before_has_the_bits_of_an_uninterrupted_run(
    toy: Any, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = trained("taid")
    experiment, cache, prepared = toy("distill.save_steps=4")
    with stops_at(9):
        distill(experiment, "taid", 0, cache, prepared)
    folder = experiment.output_dir / "distill" / "taid" / "seed-0"
    DAMAGES["a flipped bit"](folder / "checkpoint-8" / "optimizer.pt")
    distill(experiment, "taid", 0, cache, prepared)
    warned = capsys.readouterr().err
    assert "optimizer.pt does not have the bytes that were written; so training goes on from checkpoint-4" in warned
    ours, theirs = (load_file(one / "last" / "model.safetensors") for one in (folder, quiet))
    for key, values in theirs.items():
        np.testing.assert_array_equal(ours[key], values, err_msg=key)


def test_a_state_whose_digests_agree_and_that_torch_cannot_load_is_refused_by_name(toy: Any) -> None:
    experiment, cache, prepared = toy("distill.save_steps=4")
    with stops_at(5):
        distill(experiment, "td", 0, cache, prepared)
    checkpoint = experiment.output_dir / "distill" / "td" / "seed-0" / "checkpoint-4"
    older = {key: value for key, value in read_record(checkpoint / "train_state.json").items() if key != "files"}
    (checkpoint / "train_state.json").write_text(json.dumps(older))
    # What opens as a ZIP archive and unpickles to a call, which torch's weights-only reader does not make.
    with zipfile.ZipFile(checkpoint / "optimizer.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Path, protocol=2))
        archive.writestr("archive/version", "3")
    with pytest.raises(ModelError, match="checkpoint-4 that training would go on from cannot be loaded"):
        distill(experiment, "td", 0, cache, prepared)

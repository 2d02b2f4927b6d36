"""What a step leaves is what the next one reads: each file's digest stands in its record, and damage is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.data.digests import sha256_of
from cache_builder.errors import CacheDamagedError
from cache_builder.models.loading import load_model, weights_fingerprint
from cache_builder.steps import read_record
from trainer.config import Experiment
from trainer.stages.crossfit import write_crossfit_losses
from trainer.stages.distill import distill
from trainer.stages.evaluate_run import evaluate_run
from trainer.stages.student_losses import write_student_losses

NOT_MODELS = ("README.md", "stage.json", "inputs.json")


def with_own(experiment: Any, *names: str) -> None:
    """Give a toy its own copy of what it shares with others."""
    for name in names:
        folder = experiment.output_dir / name
        shared = folder.resolve()
        folder.unlink()
        shutil.copytree(shared, folder)


def flip(path: Path) -> None:
    data = path.read_bytes()
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use
def test_every_file_of_what_trainings_leave_has_its_digest(toy: Any) -> None:
    experiment, cache, prepared = toy()
    base = (experiment.output_dir / "student" / "last").resolve()
    adapted = {**experiment.student.model_dump(), "model": str(base), "lora": {"r": 4}}
    experiment = Experiment.model_validate({**experiment.model_dump(), "student": adapted})
    student = distill(experiment, "sft", 0, cache, prepared)
    assert (student / "last" / "adapter_model.safetensors").is_file()
    for folder in (student, experiment.output_dir / "student", experiment.output_dir / "teacher"):
        recorded = read_record(folder / "stage.json")["files"]
        files = [path for path in folder.resolve().rglob("*") if path.is_file() and path.name not in NOT_MODELS]
        expected = {path.relative_to(folder.resolve()).as_posix(): sha256_of(path) for path in files}
        expected.pop("losses.safetensors", None)  # which has its own inside
        assert recorded == expected
    tokenizer = read_record(experiment.output_dir / "tokenizer" / "stage.json")["files"]
    assert "tokenizer.json" in tokenizer


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
def test_a_damaged_model_is_refused_by_its_files_name_by_whatever_reads_it(name: str, damage: str, toy: Any) -> None:
    experiment, cache, prepared = toy("distill.init='sft'")
    with_own(experiment, "student", "losses")
    best = experiment.output_dir / "student" / "best"
    DAMAGES[damage](best / name)
    if name == "config.json" and damage in ("missing", "a folder"):
        return  # then no model is there, and the message names the command that makes it
    for read in (
        lambda: write_student_losses(experiment, cache, 1),
        lambda: distill(experiment, "sft", 0, cache, prepared),
        lambda: evaluate_run(experiment, prepared, cache, Console(quiet=True)),
        lambda: load_model(experiment.student, 0, str(best)),
    ):
        with pytest.raises(CacheDamagedError, match=rf"best/{name} .*the model best is damaged: restore it, or remove"):
            read()


def test_a_damaged_teacher_is_refused_by_its_files_name(toy: Any) -> None:
    experiment, _, prepared = toy()
    with_own(experiment, "teacher")
    (name, location), *_ = teacher_checkpoints(experiment)
    elsewhere = experiment.model_copy(
        update={"cache": experiment.cache.model_copy(update={"path": str(experiment.output_dir / "cache-2")})}
    )
    flip(Path(location) / "model.safetensors")
    with pytest.raises(CacheDamagedError, match=rf"{name}/model\.safetensors does not have the bytes"):
        build_cache(elsewhere, prepared.train, prepared.tokenizer, teacher_checkpoints(experiment))


@pytest.mark.parametrize("content", ["", "[]", "null", '{"checkpoints": [1]}', "[" * 100_000])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_teachers_list_that_is_none_is_refused_by_name(content: str, recorded: bool, toy: Any) -> None:
    experiment, _, _ = toy()
    with_own(experiment, "teacher")
    if not recorded:  # it is written before the record
        (experiment.output_dir / "teacher" / "stage.json").unlink()
    (experiment.output_dir / "teacher" / "checkpoints.json").write_text(content)
    with pytest.raises(CacheDamagedError, match=r"checkpoints\.json (is damaged|does not have the bytes)"):
        teacher_checkpoints(experiment)


def test_a_teachers_list_means_the_folders_beside_it_wherever_the_command_is_given(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, _, _ = toy()
    expected = teacher_checkpoints(experiment)
    for name, _ in expected:
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert teacher_checkpoints(experiment) == expected


def test_models_of_before_have_no_digests_and_are_read(toy: Any) -> None:
    experiment, _, _ = toy()
    with_own(experiment, "student")
    folder = experiment.output_dir / "student"
    before = read_record(folder / "stage.json")
    del before["files"]
    (folder / "stage.json").write_text(json.dumps(before))
    flip(folder / "best" / "tokenizer.json")
    assert len(weights_fingerprint(str(folder / "best"), 0)) == 64


def test_a_damaged_evaluation_is_made_again_and_said(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, cache, prepared = toy()
    folder = experiment.output_dir / "evaluate" / "student_sft"

    def evaluate() -> str:
        evaluate_run(experiment, prepared, cache, Console(quiet=True))
        return capsys.readouterr().err

    evaluate()
    metrics = json.loads((folder / "metrics.json").read_text())
    timed = ("seconds", "tokens_per_second")
    assert evaluate() == ""
    for name in ("metrics.json", "predictions.jsonl", "inputs.json"):
        for damage in DAMAGES:
            if damage == "a folder" or (name, damage) == ("inputs.json", "missing"):
                continue
            DAMAGES[damage](folder / name)
            assert name in evaluate()
            again = json.loads((folder / "metrics.json").read_text())
            assert {**again, **dict.fromkeys(timed)} == {**metrics, **dict.fromkeys(timed)}
            assert evaluate() == ""


def test_halves_of_a_cross_fit_are_read_as_they_were_saved(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cache, prepared = toy("distill.aw_source='crossfit'", "distill.methods=['scd+aw']")

    def stop(*_: Any) -> np.ndarray:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr("trainer.stages.crossfit.losses_of", stop)
        with pytest.raises(InterruptedError):
            write_crossfit_losses(experiment, prepared, cache)
    flip(experiment.output_dir / "crossfit" / "student" / "half-0" / "best" / "model.safetensors")
    with pytest.raises(CacheDamagedError, match=r"half-0/best/model\.safetensors"):
        write_crossfit_losses(experiment, prepared, cache)

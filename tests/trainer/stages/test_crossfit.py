"""Cross-fitted losses: every sequence judged by models that never saw it, once, and used as the weights' source."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_builder.errors import MissingError
from trainer.stages import crossfit
from trainer.stages.crossfit import halves, needs_crossfit, read_aw_losses, write_crossfit_losses
from trainer.stages.distill import distill

CROSSFIT = "distill.aw_source='crossfit'"


def test_the_halves_hold_every_row_once_and_depend_on_the_seed_alone() -> None:
    one, other = halves(101, seed=3)
    assert sorted([*one, *other]) == list(range(101))
    np.testing.assert_array_equal(one, halves(101, seed=3)[0])
    assert set(one) != set(halves(101, seed=4)[0])


def test_every_sequence_is_judged_by_models_that_never_saw_it(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cache, prepared = toy(CROSSFIT, "distill.methods=['scd+aw']")
    assert needs_crossfit(experiment)
    with pytest.raises(MissingError, match="footsteps losses"):
        read_aw_losses(experiment, cache)
    trained: dict[Path, set[int]] = {}
    judged: list[tuple[str, set[int]]] = []
    fine_tune, load, losses_of = crossfit.fine_tune, crossfit.load_on_device, crossfit.losses_of
    loaded: list[Path] = []

    def recording_fine_tune(experiment: Any, prepared: Any, role: Any, folder: Path, rows: Any) -> Path:
        trained[folder] = set(rows)
        return fine_tune(experiment, prepared, role, folder, rows)

    def recording_load(config: Any, seed: int) -> Any:
        loaded.append(Path(config.model))
        return load(config, seed)

    def recording_losses(model: Any, corpus: Any, *rest: Any) -> np.ndarray:
        assert not trained[loaded[-1].parent] & set(corpus.rows)
        judged.append((loaded[-1].parent.parent.name, set(corpus.rows)))
        return losses_of(model, corpus, *rest)

    monkeypatch.setattr(crossfit, "fine_tune", recording_fine_tune)
    monkeypatch.setattr(crossfit, "load_on_device", recording_load)
    monkeypatch.setattr(crossfit, "losses_of", recording_losses)
    folder = write_crossfit_losses(experiment, prepared, cache)
    everything = set(range(len(cache.corpus)))
    assert len(judged) == 2 * (1 + len(cache.checkpoints))
    for pair in zip(judged[::2], judged[1::2], strict=True):
        assert pair[0][1] | pair[1][1] == everything
    losses = read_aw_losses(experiment, cache)
    assert (losses.student_N > 0).all()
    first, last = (losses.teacher(name) for name in (cache.checkpoints[0], cache.checkpoints[-1]))
    assert last.mean() < first.mean()  # a checkpoint's own, not one teacher's for all
    assert not list(folder.rglob("half-*/*/model.safetensors"))

    judged.clear()
    write_crossfit_losses(experiment, prepared, cache)
    assert not judged, "what is complete is skipped"
    crossfitted = distill(experiment, "scd+aw", 0, cache, prepared)
    plain = distill(*toy("distill.methods=['scd+aw']")[:1], "scd+aw", 0, cache, prepared)
    means = [json.loads((each / "log.json").read_text())[0]["aw_mean"] for each in (crossfitted, plain)]
    expected = losses.student_N / (losses.student_N + losses.teacher(first_choice(crossfitted)))
    assert means[0] == pytest.approx(expected.mean())
    assert means[0] != means[1]


def first_choice(folder: Path) -> str:
    return json.loads((folder / "plan.json").read_text())["stages"][0]["choice"]


def test_a_teacher_of_finished_checkpoints_keeps_the_caches_losses_and_a_warning_says_so(
    toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, cache, prepared = toy(CROSSFIT)
    folders = [str(experiment.output_dir / "teacher" / name) for name in cache.checkpoints]
    given = experiment.model_copy(update={"teacher": experiment.teacher.model_copy(update={"checkpoints": folders})})
    write_crossfit_losses(given, prepared, cache)
    assert "lean to the teacher" in capsys.readouterr().err
    name = cache.checkpoints[0]
    np.testing.assert_array_equal(read_aw_losses(given, cache).teacher(name), cache.losses(name))

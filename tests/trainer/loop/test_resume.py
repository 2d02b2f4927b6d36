"""A run that was stopped goes on to the bits of one that was not."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cache_builder.errors import ModelError
from tests.support.interruption import stops_at
from tests.support.students import assert_same_bits, weights
from tests.support.toys import DROPOUT
from trainer.stages.distill import DistillTrainer, distill


@pytest.mark.parametrize(("method", "stopped_at"), [("scd+aw", 3), ("scd+aw", 14), ("scd+aw", 20), ("taid", 20)])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    toy: Any, trained: Any, method: str, stopped_at: int
) -> None:
    stopped = toy("distill.save_steps=6")
    with stops_at(stopped_at):
        distill(stopped[0], method, 0, *stopped[1:])
    assert_same_bits(trained(method), distill(stopped[0], method, 0, *stopped[1:]))


def test_dropout_is_on_in_the_student_so_resuming_has_something_to_restore(toy: Any, trained: Any) -> None:
    folder = trained("td")
    assert json.loads((folder / "last" / "config.json").read_text())["attention_dropout"] == DROPOUT
    with_dropout = weights(folder)
    other = toy("distill.seeds=[5]")
    assert any(
        (with_dropout[name] != values).any() for name, values in weights(distill(other[0], "td", 5, *other[1:])).items()
    )


def test_an_unfinished_checkpoint_is_never_loaded(toy: Any, trained: Any) -> None:
    experiment, cache, prepared = toy("distill.save_steps=4")
    with stops_at(9):
        distill(experiment, "td", 0, cache, prepared)
    folder = experiment.output_dir / "distill" / "td" / "seed-0"
    newest = folder / "checkpoint-8"
    (newest / "train_state.json").unlink()
    (newest / "model.safetensors").write_bytes(b"half")
    assert_same_bits(trained("td"), distill(experiment, "td", 0, cache, prepared))


def test_a_resume_state_that_lacks_tensors_or_has_others_is_refused_by_their_names(toy: Any) -> None:
    experiment, cache, prepared = toy("distill.save_steps=4")
    with stops_at(5):
        distill(experiment, "td", 0, cache, prepared)
    checkpoint = experiment.output_dir / "distill" / "td" / "seed-0" / "checkpoint-4"
    state = json.loads((checkpoint / "train_state.json").read_text())
    older = {key: value for key, value in state.items() if key not in ("files", "record_sha256")}
    (checkpoint / "train_state.json").write_text(json.dumps(older))  # with digests, it would not be loaded at all
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    lacking = {name: values for name, values in tensors.items() if name != "model.norm.weight"}
    for wrong, message in (
        (lacking, r"1 are missing \(model.norm.weight\)"),
        ({**tensors, "model.odd": np.zeros(2, np.float32)}, r"1 are not the model's \(model.odd\)"),
    ):
        save_file(wrong, path, {"format": "pt"})
        with pytest.raises(ModelError, match=message):
            distill(experiment, "td", 0, cache, prepared)


def test_a_plan_is_reloaded_and_never_chosen_again(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cache, prepared = toy("distill.save_steps=4")
    with stops_at(9):
        distill(experiment, "scd", 0, cache, prepared)
    chosen: list[int] = []
    choose = DistillTrainer.choose_teacher

    def counting(self: DistillTrainer, stage: int) -> Any:
        chosen.append(stage)
        return choose(self, stage)

    monkeypatch.setattr(DistillTrainer, "choose_teacher", counting)
    distill(experiment, "scd", 0, cache, prepared)
    assert chosen == [1, 2]

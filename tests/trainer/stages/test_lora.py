"""LoRA students and teachers: adapters are trained and resumed, saved as they are or merged, load like any model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.cache.reader import open_cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, ModelError
from cache_builder.models.loading import load_model
from tests.support.interruption import Stop, stops_at
from trainer.config import Experiment
from trainer.stages.distill import distill
from trainer.stages.sft import sft_student, sft_teacher

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use


def adapted(toy: Any, *overrides: str, **lora: Any) -> Any:
    """The toy, its student an SFT model with adapters."""
    experiment, cache, prepared = toy("distill.save_steps=6", *overrides)
    base = (experiment.output_dir / "student" / "last").resolve()
    student = {**experiment.student.model_dump(), "model": str(base), "lora": {"r": 4, "lora_dropout": 0.1, **lora}}
    return Experiment.model_validate({**experiment.model_dump(), "student": student}), cache, prepared


def logits(experiment: Experiment, prepared: Prepared, folder: Path) -> torch.Tensor:
    model = load_model(experiment.student, 0, str(folder))
    tokens, _ = prepared.train.sequence(0)
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits


def test_adapters_are_trained_saved_and_resumed_bit_for_bit(toy: Any) -> None:
    quiet = adapted(toy)
    folder = distill(quiet[0], "scd", 0, *quiet[1:])
    saved = load_file(folder / "last" / "adapter_model.safetensors")
    assert saved and all("lora_" in name for name in saved)
    assert not (folder / "last" / "model.safetensors").exists()
    stopped = adapted(toy)
    with stops_at(20):
        distill(stopped[0], "scd", 0, *stopped[1:])
    resumed = distill(stopped[0], "scd", 0, *stopped[1:])
    for name, values in load_file(resumed / "last" / "adapter_model.safetensors").items():
        np.testing.assert_array_equal(values, saved[name], err_msg=name)
    learned = logits(quiet[0], quiet[2], folder / "last") - logits(quiet[0], quiet[2], Path(quiet[0].student.model))
    assert learned.abs().max() > 0.01


def test_merged_students_are_plain_folders_that_say_what_the_adapters_said(toy: Any) -> None:
    folders = []
    for merge in (False, True):
        experiment, cache, prepared = adapted(toy, merge=merge)
        folders.append(distill(experiment, "td", 0, cache, prepared))
    for which in ("best", "last"):
        assert (folders[1] / which / "model.safetensors").is_file()
        assert (folders[1] / which / "tokenizer.json").is_file()
        assert not list((folders[1] / which).glob("adapter_*"))
        ours, theirs = (logits(experiment, prepared, folder / which) for folder in folders)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_kill_while_adapters_are_replaced_by_the_merged_model_loses_neither(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, cache, prepared = adapted(toy, merge=True)

    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("trainer.stages.distill.merge_saved", stop)
        with pytest.raises(Stop):
            distill(experiment, "td", 0, cache, prepared)
    (folder,) = (experiment.output_dir / "distill").glob("td*/seed-0")
    best = folder / "best"
    said = logits(experiment, prepared, best)
    best.rename(folder / "best.replaced.part")  # as a kill between the two renames leaves it
    (folder / "best.part").mkdir()
    distill(experiment, "td", 0, cache, prepared)
    assert (best / "model.safetensors").is_file() and not list(best.glob("adapter_*"))
    torch.testing.assert_close(logits(experiment, prepared, best), said, rtol=0, atol=1e-4)
    assert not list(folder.glob("*.part"))


def test_distillation_may_start_from_the_adapters_of_the_student_sft(toy: Any) -> None:
    experiment, cache, prepared = adapted(toy, "distill.init='sft'")
    (experiment.output_dir / "student").unlink()
    start = sft_student(experiment, prepared) / "best" / "adapter_model.safetensors"
    folder = distill(experiment, "td", 0, cache, prepared)
    inputs = json.loads((folder / "inputs.json").read_text())
    assert inputs["base"] != inputs["weights"]
    before, after = load_file(start), load_file(folder / "last" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    largest = max(np.abs(after[name] - before[name]).max() for name in before)
    assert 0 < largest < 0.5


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # peft's, before our refusal
def test_adapters_on_the_head_are_refused_by_name(toy: Any) -> None:
    """Pitfall 13."""
    experiment, cache, prepared = adapted(toy, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ModelError, match="lm_head"):
        distill(experiment, "td", 0, cache, prepared)


def test_adapters_for_a_model_without_weights_are_refused(toy: Any) -> None:
    experiment, cache, prepared = toy("student.lora={r=4}")
    with pytest.raises(ModelError, match="no weights"):
        distill(experiment, "td", 0, cache, prepared)


def test_a_teacher_may_be_fine_tuned_by_adapters_whose_base_the_builder_loads_once(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, _, prepared = toy()
    base = (experiment.output_dir / "teacher" / "last").resolve()
    for name in ("teacher", "cache"):
        (experiment.output_dir / name).unlink()
    teacher = {**experiment.teacher.model_dump(), "model": str(base), "lora": {"r": 4}}
    experiment = Experiment.model_validate({**experiment.model_dump(), "teacher": teacher})
    sft_teacher(experiment, prepared)
    checkpoints = teacher_checkpoints(experiment)
    assert len(checkpoints) == 3
    assert all((Path(folder) / "adapter_model.safetensors").is_file() for _, folder in checkpoints)
    assert not any((Path(folder) / "model.safetensors").exists() for _, folder in checkpoints)
    loaded: list[str] = []

    def counting_load(config: Any, seed: int, location: str) -> Any:
        loaded.append(location)
        return load_model(config, seed, location)

    monkeypatch.setattr("cache_builder.capture.teacher.load_model", counting_load)
    build_cache(experiment, prepared.train, prepared.tokenizer, checkpoints, prepared.validation)
    assert loaded == [str(base)]
    cache = open_cache(experiment.cache_url)
    losses = [cache.losses(name).sum() for name in cache.checkpoints]
    assert losses[0] > losses[-1] and len(set(losses)) == 3
    tokens, completion = prepared.train.sequence(0)
    for name, folder in checkpoints:
        expected = logits(experiment, prepared, Path(folder))[0, :-1, : len(prepared.tokenizer)].log_softmax(1)
        gold = expected.gather(1, torch.from_numpy(tokens[1:].astype(np.int64))[:, None])[:, 0]
        np.testing.assert_allclose(
            cache.read(name, [0]).gold, gold[torch.from_numpy(completion[1:].copy())], rtol=0, atol=1e-5
        )


def test_a_teacher_s_checkpoints_are_not_merged(toy: Any) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.lora\.merge: only students are merged"):
        toy("teacher.lora={merge=true}")

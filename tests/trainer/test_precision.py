"""Trained weights are float32: what `dtype` says, they are computed in."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from cache_builder.config import ModelConfig
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheMismatchError, ConfigError, ModelError
from cache_builder.models.loading import load_model
from tests.support.toys import load_toy, write_toy
from trainer.config import LoraSection, SftConfig, StudentConfig
from trainer.precision import check_precision, for_training
from trainer.run import run_experiment
from trainer.stages.distill import distill
from trainer.stages.lora import load_student
from trainer.stages.sft import sft_student, sft_teacher

HALF = "student.dtype='bfloat16'"


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("half"), 24).parent


def fine_tuned(folder: Path, name: str, *overrides: str) -> dict[str, np.ndarray]:
    experiment = load_toy(folder / "experiment.toml", f"run.output_dir='{folder / name}'", *overrides)
    return weights(sft_student(experiment, Prepared(experiment)) / "last")


def test_a_half_precision_student_trains_float32_weights_under_autocast(folder: Path) -> None:
    half = fine_tuned(folder, "half", HALF)
    named = fine_tuned(folder, "named", "sft.student.bf16=true")
    assert all(values.dtype == np.float32 for values in half.values())
    assert half.keys() == named.keys() and all((half[name] == named[name]).all() for name in half)


def test_small_updates_are_not_rounded_away(folder: Path) -> None:
    """At a rate of 1e-6 nearly every weight moves, by less than what most of them would need to be another bfloat16."""
    after = fine_tuned(folder, "slow", HALF, "sft.student.learning_rate=1e-6", "sft.student.num_train_epochs=1")
    before = load_model(ModelConfig(model=str(folder / "student-init")), 0).state_dict()
    moved = {name: values != before[name].numpy() for name, values in after.items()}
    share = np.concatenate([each.ravel() for each in moved.values()]).mean()
    rounded = [torch.from_numpy(after[name]).bfloat16() != before[name].bfloat16() for name in after]
    assert share > 0.9 and torch.cat([each.ravel() for each in rounded]).float().mean() < share / 5


def test_a_half_precision_teacher_is_fine_tuned_in_float32(folder: Path) -> None:
    options = ("teacher.dtype='bfloat16'", "teacher.checkpoints=1", "sft.teacher.num_train_epochs=1")
    experiment = load_toy(folder / "experiment.toml", f"run.output_dir='{folder / 'teacher'}'", *options)
    (checkpoint,) = sft_teacher(experiment, Prepared(experiment)).glob("checkpoint-*")
    assert all(values.dtype == np.float32 for values in weights(checkpoint).values())
    read = load_model(experiment.teacher, 0, str(checkpoint))
    assert read.dtype == torch.bfloat16, "the cache's builder still reads it as asked"


def test_a_half_precision_student_is_distilled_in_float32(toy: Any) -> None:
    experiment, cache, prepared = toy(HALF)
    folder = distill(experiment, "td", 0, cache, prepared)
    assert all(values.dtype == np.float32 for values in weights(folder / "last").values())
    assert json.loads((folder / "inputs.json").read_text())["training"]["bf16"] is True


def test_what_was_trained_in_half_precision_is_refused_by_name(folder: Path) -> None:
    experiment = load_toy(folder / "experiment.toml", f"run.output_dir='{folder / 'old'}'", HALF)
    prepared = Prepared(experiment)
    inputs = sft_student(experiment, prepared) / "inputs.json"
    recorded = json.loads(inputs.read_text())
    inputs.write_text(json.dumps({**recorded, "model": {**recorded["model"], "dtype": "bfloat16"}}))
    with pytest.raises(
        CacheMismatchError, match=r"student was made from other settings.*\n  model.dtype: it has .*bfloat16"
    ):
        sft_student(experiment, prepared)


def test_the_autocast_that_a_section_gives_stands() -> None:
    model = ModelConfig(model="m", dtype="bfloat16")
    for given in ({"bf16": False}, {"fp16": False}):
        config = SftConfig.model_validate(given)
        trained, same = for_training(model, config)
        assert trained.dtype == "float32" and same == config


def test_float16_without_a_gpu_is_refused_before_anything_is_trained_and_with_one_it_has_a_scaler(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer would name it in its settings, and compute in float32."""
    asked = ["student.dtype='float16'", "teacher.dtype='float16'", "sft.student.fp16=true", "distill.fp16=true"]
    for override in asked:
        output = folder / "never"
        experiment = load_toy(folder / "experiment.toml", f"run.output_dir='{output}'", override)
        with monkeypatch.context() as patch:
            patch.setattr("torch.accelerator.is_available", lambda: False)
            with pytest.raises(ConfigError, match=r"-init is to be trained in float16 .* needs a GPU"):
                run_experiment(experiment, Console(quiet=True))
        assert not (output / "teacher").exists() and not (output / "student").exists()
        with monkeypatch.context() as patch:
            patch.setattr("torch.accelerator.is_available", lambda: True)
            check_precision(experiment)
    model = ModelConfig(model="m", dtype="float16")
    with monkeypatch.context() as patch:
        patch.setattr("torch.accelerator.is_available", lambda: True)
        assert for_training(model, SftConfig())[1].other_arguments == {"fp16": True}
        with pytest.raises(ConfigError, match="m is to be trained in float16"):
            for_training(model, SftConfig.model_validate({"use_cpu": True}))
        adapted = StudentConfig(model="m", dtype="float16", lora=LoraSection(r=2))
        assert for_training(adapted, SftConfig()) == (adapted, SftConfig.model_validate({"fp16": True}))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_float32_on_a_half_precision_base(folder: Path, tmp_path: Path) -> None:
    load_model(ModelConfig(model=str(folder / "student-init")), 0).save_pretrained(tmp_path / "base")
    config = StudentConfig(model=str(tmp_path / "base"), dtype="bfloat16", lora=LoraSection(r=2))
    sft = SftConfig()
    assert for_training(config, sft) == (config, sft)
    model = load_student(config, 0)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_not_trained_but_take_adapters(make_model: Any, tmp_path: Path) -> None:
    make_model(hidden_size=64).save_pretrained(tmp_path / "whole")  # bitsandbytes wants multiples of 32
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=four_bits)
    model.save_pretrained(tmp_path / "quantised")
    config = StudentConfig(model=str(tmp_path / "quantised"))
    with pytest.raises(ModelError, match=r"quantised' is quantised \(bitsandbytes 4bit, float32\).*cannot be trained"):
        load_student(config, 0)
    adapted = load_student(config.model_copy(update={"lora": LoraSection(r=2)}), 0)
    assert {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad} == {torch.float32}

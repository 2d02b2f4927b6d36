"""A student is made out of a larger model's parts: as the source has them, told with what it costs, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from rich.console import Console
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM

from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheDamagedError, CacheMismatchError, ConfigError, MissingError, ModelError
from tests.support.shrinkable import SOURCE_SIZES, save_source
from tests.support.toys import load_toy, write_toy
from tests.trainer.stages.test_saved_models import check_saved
from trainer.config import Experiment
from trainer.stages.sft import sft_student
from trainer.stages.shrink import MODEL, RECORD, _Sample, shrink_student, sizes_table

Make = Callable[..., tuple[Experiment, Prepared]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Give the toy's experiment, whose student is to be shrunk out of a model of five layers."""
    config, source = write_toy(tmp_path, examples=60), save_source(tmp_path / "source")

    def experiment(*overrides: str) -> tuple[Experiment, Prepared]:
        made = load_toy(config, f"student.model='{source}'", "shrink.layers=3", *overrides)
        return made, Prepared(made)

    return experiment


def tensors(folder: Path | str) -> dict[str, torch.Tensor]:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder)
    return dict(model.state_dict())


def loss_in_float64(folder: Path | str, prepared: Prepared) -> float:
    """Mean loss of every validation position, each sequence alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    corpus, total, positions = prepared.validation, 0.0, 0
    assert corpus is not None
    for row in range(len(corpus)):
        ids, completion = corpus.sequence(row)
        with torch.no_grad():
            logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :, : len(prepared.tokenizer)]
        logp = torch.log_softmax(logits, dim=-1).numpy()
        for place in range(1, len(ids)):
            if completion[place]:
                total, positions = total - logp[place - 1, ids[place]], positions + 1
    return total / positions


@pytest.mark.parametrize("rule", ["ends", "influence", "loss"])
def test_what_is_kept_is_the_sources_and_what_it_costs_is_told(make: Make, rule: str) -> None:
    experiment, prepared = make(f"shrink.by='{rule}'")
    result = shrink_student(experiment, prepared)
    folder = experiment.output_dir / "shrunk" / MODEL
    ours, theirs = tensors(folder), tensors(experiment.student.model)
    for number, layer in enumerate(result["layers"]):
        prefix = f"model.layers.{number}."
        for name in (name for name in ours if name.startswith(prefix)):
            assert torch.equal(ours[name], theirs[name.replace(prefix, f"model.layers.{layer}.")])
    assert result["source"]["loss"] == pytest.approx(loss_in_float64(experiment.student.model, prepared), rel=1e-5)
    assert result["student"]["loss"] == pytest.approx(loss_in_float64(folder, prepared), rel=1e-5)
    assert (result["source"]["layers"], result["student"]["layers"]) == (5, 3)
    assert result["student"]["parameters"] == sum(parameter.numel() for parameter in ours.values())
    check_saved(folder, prepared.tokenizer)
    record = json.loads((folder / RECORD).read_text())
    assert record["source"] == experiment.student.model and len(record["source_weights"]) == 64
    assert (record["layers"], record["shrink"]["by"]) == (result["layers"], rule)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(sizes_table(result))
    assert f"{result['student']['loss']:.3f}" in captured.get() and "held-out" in captured.get()


def test_influence_and_loss_measure_what_their_names_say(make: Make) -> None:
    influence = shrink_student(*make("shrink.by='influence'"))
    kept = sorted(np.argsort(influence["scores"]["influence"])[-3:].tolist())
    assert influence["layers"] == kept
    loss = shrink_student(*make("shrink.by='loss'", "run.output_dir='{}'".format(make()[0].output_dir / "loss")))
    removed = [step["layer"] for step in loss["scores"]["removed"]]
    assert sorted([*removed, *loss["layers"]]) == list(range(5)) and len(removed) == 2


def test_narrower_layers_keep_their_most_active_parts(make: Make) -> None:
    experiment, prepared = make("shrink.intermediate_size=10", "shrink.key_value_heads=1")
    result = shrink_student(experiment, prepared)
    sizes = result["student"]
    assert (sizes["intermediate_size"], sizes["attention_heads"], sizes["key_value_heads"]) == (10, 2, 1)
    ours, theirs = tensors(experiment.output_dir / "shrunk" / MODEL), tensors(experiment.student.model)
    for number, layer in enumerate(result["layers"]):
        name = "model.layers.{}.mlp.gate_proj.weight"
        rows = {tuple(row) for row in theirs[name.format(layer)].tolist()}
        kept = [tuple(row) for row in ours[name.format(number)].tolist()]
        assert len(kept) == 10 and set(kept) < rows
        (group,) = result["key_value_heads"][number]
        name = "model.layers.{}.self_attn.k_proj.weight"
        assert torch.equal(ours[name.format(number)], theirs[name.format(layer)][group * 6 : group * 6 + 6])


def test_a_finished_student_is_kept_and_other_settings_are_refused_by_name(make: Make) -> None:
    first = shrink_student(*make())
    assert shrink_student(*make()) == first
    for field, value in (("layers", "2"), ("by", "'ends'"), ("sample_sequences", "3")):
        with pytest.raises(CacheMismatchError, match=rf"shrink\.{field}: it has .*, now {value}"):
            shrink_student(*make(f"shrink.{field}={value}"))
    with pytest.raises(CacheMismatchError, match=r"shrink\.layers: it has 3, now 2"):
        sft_student(*make("shrink.layers=2"))


def test_a_killed_one_measures_no_loss_twice(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    stop_after = [0]
    loss = _Sample._loss

    def counted(self: _Sample, *arguments: Any) -> float:
        if len(measured) == stop_after[0]:
            raise KeyboardInterrupt
        measured.append(self.model.config.num_hidden_layers)
        return loss(self, *arguments)

    monkeypatch.setattr(_Sample, "_loss", counted)
    for stop_at in (0, 3, 7, 10, 100):
        stop_after[:] = [stop_at]
        try:
            interrupted = shrink_student(*make("shrink.by='loss'"))
        except KeyboardInterrupt:
            continue
    # without each of 5, then of 4; after the last kill the sizes' two losses are all that is left, one of them again
    assert measured == [4] * 5 + [3] * 4 + [5, 5, 5]
    elsewhere = "run.output_dir='{}'".format(make()[0].output_dir / "whole")
    monkeypatch.setattr(_Sample, "_loss", loss)
    whole = shrink_student(*make("shrink.by='loss'", elsewhere))
    assert (whole["layers"], whole["scores"]) == (interrupted["layers"], interrupted["scores"])


def test_a_shrunk_model_that_is_not_as_it_was_saved_is_refused(make: Make) -> None:
    experiment, prepared = make()
    shrink_student(experiment, prepared)
    weights = experiment.output_dir / "shrunk" / MODEL / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CacheDamagedError, match="shrunk"):
        sft_student(experiment, prepared)


def test_training_asks_for_the_shrunk_student_first(make: Make) -> None:
    with pytest.raises(MissingError, match="footsteps shrink CONFIG"):
        sft_student(*make())


def test_without_validation_data_the_loss_is_said_to_be_of_the_training_data(make: Make) -> None:
    result = shrink_student(*make("data.validation_fraction=0"))
    assert result["held_out"] == "the training data"


def test_a_config_without_the_section_is_refused(make: Make) -> None:
    experiment, prepared = make()
    with pytest.raises(ConfigError, match=r"no \[shrink\]; give it, or --set shrink.layers"):
        shrink_student(experiment.model_copy(update={"shrink": None}), prepared)


def test_an_unknown_rule_is_refused_with_those_there_are(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"shrink.by: Input should be 'ends', 'influence' or 'loss', got 'middle'"):
        make("shrink.by='middle'")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("shrink.layers=6",), "shrink.layers is 6, but model .* has only 5"),
        (("shrink.intermediate_size=41",), "shrink.intermediate_size is 41, but"),
        (("shrink.key_value_heads=3",), "shrink.key_value_heads is 3, but"),
    ],
)
def test_more_than_the_source_has_is_refused(make: Make, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shrink_student(*make(*overrides))
    shrink_student(*make())  # what was refused has left nothing that the mended settings would be held against


def test_a_source_without_weights_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"student-init' has no weights.*leave \[shrink\] out"):
        shrink_student(*make(f"student.model='{tmp_path / 'student-init'}'"))


def test_adapters_are_refused(make: Make, tmp_path: Path) -> None:
    LoraConfig(base_model_name_or_path=str(tmp_path / "source")).save_pretrained(tmp_path / "lora")
    with pytest.raises(ModelError, match="lora' holds adapters, which cannot be cut"):
        shrink_student(*make(f"student.model='{tmp_path / 'lora'}'"))


def test_another_family_is_refused(make: Make, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=328, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match="'gpt2', which cannot be shrunk; expected one of llama"):
        shrink_student(*make(f"student.model='{tmp_path / 'gpt2'}'"))


def test_a_source_that_cannot_read_every_token_is_refused(make: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=8, **SOURCE_SIZES)).save_pretrained(tmp_path / "few")
    with pytest.raises(ModelError, match="300 vocabulary rows"):
        shrink_student(*make(f"student.model='{tmp_path / 'few'}'"))

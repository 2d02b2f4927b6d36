"""A packed sequence is what it is alone, in targets, losses and gradients; a family that would mix them is refused."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from cache_builder.capture.capture import begin_capture
from cache_builder.config import CacheExperiment
from cache_builder.data.batching import Batch, collate
from cache_builder.data.packing import collate_packed
from cache_builder.errors import ModelError
from cache_builder.models.lm_head import hidden_states_at
from cache_builder.models.packed import packing_of
from cache_builder.targets.sparse import ARRAYS
from cache_builder.targets.tensors import to_torch
from tests.support.batches_of_noise import VOCABULARY, make_sequences, uniforms
from tests.support.tiny_families import RECIPES, _small
from trainer.loss.fused import distillation_loss

LENGTHS = (9, 24, 5, 13, 24, 3, 60, 17)
SEPARATE = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "gpt2": {},
    "gpt_neox": {},
    "qwen3": {},
    "phi3": {},
    "olmo2": {},
    "mixtral": {},
    "granite": {},
}
MIXING = ("mamba", "recurrent_gemma", "qwen3_next", "jamba", "bailing_hybrid", "rwkv", "bloom", "mpt", "opt", "bert")


def made(family: str, **options: Any) -> Any:
    """A tiny model with weights that are far from zero, so that what is mixed shows."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        config = _small(type(AutoConfig.for_model(family)), RECIPES[0])
        for name, value in options.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
    return model


def both(seed: int = 0) -> tuple[Batch, Batch]:
    sequences = make_sequences(seed, LENGTHS)
    padded, packed = collate(sequences, pad_id=1), collate_packed(sequences, 1, "rows")
    assert packed["input_ids"].shape[0] < len(LENGTHS)
    return padded, packed


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", SEPARATE)
def test_targets_of_packed_sequences_are_those_of_padded_ones(family: str, attention: str) -> None:
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("transformers has no sdpa for it")
    model = made(family, _attn_implementation=attention, **SEPARATE[family])
    assert packing_of(model, "cache.packing") == "rows"
    padded, packed = both()
    options: dict[str, Any] = {"top_k": 8, "top_p": 1.0, "uniforms_MS": uniforms(padded)}
    theirs, ours = (begin_capture(model, batch, VOCABULARY, **options).arrived() for batch in (padded, packed))
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_loss_and_every_gradient_of_packed_sequences_are_those_of_padded_ones(family: str) -> None:
    model = made(family, **SEPARATE[family]).double()
    padded, packed = both()
    said = begin_capture(model, padded, VOCABULARY, top_k=8, top_p=1.0, uniforms_MS=uniforms(padded)).arrived()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)  # a student that is not its own teacher
    found = []
    for batch in (padded, packed):
        model.zero_grad()
        hidden_MD, head = hidden_states_at(model, batch, VOCABULARY)
        share_M = torch.full((len(batch["label_M"]),), 0.5 / len(batch["label_M"]), dtype=torch.float64)
        loss = distillation_loss(hidden_MD, head, to_torch(said), batch["label_M"], share_M, share_M).loss
        loss.backward()
        found.append((loss.detach(), {name: value.grad for name, value in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-12)
    for name, gradient in found[0][1].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("family", MIXING)
def test_a_family_that_mixes_packed_sequences_is_refused_by_name(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModelError, match=rf"model_type '{family}'.*set cache\.packing = false"):
            packing_of(made(family), "cache.packing")


def test_a_kernel_that_loses_the_borders_is_refused(
    make_model: Callable[..., LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM .* mixes packed sequences: .* distill\.packing = false"):
        packing_of(make_model(), "distill.packing")


def test_the_check_leaves_the_model_as_it_was(make_model: Callable[..., LlamaForCausalLM]) -> None:
    model = make_model().train()
    packing_of(model, "distill.packing")
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_packing_is_refused_for_an_engine_that_runs_no_layers() -> None:

    teacher = {"model": "folder", "engine": "hidden-states", "hidden_states": "states"}
    with pytest.raises(ValidationError, match=r"`cache\.packing` is for layers"):
        CacheExperiment.model_validate(
            {"run": {"output_dir": "runs"}, "data": {}, "teacher": teacher, "cache": {"packing": True}}
        )

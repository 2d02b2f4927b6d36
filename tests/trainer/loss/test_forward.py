"""The loss inside a model's forward: what it refuses at the first step, and what it leaves alone."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from cache_builder.errors import ModelError
from tests.support.batches_of_noise import VOCABULARY, make_batch
from tests.support.odd_families import OddOnRealTokens
from trainer.loss.forward import Objective, attach_objective


def objective(positions: int) -> Objective:
    nothing = torch.zeros(positions)
    return Objective(None, nothing, nothing + 1 / positions)


def test_the_first_step_refuses_a_family_whose_logits_are_odd_on_real_tokens_only(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    model, batch = OddOnRealTokens(make_model().config).train(), make_batch()
    attach_objective(model, VOCABULARY)
    with pytest.raises(ModelError, match=r"OddOnRealTokens.*not supported"):
        model(**batch, objective=objective(len(batch["label_M"])))


def test_the_first_step_s_check_leaves_mode_gradients_and_random_numbers_alone(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    batch, losses = make_batch(), []
    for _ in range(2):
        model = make_model(attention_dropout=0.2).train()
        attach_objective(model, VOCABULARY)
        for _ in range(2):
            torch.manual_seed(3)
            output = model(**batch, objective=objective(len(batch["label_M"])))
            losses.append(output.loss.item())
            assert model.training and all(module.training for module in model.modules())
    assert len(set(losses)) == 1
    assert all(parameter.grad is None for parameter in model.parameters())

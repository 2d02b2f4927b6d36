"""Every causal LM that transformers can build tiny is captured as it speaks itself, or refused by name."""

import os
import warnings

import pytest
import torch

from cache_builder.errors import ModelError
from cache_builder.models.lm_head import hidden_states_at, project, verify_head
from tests.support.batches_of_noise import VOCABULARY, make_batch
from tests.support.tiny_families import tiny_models

LEAST = 130
"""Families that must be built for the sweep to mean anything."""


@pytest.mark.slow
@pytest.mark.skipif("FOOTSTEPS_STORM" not in os.environ, reason="two minutes; FOOTSTEPS_STORM=1 runs it")
@torch.no_grad()
def test_every_family_is_reproduced_or_refused_by_name() -> None:
    batch, reproduced, refused = make_batch(), [], []
    for family, model in tiny_models():
        try:
            verify_head(model)
            verify_head(model, batch)
            hidden, head = hidden_states_at(model, batch, VOCABULARY)
        except ModelError as error:
            assert type(model).__name__ in str(error)
            refused.append(family)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        theirs = own.flatten(0, 1)[batch["hidden_index_M"], :VOCABULARY]
        error = (project(hidden, head) - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-3, f"{family}: {error:.3g}"
        reproduced.append(family)
    print(f"reproduced: {len(reproduced)}; refused: {', '.join(refused)}")
    assert len(reproduced) >= LEAST
    assert {"llama", "gemma2", "cohere", "granite", "hyperclovax", "qwen3_next", "mamba"} <= set(reproduced)

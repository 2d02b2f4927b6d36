"""May a model be given packed batches? It must say of each sequence what it says of it alone.

    random sequences ─┬─▶ one at a time ──────────────┬─▶ hidden states that differ: refused by name
                      └─▶ packed, as batches will be ─┘

No list of families: recurrent ones carry a state over, some count positions by a mask of their own, some have a kernel
that knows no borders; each shows here.
"""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_builder.data.batching import Batch, collate
from cache_builder.data.packing import Packing, collate_packed
from cache_builder.errors import ModelError
from cache_builder.models.lm_head import hidden_states_at

_LENGTHS = 40, 24, 16, 11, 9, 3
"""Of the probe's sequences: rows of several, the longest first, and one that ends in padding."""
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05
"""Of a hidden state's length. Matmuls of other shapes round otherwise, in half precision by a hundredth after many
layers; a float64 model computes rotations and softmax in float32."""


def packing_of(model: PreTrainedModel, setting: str) -> Packing:
    """Return the way in which a model's attention takes packed sequences, checked on a few of them.

    Args:
        setting: the one that asks for packing, for the message.

    Raises:
        ModelError: it says of packed sequences something else than of each alone, or cannot be given them.
    """
    packing: Packing = "one row" if "flash" in str(model.config._attn_implementation) else "rows"
    name = f"{type(model).__name__} (model_type {model.config.model_type!r})"
    remedy = f"expected what it says of each alone; set {setting} = false"
    try:
        apart = _largest_difference(model, packing)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        if isinstance(error, ModelError | torch.OutOfMemoryError):
            raise
        raise ModelError(f"{name} cannot be given packed sequences: {error}; {remedy}") from error
    allowed = _TOLERANCE.get(_computed_in(model), _HALF_TOLERANCE)
    if not apart <= allowed:
        raise ModelError(
            f"{name} mixes packed sequences: a hidden state is off by {apart:.2g} of its length, of which at most "
            f"{allowed:g} is rounding; {remedy}"
        )
    return packing


@torch.no_grad()
def _largest_difference(model: PreTrainedModel, packing: Packing) -> float:
    """Return the largest distance between what is said of a token in company and alone, by the latter's length."""
    config = model.config.get_text_config()
    at_most = getattr(config, "max_position_embeddings", None) or _LENGTHS[0]
    rng = np.random.default_rng(0)
    sequences = [
        (rng.integers(0, config.vocab_size, length), np.ones(length, bool))
        for length in (min(length, at_most) for length in _LENGTHS)
    ]
    was_training = model.training
    model.eval()
    try:
        alone_MD = torch.cat([_hidden(model, collate([sequence], 0)) for sequence in sequences])
        packed_MD = _hidden(model, collate_packed(sequences, 0, packing))
    finally:
        model.train(was_training)
    distance_M = torch.linalg.vector_norm(packed_MD - alone_MD, dim=1)
    return float((distance_M / torch.linalg.vector_norm(alone_MD, dim=1).clamp_min(1e-30)).max())


def _hidden(model: nn.Module, batch: Batch) -> Tensor:
    hidden_MD, _ = hidden_states_at(model, batch, 1)
    return hidden_MD.double()


def _computed_in(model: PreTrainedModel) -> torch.dtype:
    """Return the widest type of which the rounding is to be expected."""
    quantised = getattr(model, "hf_quantizer", None) is not None
    return torch.bfloat16 if quantised or torch.is_autocast_enabled("cuda") else model.dtype

"""The kept parts of a model as a model of their own, bit for bit the source's weights.

    layers.7.self_attn.q_proj.weight [H·d, D]   kept as layer 3 with groups 0 and 2 of 3
        ─▶ layers.3.self_attn.q_proj.weight     the rows of the heads in these groups, in their order

The smaller model is built from its own config, so that each layer knows its new number (the KV cache goes by it) and
its own kind of attention; its weights are then loaded strictly: one that is missing or left over is an error.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.shrinking.families import head_dim, smaller_config


def cut(
    model: PreTrainedModel,
    layers: Sequence[int],
    neurons: Sequence[Sequence[int]] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> PreTrainedModel:
    """Return a new model in eval mode of the kept parts; the source is left as it is.

    Args:
        layers: which stay, rising.
        neurons: for each of them, which neurons of its feed-forward stay, as many in each; all unless given.
        groups: for each of them, which groups of attention heads stay, as many in each; all unless given.
    """
    kept_neurons = len(neurons[0]) if neurons is not None else None
    kept_groups = len(groups[0]) if groups is not None else None
    config = smaller_config(model.config, layers, kept_neurons, kept_groups)
    prefix = f"{model.base_model_prefix}.layers."
    new_number = {layer: number for number, layer in enumerate(layers)}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        layer, _, part = name.removeprefix(prefix).partition(".")
        if (number := new_number.get(int(layer))) is None:
            continue
        if neurons is not None:
            tensor = _only_neurons(part, tensor, neurons[number])
        if groups is not None:
            tensor = _only_groups(part, tensor, groups[number], model.config)
        state[f"{prefix}{number}.{part}"] = tensor
    with torch.random.fork_rng(devices=[]):  # its first weights are random, and thrown away
        smaller = type(model)._from_config(config, dtype=model.dtype)
    smaller.load_state_dict(state)
    smaller.generation_config = model.generation_config
    return smaller.eval()


@contextmanager
def only(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """Let a model run with some of its layers, in their order and without a KV cache, within the block."""
    base: Any = model.base_model
    whole = base.layers
    config = smaller_config(model.config, layers, None, None)
    config.use_cache = False  # which goes by the layers' own numbers
    before = dict(vars(model.config))
    base.layers = nn.ModuleList([whole[layer] for layer in layers])
    vars(model.config).update(vars(config))
    try:
        yield
    finally:
        base.layers = whole
        vars(model.config).update(before)


def _only_neurons(part: str, tensor: Tensor, kept: Sequence[int]) -> Tensor:
    """Return what stays of a layer's tensor with fewer neurons."""
    index = torch.tensor(kept, device=tensor.device)
    if part.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
        return tensor[index]
    return tensor[:, index] if part == "mlp.down_proj.weight" else tensor


def _only_groups(part: str, tensor: Tensor, kept: Sequence[int], config: Any) -> Tensor:
    """Return what stays of a layer's tensor with fewer groups of heads."""
    width = head_dim(config)
    shared = config.num_attention_heads // config.num_key_value_heads * width
    if part.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
        return tensor[_rows(kept, width, tensor)]
    if part.startswith("self_attn.q_proj."):
        return tensor[_rows(kept, shared, tensor)]
    return tensor[:, _rows(kept, shared, tensor)] if part == "self_attn.o_proj.weight" else tensor


def _rows(groups: Sequence[int], width: int, tensor: Tensor) -> Tensor:
    """Return the indices of whole groups that are `width` rows each, one after another."""
    index = torch.tensor(groups, device=tensor.device)
    return (index[:, None] * width + torch.arange(width, device=tensor.device)).flatten()

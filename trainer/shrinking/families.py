"""Which families can be shrunk, and what the config of a smaller one says.

    layers            model.layers[i], numbered anew from 0; a list that has an entry for each layer keeps its own
    feed-forward      gate_proj, up_proj [F, D], down_proj [D, F]: F neurons
    attention groups  q_proj [H·d, D], k_proj, v_proj [G·d, D], o_proj [D, H·d]: G of a key-value head and the H/G
                      heads that share it

Vocabulary, embeddings, norms, biases of what stays, and the head are the source's.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cache_builder.errors import ConfigError, ModelError

PER_LAYER = ("layer_types", "no_rope_layers")
"""Settings that have an entry for each layer. A kept layer keeps its own: which kind it is must not follow from where
it stands in the smaller model."""


@dataclass(frozen=True)
class Family:
    """What can be made smaller beside the number of layers."""

    feed_forward: bool = True
    """Whether its projections are three matrices, none of them fused with another."""
    heads: bool = True
    """Whether its projections are four matrices, and nothing is normalised over all heads at once."""


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(),
    "gemma2": Family(),
    "gemma3_text": Family(),
    "smollm3": Family(),
    "granite": Family(),
    "olmo": Family(),
    "olmo2": Family(heads=False),  # q_norm and k_norm are over all heads: with fewer, each of them would be scaled anew
    "olmo3": Family(heads=False),
    "phi3": Family(feed_forward=False, heads=False),  # qkv_proj and gate_up_proj are fused
}
"""By a config's `model_type`."""


@dataclass(frozen=True)
class Sizes:
    """How much of a model is kept; None keeps all."""

    layers: int
    intermediate_size: int | None = None
    key_value_heads: int | None = None


def family_of(config: Any, location: str) -> Family:
    """Return what can be made smaller in a model of this config.

    Raises:
        ModelError: it is of no family that is known here, or quantised.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(FAMILIES)
        raise ModelError(
            f"model {location!r} is of the family {config.model_type!r}, which cannot be shrunk; expected one of "
            f"{known}; choose a smaller sibling as student.model, and no [shrink]"
        )
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"model {location!r} has quantised weights, which cannot be cut; give the model that they were made from"
        )
    return family


def check_sizes(config: Any, sizes: Sizes, location: str) -> None:
    """Refuse sizes that are not smaller than the model's, or that its family cannot have.

    Raises:
        ModelError: the family is not known here.
        ConfigError: the message names the setting.
    """
    family = family_of(config, location)
    asked = {
        "layers": (sizes.layers, config.num_hidden_layers, True),
        "intermediate_size": (sizes.intermediate_size, config.intermediate_size, family.feed_forward),
        "key_value_heads": (sizes.key_value_heads, config.num_key_value_heads, family.heads),
    }
    for name, (wanted, there, possible) in asked.items():
        if wanted is None:
            continue
        if not possible:
            raise ConfigError(f"shrink.{name}: models of the family {config.model_type} keep all of it; leave it out")
        if wanted > there:
            raise ConfigError(f"shrink.{name} is {wanted:,}, but model {location!r} has only {there:,}; lower it")
    if sizes.key_value_heads is not None and not _has_heads(config, sizes.key_value_heads):
        fitting = [str(count) for count in range(1, config.num_key_value_heads + 1) if _has_heads(config, count)]
        raise ConfigError(
            f"shrink.key_value_heads is {sizes.key_value_heads}: the hidden size of model {location!r}, "
            f"{config.hidden_size:,}, is no multiple of the heads that it leaves, which the family "
            f"{config.model_type} must have; it can be {', '.join(fitting)}"
        )


def _has_heads(config: Any, groups: int) -> bool:
    """Say whether transformers takes the config with so many groups."""
    try:
        smaller_config(config, range(config.num_hidden_layers), None, groups).validate_architecture()
    except ValueError:
        return False
    return True


def smaller_config(config: Any, layers: Sequence[int], intermediate_size: int | None, groups: int | None) -> Any:
    """Return the config of a model that keeps `layers` of the config's own, and so many neurons and groups in each.

    A head is as wide as before, whatever their number.
    """
    smaller = copy.deepcopy(config)
    there = config.num_hidden_layers
    for name in PER_LAYER:
        entries = getattr(config, name, None)
        if isinstance(entries, (list, tuple)) and len(entries) == there:
            setattr(smaller, name, [entries[layer] for layer in layers])
    # Programs that know no layer_types count from it: the first so many layers see everything, the others a window.
    if getattr(config, "max_window_layers", None) is not None:
        smaller.max_window_layers = sum(layer < config.max_window_layers for layer in layers)
    smaller.num_hidden_layers = len(layers)
    if intermediate_size is not None:
        smaller.intermediate_size = intermediate_size
    if groups is not None:
        smaller.head_dim = head_dim(config)
        smaller.num_attention_heads = groups * (config.num_attention_heads // config.num_key_value_heads)
        smaller.num_key_value_heads = groups
    return smaller


def head_dim(config: Any) -> int:
    """Return how wide a head is, which not every config says."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

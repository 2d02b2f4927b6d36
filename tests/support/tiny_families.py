"""A tiny random model of every causal LM of transformers whose config can be made small by common names."""

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES

LARGEST = 30_000_000
"""Weights of a model; one that is larger was not made small."""
WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim_model", "attention_hidden_size")
INNER = ("intermediate_size", "ffn_dim", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "decoder_attention_heads",
    "encoder_attention_heads",
    "mamba_n_heads",
    "mamba_num_heads",
    "n_mamba_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
)
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
SMALL: dict[str, Any] = {
    **dict.fromkeys(WIDTHS, 32),
    **dict.fromkeys(INNER, 64),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(EXPERTS, 4),
    "vocab_size": 304,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_d_ssm": 32,
    "mamba_n_groups": 1,
    "embedding_size": 32,
    "output_embedding_size": 32,
}
NARROW = {"head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "mamba_d_head": 16}
RECIPES: tuple[dict[str, Any], ...] = tuple(
    {**SMALL, **dict.fromkeys(LAYERS, layers), **heads, **narrow}
    for layers in (2, 4, 6)
    for heads in ({"num_key_value_heads": 2}, {"num_key_value_heads": 4})
    for narrow in (NARROW, {**NARROW, "mamba_head_dim": 16, "rotary_dim": 8}, {})
)


def tiny_models() -> Iterator[tuple[str, nn.Module]]:
    """Yield (model type, model in eval mode) of every family that some recipe makes small and that then runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family in FAMILIES:
            model = next((model for recipe in RECIPES if (model := _made(family, recipe)) is not None), None)
            if model is not None:
                yield family, model


def _made(family: str, recipe: dict[str, Any]) -> nn.Module | None:
    try:
        config = _small(CONFIG_MAPPING[family], recipe)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            return None
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
            tokens = torch.arange(14).reshape(2, 7)  # sizes that no other dimension has, so that what fits is meant to
            mask = torch.ones_like(tokens)
            mask[1, 5:] = 0  # without padding some kernels are given no mask, and take heads that do not fit
            model(input_ids=tokens, attention_mask=mask)
    except Exception:  # what these families ask of each other's settings is not what is tested
        return None
    return model


def _small(kind: Any, recipe: dict[str, Any]) -> Any:
    """Make a config, its text part too, from what of the recipe it takes."""
    known = {name: value for name, value in recipe.items() if name in inspect.signature(kind).parameters}
    config = kind(**known)
    text = config.get_text_config(decoder=True)
    if text is not config:
        for name, value in recipe.items():
            if hasattr(text, name):
                setattr(text, name, value)
    return config

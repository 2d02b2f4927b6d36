"""A tiny random model of each family that can be shrunk: five layers of mixed kinds, four heads in two groups."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS, NEURONS, GROUPS, HEAD_DIM, WINDOW = 5, 20, 2, 6, 4
COMMON: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 24,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2 * GROUPS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
WINDOWED = {"layer_types": MIXED, "sliding_window": WINDOW}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": WINDOW},
    "ministral": {**WINDOWED, "head_dim": HEAD_DIM},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "head_dim": HEAD_DIM},
    "gemma": {"head_dim": HEAD_DIM},
    "gemma2": {**WINDOWED, "head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM},
    "gemma3_text": {**WINDOWED, "head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1, 0], "tie_word_embeddings": True},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 2.0},
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOWED,
    "phi3": {},
}
"""What makes a family itself."""
SOURCE_SIZES = {"num_hidden_layers": 5, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}


def tiny(family: str, **options: Any) -> PreTrainedModel:
    """Return a random model in eval mode, its weights and biases large enough to matter."""
    config = CONFIG_MAPPING[family](**{**COMMON, **OWN.get(family, {}), **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter) * 0.3
                parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model


def tokens(length: int = 12, rows: int = 2, seed: int = 0) -> torch.Tensor:
    """Return random token ids, more than the window holds."""
    return torch.randint(2, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def save_source(folder: Path, **options: Any) -> Path:
    """Save a random Llama of five layers that disagree enough for an order to be clear."""
    torch.manual_seed(7)
    options = {"hidden_size": 24, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 1, **SOURCE_SIZES, **options}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=328, max_position_embeddings=128, **options))
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05 * (number * 3 % 5 + 1))
    model.save_pretrained(folder)
    return folder

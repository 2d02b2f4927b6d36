"""What of a causal LM comes after its layers: the final norm and the head, with the layers left out of memory.

    config ── no layers ─▶ from_pretrained reads embedding, norm and head ─▶ one token through it finds the norm

Of a 70B model that is 4 GiB in place of 140.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cache_builder.config import ModelConfig
from cache_builder.data.tokenizer import is_gguf, resolve
from cache_builder.errors import ModelError, first_line
from cache_builder.models.lm_head import base_of, input_device
from cache_builder.models.loading import load_model
from cache_builder.models.weights import UNREADABLE


def load_last_parts(config: ModelConfig, seed: int, location: str) -> PreTrainedModel:
    """Load a causal LM without its layers, in eval mode.

    Raises:
        MissingError: there is no such model.
        ModelError: it is not a causal LM with weights of its own, or its family does not work without layers.
    """
    name, revision = resolve(location)
    if is_gguf(name):
        raise ModelError(
            f"model {location!r} is one file, which is read whole; expected a folder with safetensors weights"
        )
    try:
        shallow = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, *UNREADABLE) as error:
        raise ModelError(f"model {location!r}: its config.json cannot be read: {first_line(error)}") from error
    _without_layers(shallow)
    report = logging.getLogger("transformers.modeling_utils")
    level = report.level
    report.setLevel(logging.ERROR)  # it would list every tensor of the layers as unexpected
    try:
        return load_model(config, seed, location, without_layers=shallow)
    except (IndexError, AttributeError, ZeroDivisionError) as error:
        raise _unsupported(shallow, f"it cannot be made without layers ({error})") from error
    finally:
        report.setLevel(level)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the norm whose output is the model's last hidden state, of a model without layers.

    Raises:
        ModelError: something else makes the last hidden state.
    """
    base = base_of(model)
    seen: list[tuple[nn.Module, tuple[Any, ...], Any]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: seen.append((module, args, output)))
        for module in base.modules()
        if module is not base
    ]
    try:
        with torch.no_grad():
            tokens = torch.zeros(1, 2, dtype=torch.long, device=input_device(model))
            last = base(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    makers = [module for module, args, output in seen if output is last and len(args) == 1 and _is_state(args[0], last)]
    if len(makers) != 1 or "norm" not in type(makers[0]).__name__.lower():
        raise _unsupported(model.config, "its last hidden state is not what a final norm gives")
    return makers[0]


def _is_state(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape


def _without_layers(config: PreTrainedConfig) -> None:
    text = config.get_text_config()
    text.num_hidden_layers = 0
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if isinstance(getattr(text, name, None), list):
            setattr(text, name, [])


def _unsupported(config: PreTrainedConfig, why: str) -> ModelError:
    return ModelError(
        f"model_type {config.model_type!r}: {why}, so hidden states of another engine cannot be used for it; "
        'build its cache with teacher.engine = "transformers"'
    )

"""Whether a config's sizes are those of the weights beside it, before transformers makes room for what it says.

    layers        at most as many as the files have tensors; without weights, at most 10,000
    parameters    at most twice the elements of the files' tensors; packed weights hold up to 32 in one

What the config has and the files lack would be drawn at random, and only then refused: a config of 700 bytes took a
minute and a GiB.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from cache_builder.errors import ModelError

MOST_LAYERS = 10_000
_PACKED = 32
"""Parameters of one bit in an element of 32."""


def check_size(folder: Path, location: str, options: dict[str, Any]) -> None:
    """Refuse a model's folder, or its snapshot of the hub, whose config says more than its weights can be.

    Raises:
        ModelError: it does; the message has both numbers.
    """
    if not (folder / "config.json").is_file():
        return
    config = AutoConfig.from_pretrained(folder, trust_remote_code=options["trust_remote_code"])
    tensors, elements = _sizes_of(folder)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    most = tensors or MOST_LAYERS
    if isinstance(layers, int) and layers > most:
        raise ModelError(
            f"model {location!r}: its config.json says num_hidden_layers = {layers:,}, but its weights are {tensors:,} "
            "tensors; use the config.json that it was saved with, or get it anew"
        )
    if not tensors:
        return
    with torch.device("meta"):
        parameters = sum(each.numel() for each in AutoModelForCausalLM.from_config(config, **options).parameters())
    times = _PACKED if getattr(config, "quantization_config", None) else 2
    if parameters > times * elements:
        raise ModelError(
            f"model {location!r}: its config.json says a model of {parameters:,} parameters, but its weights have "
            f"{elements:,}; use the config.json that it was saved with, or get it anew"
        )


def _sizes_of(folder: Path) -> tuple[int, int]:
    """Return how many tensors a folder's safetensors files have, and of how many elements, by their headers."""
    tensors = elements = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (no dictionary)
                tensors += 1
                elements += math.prod(file.get_slice(name).get_shape())
    return tensors, elements

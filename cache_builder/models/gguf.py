"""A model in one `.gguf` file, as llama.cpp keeps them, read as an ordinary one: its weights are made float again.

    model.Q4_1.gguf ─▶ transformers reads config, tokenizer and weights ─▶ a plain model, which can be trained and saved

Which architectures and quantisations can be read is transformers' affair; others are refused by name. Nothing in such a
file is run.
"""

import hashlib
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cache_builder.data.tokenizer import gguf_parts
from cache_builder.errors import ModelError, first_line
from cache_builder.models.weights import check_loaded


def load_gguf(name: str, options: dict[str, Any]) -> PreTrainedModel:
    """Read such a file as a plain model; `options` go to `from_pretrained`.

    Raises:
        ModelError: the package that reads it is not installed, the file cannot be read, or its tensors are not those
            of its config.
    """
    files = gguf_parts(name)
    try:
        read, info = cast(
            tuple[PreTrainedModel, dict[str, Any]],
            AutoModelForCausalLM.from_pretrained(**files, output_loading_info=True, **options),
        )
    except Exception as error:  # a file that ends too early raises whatever was being read then
        raise ModelError(
            f"model {name!r} cannot be read: {type(error).__name__}: {first_line(error)}; get it anew, or the model's "
            "safetensors where transformers does not know this architecture as GGUF"
        ) from error
    check_loaded(name, info)
    config = read.config
    del config.quantization_config
    # What was read calls itself quantised, which transformers neither trains nor saves; its weights are float by now.
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = type(read)._from_config(config, dtype=read.dtype)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    # Adapters that are trained on it name their base by this.
    model.name_or_path = config._name_or_path = name
    return model


def gguf_fingerprint(name: str) -> str:
    """Return a SHA-256 over all of the file."""
    digest = hashlib.sha256(b"footsteps gguf 1")
    with Path(name).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

"""Where a model's weights lie: on this process's device, or as its loading has placed them.

plain                        one device: LOCAL_RANK's GPU, or the CPU
device_map                   GPUs, memory and disk; accelerate's hooks carry states from one to the next
quantised                    one device, chosen while loading: quantised weights are not moved afterwards
tensor_parallel              a part of every layer on each process of a group
"""

import os
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from cache_builder.batch_size import batch_tokens_for
from cache_builder.config import ModelConfig, TeacherConfig, expand
from cache_builder.errors import ConfigError, ModelError
from cache_builder.models.lm_head import input_device


def local_device() -> torch.device:
    """Return this process's GPU (LOCAL_RANK's, under torchrun), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def place(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """Move a model to this process's device, unless its loading has placed it."""
    mapped = isinstance(config, TeacherConfig) and config.device_map is not None
    if mapped or getattr(model, "hf_quantizer", None) is not None or (model.tp_size or 1) > 1:
        return model
    return model.to(local_device())  # type: ignore[arg-type]


def loading_options(config: ModelConfig, name: str, revision: str | None) -> dict[str, Any]:
    """Return what `from_pretrained` must know of a model's place and quantisation.

    Raises:
        ConfigError: `device_map` together with several processes, which would all take the same GPUs.
        ModelError: a quantisation that transformers does not know.
    """
    options: dict[str, Any] = {}
    quantised = quantisation_of(name, revision) is not None
    if isinstance(config, TeacherConfig) and config.quantization is not None:
        options["quantization_config"], quantised = _quantization(config), True
    if isinstance(config, TeacherConfig) and config.device_map is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "teacher.device_map lets one process use every GPU, but this run has several; start one process, or "
                "several with CUDA_VISIBLE_DEVICES and --part of their own, or use teacher.tensor_parallel"
            )
        options["device_map"] = config.device_map
        if isinstance(config.device_map, dict):
            options["device_map"] = {module: _device(where) for module, where in config.device_map.items()}
        options["max_memory"] = config.max_memory and {_device(key): size for key, size in config.max_memory.items()}
        options["offload_folder"] = config.offload_folder and expand(config.offload_folder)
    elif quantised:
        options["device_map"] = {"": local_device()}
    return options


def quantisation_of(name: str, revision: str | None) -> dict[str, Any] | None:
    """Return the `quantization_config` in a model's config.json, if there is one.

    Raises:
        ModelError: transformers does not know its kind, and would read the weights as they are.
    """
    found, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    quantisation = found.get("quantization_config")
    if quantisation and not AutoHfQuantizer.supports_quant_method(dict(quantisation)):
        raise ModelError(
            f"model {name!r}: transformers does not know the quantisation {quantisation.get('quant_method')!r} of its "
            "config.json; expected a kind that it loads, or no quantization_config"
        )
    return quantisation or None


def default_batch_tokens(model: PreTrainedModel) -> int:
    """Return the tokens of a batch that suits the device on which a model runs."""
    device = input_device(model)
    if device.type != "cuda":
        return batch_tokens_for(None, 1)
    config = model.config.get_text_config()
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    # states, queries, keys and values of a layer, and the three products of its gated MLP
    token_bytes = model.dtype.itemsize * (4 * hidden + 3 * inner)
    return batch_tokens_for(torch.cuda.get_device_properties(device).total_memory, token_bytes)


def describe_dtype(model: PreTrainedModel) -> str:
    """Say in which numbers a model computes: how weights are quantised, and the type of those that are whole."""
    dtype = str(next(model.get_input_embeddings().parameters()).dtype).removeprefix("torch.")
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return dtype
    how = quantizer.quantization_config
    kind = str(getattr(how.quant_method, "value", how.quant_method))
    if kind == "bitsandbytes":
        kind += " 4bit" if how.load_in_4bit else " 8bit"
    return f"{kind}, {dtype}"


def _quantization(config: TeacherConfig) -> Any:
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, config.dtype)
    )


def _device(key: str) -> int | str:
    """Return a GPU's number as a number, which TOML writes as a string."""
    return int(key) if key.isdecimal() else key

"""What a model costs: parameters from its config.json, and floating-point operations by formula.

    forward    2·body + 4·heads·head_dim·layers·T   per token, T being how many tokens it can attend to, the masked ones
                                                    included, as kernels and counters count them
    head       2·vocabulary·hidden                  per position: only there are logits needed
    training   3 × the forward: once forward, twice backward; with gradient checkpointing the body once more

body = the weights that multiply every token: all but embedding tables, the head, and experts that are not chosen.
`tests/trainer/planning/test_model_size.py` compares these with torch's own count of real models.
"""

import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from cache_builder.config import expand
from cache_builder.errors import MissingError, ModelError, UserError
from trainer.config import ShrinkConfig
from trainer.planning.units import parse_number

_NUMBER = re.compile(r"\d+(?:\.\d+)?[KMBT]?", re.IGNORECASE)
_IN_A_NAME = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[BM](?![A-Za-z0-9])", re.IGNORECASE)
HEAD_DIM, DEFAULT_VOCABULARY = 128, 128_256
CONFIG = "config.json"
GUESSED = "guessed from the number in its name"
GGUF = ".gguf"
SMOLLM2 = "SmolLM2-135M-Instruct"
"""What tools/get_smollm2.py calls its folder."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes of one model."""

    name: str
    parameters: int
    """All of them, tied ones once: what lies in memory."""
    body: int
    """Parameters that multiply each token, the head not among them."""
    hidden: int
    vocabulary: int
    """Rows of the head that are used."""
    layers: int
    attention: int
    """heads · head_dim, the sum over all layers."""
    origin: str
    """Where the sizes are from: CONFIG, GUESSED, …"""

    @property
    def head(self) -> int:
        """Parameters that multiply each position."""
        return self.vocabulary * self.hidden

    def body_flops(self, tokens: float, attention_length: float) -> float:
        """Return the operations of a forward pass without the head."""
        return tokens * (2 * self.body + 4 * self.attention * attention_length)

    def head_flops(self, positions: float) -> float:
        """Return the operations of the head on so many positions."""
        return 2.0 * positions * self.head


def shrunk_size(location: str, shrink: ShrinkConfig, vocabulary: int | None = None) -> ModelSize:
    """Return the size of what `[shrink]` makes of a model, whose config.json must be on this disk.

    Raises:
        ConfigError, ModelError: the model cannot be shrunk to that.
        MissingError: see `model_size`; or only its number of parameters is known, which says nothing of its layers.
    """
    source = model_size(location, vocabulary)
    folder = _config_folder(location)
    if folder is None:
        raise MissingError(
            f"the size of what [shrink] makes of {location!r} is not known here, as its config.json is not; give "
            "--student a number of parameters such as 50M, or get the model first"
        )
    found = _by_config(location, folder, vocabulary, CONFIG, shrink)
    return replace(found, name=f"{location}, {found.layers} of its {source.layers} layers")


def model_size(location: str, vocabulary: int | None = None) -> ModelSize:
    """Return the size of a model: a folder or its config.json, a hub id, or a number such as 8B.

    A hub id whose config.json is not on this disk is guessed from the number in its name, where it has one; nothing is
    downloaded, no weights are read.

    Args:
        vocabulary: the tokenizer's size, where it is known to be below that of the head.

    Raises:
        MissingError: no such folder, and neither a number nor a name with one.
        ModelError: transformers does not know the config.
    """
    if _NUMBER.fullmatch(location.strip().replace(",", "").replace("_", "")):
        return _by_parameters(location, location, vocabulary, "given, its shape assumed")
    if folder := _config_folder(location):
        return _by_config(location, folder, vocabulary, CONFIG)
    in_name = _IN_A_NAME.search(location.partition("@")[0].partition("/")[2]) if _may_be_at_the_hub(location) else None
    if in_name:
        return _by_parameters(location, in_name[0], vocabulary, GUESSED)
    raise MissingError(
        f"the size of model {location!r} is not known here: {_lacking(location)}; give --teacher or --student a "
        "folder, a config.json, or a number of parameters such as 8B"
    )


def _may_be_at_the_hub(location: str) -> bool:
    return location.count("/") == 1 and not location.startswith((".", "/"))


def _lacking(location: str) -> str:
    """Say why nothing is known of a model's size."""
    if Path(location).is_dir():
        return "its folder has no config.json"
    if Path(location).name == SMOLLM2:
        return "there is no such folder; `python -m tools.get_smollm2` makes it, in a clone of this project"
    if _may_be_at_the_hub(location):
        return "there is no such folder, its config.json is not in the hub's cache, and there is no number in its name"
    return "there is no such folder"


def _config_folder(location: str) -> str | None:
    """Return the folder of a model's config.json, or the .gguf file that has one, where it is on this disk."""
    path = Path(expand(location))
    if path.suffix == GGUF and path.is_file():
        return str(path)
    if path.name == "config.json":
        path = path.parent
    if (path / "config.json").is_file():
        return str(path)
    if _may_be_at_the_hub(location):
        name, _, revision = location.partition("@")
        return _on_this_disk(name, revision or None)
    return None


def _by_config(
    location: str, folder: str, vocabulary: int | None, origin: str, shrink: ShrinkConfig | None = None
) -> ModelSize:
    """Count the parameters of an empty model: any family that transformers knows."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    from cache_builder.data.tokenizer import gguf_parts
    from cache_builder.models.weights import UNREADABLE
    from trainer.shrinking.families import Sizes, check_sizes, smaller_config

    try:
        files = gguf_parts(folder) if folder.endswith(GGUF) else {"pretrained_model_name_or_path": folder}
        config = AutoConfig.from_pretrained(**files)
        if shrink is not None:
            sizes = Sizes(shrink.layers, shrink.intermediate_size, shrink.key_value_heads)
            check_sizes(config, sizes, location)
            config = smaller_config(config, range(shrink.layers), sizes.intermediate_size, sizes.key_value_heads)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except UserError:
        raise
    except (OSError, ValueError, struct.error, *UNREADABLE) as error:  # struct's from a .gguf that ends too early
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the config of {folder} is not that of a causal LM that transformers knows: {reason}; give a number of "
            "parameters such as 8B instead"
        ) from error
    text = config.get_text_config()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    chosen = getattr(text, "num_experts_per_tok", None) or 1
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
    body = 0.0
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or id(parameter) in tables or (head is not None and parameter is head.weight):
            continue
        body += parameter.numel() * (chosen / experts if ".experts." in name else 1)
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    rows, layers = text.vocab_size, text.num_hidden_layers
    parameters, used = sum(parameter.numel() for parameter in model.parameters()), min(vocabulary or rows, rows)
    width = heads * head_dim * layers
    return ModelSize(location, parameters, round(body), text.hidden_size, used, layers, width, origin)


def _by_parameters(location: str, number: str, vocabulary: int | None, origin: str) -> ModelSize:
    """Assume 12·layers·hidden² weights beside the embedding, hidden = 128·layers, and a tied head."""
    parameters, rows = round(parse_number(number)), vocabulary or DEFAULT_VOCABULARY
    hidden = float(parameters) ** (1 / 3) * 3
    for _ in range(50):  # Newton's steps, from above, for 12/128 · hidden³ + rows · hidden = parameters
        excess = 12 / HEAD_DIM * hidden**3 + rows * hidden - parameters
        hidden -= excess / (36 / HEAD_DIM * hidden**2 + rows)
    width = max(1, round(hidden))
    layers = max(1, round(width / HEAD_DIM))
    body = max(1, parameters - rows * width)
    return ModelSize(location, parameters, body, width, rows, layers, width * layers, origin)


def _on_this_disk(name: str, revision: str | None) -> str | None:
    """Return the folder of a hub model that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return str(Path(found).parent) if isinstance(found, str) else None

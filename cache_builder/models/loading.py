"""Models from a folder, a hub id `owner/name[@revision]`, a folder with only `config.json`, or a `.gguf` file.

Only safetensors weights are read, and GGUF's. Vocabulary size means `len(tokenizer)` everywhere: a head may be padded
to more rows.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cache_builder.config import ModelConfig, TeacherConfig
from cache_builder.data.tokenizer import is_gguf, resolve
from cache_builder.errors import ConfigError, MissingError, ModelError, first_line
from cache_builder.models.adapters import adapter_at, put_in
from cache_builder.models.gguf import gguf_fingerprint, load_gguf
from cache_builder.models.placement import loading_options
from cache_builder.models.sizes import check_size
from cache_builder.models.weights import UNREADABLE, check_as_saved, check_loaded, has_weights, in_a_layer
from cache_builder.narration import say

CONFIG_FILES = ("config.json", "adapter_config.json")
"""What a model's folder, or that of LoRA adapters, has one of."""


def load_model(
    config: ModelConfig,
    seed: int,
    location: str | None = None,
    *,
    without_layers: PreTrainedConfig | None = None,
    **parallel: Any,
) -> PreTrainedModel:
    """Load a causal LM in eval mode; a folder without weights is initialised from `seed`.

    `location` replaces `config.model`, to load another state of the same model; of adapters, the base is loaded with
    them. `parallel` goes to `from_pretrained`, in place of the config's `device_map` and `quantization`.
    `without_layers` is the model's own config with no layers, to read only what comes before and after them.

    Raises:
        MissingError: there is no such model.
        CacheDamagedError: a step of a run saved it, and a file is not as it was saved.
        ModelError: it is not a causal LM that transformers knows, its weights are not safetensors or not just those
            of its config, it does not fit into memory, or the package that its quantisation needs is not installed.
    """
    location = location or config.model
    name, revision = resolve(location)
    if Path(name).is_dir():
        check_as_saved(Path(name))
    adapter = adapter_at(name, revision)
    if without_layers is not None and (adapter is not None or not (Path(name).is_dir() and has_weights(Path(name)))):
        raise ModelError(
            f"model {location!r}: expected a folder with all of a model's weights, as what comes after its layers is "
            "read from it; merge adapters into their base, or download the model first"
        )
    if adapter is not None:
        model = load_model(config, seed, adapter.base_location, **parallel)
        put_in(model, adapter)
        return model
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "dtype": getattr(torch, config.dtype)}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    with _refusals(location):
        if is_gguf(name):
            _refuse_ways_of_loading(config, location, "is one file, which is read whole")
            return load_gguf(name, options).eval()
        check_size(_folder_of(name, revision), location, options)
        if Path(name).is_dir() and not has_weights(Path(name)) and (Path(name) / "config.json").is_file():
            _refuse_ways_of_loading(config, location, "has no weights to load")
            text = f"model {location}: no weights in its folder, so they are initialised from seed {seed}"
            say("initialised", text, stderr=True, model=location, seed=seed)
            return _initialised(name, seed, options).eval()
        options |= {"revision": revision, **(parallel or loading_options(config, name, revision))}
        if without_layers is not None:
            options["config"] = without_layers
        model, info = _from_pretrained(name, options)
        if without_layers is not None:
            info["unexpected_keys"] = {key for key in info["unexpected_keys"] if not in_a_layer(key)}
        check_loaded(location, info)
        return model.eval()


def _from_pretrained(name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model and transformers' account of its weights; what of them does not fit is still to be refused."""
    default_dtype = torch.get_default_dtype()
    try:
        found = AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    finally:  # transformers leaves the model's own behind where it raises half-way
        torch.set_default_dtype(default_dtype)
    return cast(tuple[PreTrainedModel, dict[str, Any]], found)


@contextmanager
def _refusals(location: str) -> Iterator[None]:
    """Say of what cannot be loaded which model it is, and what to do."""
    try:
        yield
    except OSError as error:
        raise MissingError(f"model {location!r} could not be loaded: {first_line(error)}") from error
    except (ConfigError, ModelError):
        raise
    except SafetensorError as error:
        raise ModelError(f"model {location!r}: a weights file is damaged ({first_line(error)}); get it anew") from error
    except (ValueError, ImportError) as error:
        raise ModelError(f"model {location!r} is not a causal LM that can be loaded: {first_line(error)}") from error
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"model {location!r} does not fit into the GPU's memory; docs/big-teachers.md has the ways to load a "
            f"larger one (teacher.device_map, quantization, tensor_parallel): {first_line(error)}"
        ) from error
    except UNREADABLE as error:
        raise ModelError(
            f"model {location!r} cannot be loaded, its config.json or a weights file holds what transformers does not "
            f"expect: {type(error).__name__}: {first_line(error)}"
        ) from error


def _refuse_ways_of_loading(config: ModelConfig, location: str, reason: str) -> None:
    if isinstance(config, TeacherConfig):
        for way in ("device_map", "quantization", "tensor_parallel"):
            if getattr(config, way) not in (None, 1):
                raise ModelError(f"model {location!r} {reason}, so teacher.{way} says nothing of it")


def _initialised(name: str, seed: int, options: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name, trust_remote_code=options["trust_remote_code"])
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, **options)


def is_model_folder(folder: Path) -> bool:
    """Say whether a folder holds a model, or adapters that name their base."""
    return any((folder / name).is_file() for name in CONFIG_FILES)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a model with fewer embedding rows than the tokenizer has tokens.

    Raises:
        ModelError: the model cannot read every token.
    """
    rows = cast(torch.nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    if rows < len(tokenizer):
        raise ModelError(
            f"model {name!r} has {rows} vocabulary rows, the tokenizer {len(tokenizer)} tokens; "
            "use the model's own tokenizer, or raise vocab_size in its config.json"
        )


def weights_fingerprint(location: str, seed: int) -> str:
    """Return a SHA-256 over a model's config and safetensors files, or over config and seed where it has no weights.

    That of adapters covers their base as well, wherever it lies.

    Raises:
        MissingError: there is nothing at this location.
        CacheDamagedError: a step of a run saved it, and a file is not as it was saved.
        ModelError: its weights are in another form than safetensors.
    """
    name, revision = resolve(location)
    if is_gguf(name):
        return gguf_fingerprint(name)
    folder = Path(name)
    if folder.is_dir():
        check_as_saved(folder)
    adapter = adapter_at(name, revision)
    try:
        folder = _folder_of(name, revision)
    except (OSError, ValueError) as error:
        raise MissingError(f"model {location!r} could not be loaded: {first_line(error)}") from error
    files = sorted(folder.glob("*.safetensors")) if has_weights(folder) else []
    changed_by_saving = ["transformers_version", "_name_or_path", "dtype"]
    if adapter is not None:
        changed_by_saving += ["base_model_name_or_path", "revision", "peft_version"]
    config_file = next((name for name in CONFIG_FILES if (folder / name).is_file()), CONFIG_FILES[0])
    if not (folder / config_file).is_file():
        raise MissingError(f"model {location!r}: its folder has no {config_file}; save the model there first")
    stamps = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in [folder / config_file, *files])
    digest = _digest(stamps, tuple(changed_by_saving), "" if files else str(seed))
    if adapter is None:
        return digest
    base = weights_fingerprint(adapter.base_location, seed)
    return hashlib.sha256(f"footsteps adapters 1 {digest} {base}".encode()).hexdigest()


def _folder_of(name: str, revision: str | None) -> Path:
    """Return the folder of a resolved location: of a hub id its snapshot, which is downloaded where it is not here."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def _config_of(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


@cache
def _digest(stamps: tuple[tuple[Path, int, int], ...], leave_out: tuple[str, ...], seed: str) -> str:
    """Return the SHA-256 of a config (less some keys), its weights' files, and `seed`; sizes and times are the key."""
    digest = hashlib.sha256(b"footsteps weights 1")
    (config_path, _, _), *weights = stamps
    model_config = _config_of(config_path)
    for key in leave_out:
        model_config.pop(key, None)
    digest.update(json.dumps(model_config, sort_keys=True).encode())
    for path, _, _ in weights:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    digest.update(seed.encode())
    return digest.hexdigest()

"""LoRA checkpoints: the base that they name, and one base in memory for many of them.

    base ─▶ + adapters of checkpoint 1 ─▶ targets ─▶ − adapters ─▶ + adapters of checkpoint 2 ─▶ targets ─▶ …

A base is used again only for plain LoRA, and only while its logits on four tokens are bit for bit those it had when it
was loaded. What changes the base itself (`modules_to_save`, trained biases, …) is loaded afresh, base and all.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import has_offloaded_params
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from cache_builder.errors import ModelError, first_line
from cache_builder.models.weights import UNREADABLE

ADAPTER_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_NAME = "default"


@dataclass(frozen=True)
class Adapter:
    """A folder, or hub id, of adapters."""

    location: str
    revision: str | None
    config: dict[str, Any]

    @property
    def base_location(self) -> str:
        """Folder or hub id, with its revision, of the model that these adapters were trained on."""
        base, revision = self.config["base_model_name_or_path"], self.config.get("revision")
        return f"{base}@{revision}" if revision and not Path(base).is_dir() else base

    @property
    def leaves_base_alone(self) -> bool:
        """Whether taking these adapters out again gives the base back as it was."""
        changing = ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters")
        return (
            self.config.get("peft_type") == "LORA"
            and self.config.get("bias", "none") == "none"
            and self.config.get("init_lora_weights", True) in (True, False, "gaussian")
            and not any(self.config.get(name) for name in changing)
        )


def adapter_at(name: str, revision: str | None) -> Adapter | None:
    """Return what lies at a resolved location if it is adapters and not a whole model.

    Raises:
        ModelError: they do not name their base.
    """
    folder = Path(name)
    if folder.is_file():
        return None  # a model in one .gguf file
    if folder.is_dir():
        path = folder / ADAPTER_FILE
        found = str(path) if path.is_file() and not (folder / "config.json").is_file() else None
    else:
        found = find_adapter_config_file(name, revision=revision)
    if found is None:
        return None
    try:
        config = json.loads(Path(found).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"adapters {name!r}: {ADAPTER_FILE} is not valid JSON: {first_line(error)}") from None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base or not isinstance(base, str) or "\0" in base:
        raise ModelError(f"adapters {name!r}: {ADAPTER_FILE} names no base_model_name_or_path; write its folder there")
    if "$" in base or base.startswith("~"):
        # Adapters may be anybody's, and what a variable stands for would be looked up at the hub.
        raise ModelError(
            f"adapters {name!r}: {ADAPTER_FILE} names the base {base!r}, and variables in adapters are not expanded; "
            "write its folder out there"
        )
    return Adapter(name, revision, config)


def put_in(model: PreTrainedModel, adapter: Adapter) -> None:
    """Add adapters to the base that they were trained on.

    Raises:
        ModelError: their weights do not fit it, they are not safetensors, or the base is partly offloaded.
    """
    if any(has_offloaded_params(module) for module in model.modules()):
        raise ModelError(
            f"adapters {adapter.location!r}: teacher.device_map has put a part of their base into memory or on disk, "
            "where adapters cannot be added; let it fit the GPUs (teacher.quantization, more of them), or merge the "
            "adapters into their base first"
        )
    folder = Path(adapter.location)
    if folder.is_dir() and not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"adapters {adapter.location!r} have no {WEIGHTS_FILE}; only safetensors weights are read")
    try:
        loaded = model.load_adapter(
            adapter.location, _NAME, use_safetensors=True, adapter_kwargs={"revision": adapter.revision}
        )
    except (OSError, ValueError, ImportError, SafetensorError, *UNREADABLE) as error:
        raise ModelError(f"adapters {adapter.location!r} cannot be loaded: {first_line(error)}") from error
    if loaded.missing_keys or loaded.unexpected_keys or loaded.mismatched_keys:
        example = next(iter([*loaded.missing_keys, *loaded.unexpected_keys, *loaded.mismatched_keys]))
        raise ModelError(
            f"adapters {adapter.location!r} do not fit their base {adapter.base_location!r} (first at {example!r}); "
            f"name in {ADAPTER_FILE} the base that they were trained on"
        )
    model.eval()


class SharedBase:
    """The base of the LoRA checkpoints seen last, kept between them; `load` and `take_out` take turns."""

    def __init__(self) -> None:
        self._location: str | None = None
        self._model: PreTrainedModel | None = None
        self._fresh_logits: Tensor | None = None
        self._in_use = False

    def load(self, adapter: Adapter, load_base: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
        """Return the base with these adapters in it; the base is loaded only where it is not here already."""
        if not (adapter.leaves_base_alone and self._is_whole(adapter.base_location)):
            self.forget()
        model = self._model
        if model is None:
            model = load_base(adapter.base_location)
            if adapter.leaves_base_alone:
                self._model, self._location, self._fresh_logits = model, adapter.base_location, _logits(model)
        try:
            put_in(model, adapter)
        except BaseException:
            self.forget()
            raise
        self._in_use = model is self._model
        return model

    def take_out(self, model: PreTrainedModel) -> None:
        """Take the adapters out of a model that `load` gave."""
        if model is self._model:
            model.delete_adapter(_NAME)
            self._in_use = False

    def forget(self) -> None:
        """Let go of the base; its memory is free once nobody else holds it."""
        self.__init__()  # type: ignore[misc]

    def _is_whole(self, location: str) -> bool:
        """Whether the base from `location` is here, without adapters, and says what it said."""
        if self._model is None or self._fresh_logits is None or self._location != location or self._in_use:
            return False
        return torch.equal(_logits(self._model), self._fresh_logits)


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    from cache_builder.models.lm_head import input_device

    return model(input_ids=torch.tensor([[1, 2, 3, 0]], device=input_device(model))).logits

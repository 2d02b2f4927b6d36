"""LoRA students: only adapters are trained; what is saved are the adapters, or with `merge` a plain model folder.

    base, frozen ─▶ adapters in its layers, trained ─▶ best/ last/   adapter_config.json, adapter_model.safetensors
                                          └─▶ merge ─▶ best/ last/   config.json, model.safetensors

An adapter folder loads like a model wherever transformers finds peft and the base that it names. The head is never
adapted: the loss reads its weight directly.
"""

import json
import shutil
from pathlib import Path
from typing import cast

import torch
from pydantic import Field
from transformers import PreTrainedModel

from cache_builder.config import ModelConfig, Section, expand
from cache_builder.errors import ModelError
from cache_builder.models import load_model, resolve

ADAPTER_FILE = "adapter_config.json"


class LoraSection(Section):
    """Names as peft has them."""

    r: int = Field(8, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(16, gt=0)
    """The adapters' product is scaled by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""
    target_modules: list[str] | str = "all-linear"
    """Layers to adapt, by the ends of their names; "all-linear" is all but the head, which cannot be adapted."""
    merge: bool = False
    """Save plain models, with the adapters added to the weights, instead of adapters."""


class StudentConfig(ModelConfig):
    lora: LoraSection | None = None
    """Train adapters instead of the weights."""


def load_student(config: ModelConfig, seed: int) -> PreTrainedModel:
    """Load a model as it is to be trained: with `lora`, with new adapters or with those that the folder holds.

    Raises:
        ModelError: adapters are asked for, but the model has no weights to adapt.
    """
    lora = config.lora if isinstance(config, StudentConfig) else None
    if lora is None:
        return load_model(config, seed)
    from peft import LoraConfig, PeftModel, get_peft_model

    name, revision = resolve(config.model)
    folder = Path(name)
    if (folder / ADAPTER_FILE).is_file():
        base = load_model(config, seed, _base_location(folder))
        return cast(PreTrainedModel, PeftModel.from_pretrained(base, name, is_trainable=True))
    if folder.is_dir() and not any(folder.glob("*.safetensors*")):
        raise ModelError(f"student {config.model!r} has no weights, so there is nothing for student.lora to adapt")
    base = load_model(config, seed)
    options = LoraConfig(task_type="CAUSAL_LM", revision=revision, **lora.model_dump(exclude={"merge"}))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return cast(PreTrainedModel, get_peft_model(base, options))


def merge_saved(output_dir: Path, config: ModelConfig, seed: int) -> None:
    """Turn the adapters in best/ and last/ into plain models, each whole or not at all, where `lora.merge` says so."""
    if not (isinstance(config, StudentConfig) and config.lora and config.lora.merge):
        return
    from peft import PeftModel

    for folder in (output_dir / "best", output_dir / "last"):
        if not (folder / ADAPTER_FILE).is_file():
            continue
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder, part, ignore=shutil.ignore_patterns("adapter_*", "README.md"))
        base = load_model(config, seed, _base_location(folder))
        PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(part)
        shutil.rmtree(folder)
        part.rename(folder)


def _base_location(folder: Path) -> str:
    adapter = json.loads((folder / ADAPTER_FILE).read_text())
    base, revision = expand(adapter["base_model_name_or_path"]), adapter.get("revision")
    return f"{base}@{revision}" if revision and not Path(base).is_dir() else base

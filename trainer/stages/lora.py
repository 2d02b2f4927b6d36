"""LoRA: only adapters are trained; what is saved are the adapters, or with `merge` a plain model folder.

    base, frozen ─▶ adapters in its layers, trained ─▶ best/ last/   adapter_config.json, adapter_model.safetensors
                                          └─▶ merge ─▶ best/ last/   config.json, model.safetensors

A teacher's checkpoints stay adapters: the cache's builder then loads their base once. An adapter folder loads like a
model wherever transformers finds peft and the base that it names. The head is never adapted: the loss reads its weight
directly.
"""

import shutil
from pathlib import Path
from typing import Self, cast

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from cache_builder.config import ModelConfig, Section, TeacherConfig
from cache_builder.data.tokenizer import resolve
from cache_builder.errors import ModelError
from cache_builder.models.adapters import adapter_at
from cache_builder.models.loading import load_model


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


class TunedTeacherConfig(TeacherConfig):
    lora: LoraSection | None = None
    """Fine-tune adapters; the checkpoints are then adapters of `model`, which the cache's builder loads once."""

    @model_validator(mode="after")
    def _checkpoints_stay_adapters(self) -> Self:
        if self.lora and self.lora.merge:
            raise ValueError("lora.merge is for students; a teacher's checkpoints are adapters that share their base")
        return self

    def as_trained(self) -> ModelConfig:
        """Return the model, and its adapters if there are any, without what only says how checkpoints are loaded."""
        plain = super().as_trained()
        return plain if self.lora is None else StudentConfig(**plain.model_dump(), lora=self.lora)


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
    adapter = adapter_at(name, revision)
    if adapter is not None:
        base = load_model(config, seed, adapter.base_location)
        return cast(PreTrainedModel, PeftModel.from_pretrained(base, name, is_trainable=True))
    if folder.is_dir() and not any(folder.glob("*.safetensors*")):
        raise ModelError(f"model {config.model!r} has no weights, so there is nothing for lora to adapt")
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
        adapter = adapter_at(str(folder), None) if folder.is_dir() else None
        if adapter is None:
            continue
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder, part, ignore=shutil.ignore_patterns("adapter_*", "README.md"))
        base = load_model(config, seed, adapter.base_location)
        PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(part)
        shutil.rmtree(folder)
        part.rename(folder)

"""LoRA: only adapters are trained; what is saved are the adapters, or with `merge` a plain model folder.

    base, frozen ─▶ adapters in its layers, trained ─▶ best/ last/   adapter_config.json, adapter_model.safetensors
                                          └─▶ merge ─▶ best/ last/   config.json, model.safetensors

A teacher's checkpoints stay adapters: the cache's builder then loads their base once. An adapter folder loads like a
model wherever transformers finds peft and the base that it names. The head is never adapted: the loss reads its weight
directly.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from cache_builder.atomic import new_folder, restore_folder
from cache_builder.config import ModelConfig
from cache_builder.data.tokenizer import resolve
from cache_builder.errors import ModelError
from cache_builder.models.adapters import adapter_at
from cache_builder.models.loading import load_model
from cache_builder.models.placement import describe_dtype
from trainer.config import StudentConfig


def load_student(config: ModelConfig, seed: int) -> PreTrainedModel:
    """Load a model as it is to be trained: with `lora`, with new adapters or with those that the folder holds.

    Raises:
        ModelError: adapters are asked for, but the model has no weights to adapt; or none are, and its weights are
            quantised, so they cannot be trained.
    """
    lora = config.lora if isinstance(config, StudentConfig) else None
    if lora is None:
        model = load_model(config, seed)
        if getattr(model, "hf_quantizer", None) is not None:
            raise ModelError(
                f"model {config.model!r} is quantised ({describe_dtype(model)}), and such weights cannot be trained; "
                "train adapters on it (`lora`), or start from its whole weights"
            )
        return model
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


def merge_saved(output_dir: Path, config: ModelConfig, seed: int, finish: Callable[[Path], None]) -> None:
    """Turn the adapters in best/ and last/ into plain models, each whole or not at all, where `lora.merge` says so.

    `finish` writes into a model's folder what others need to use it: merging takes the base's generation config.
    """
    if not (isinstance(config, StudentConfig) and config.lora and config.lora.merge):
        return
    from peft import PeftModel

    for folder in (output_dir / "best", output_dir / "last"):
        restore_folder(folder)
        adapter = adapter_at(str(folder), None) if folder.is_dir() else None
        if adapter is None:
            continue
        with new_folder(folder) as part:
            ours = shutil.ignore_patterns("adapter_*", "README.md")
            shutil.copytree(folder, part, ignore=ours, dirs_exist_ok=True)
            base = load_model(config, seed, adapter.base_location)
            PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(part)
            finish(part)

"""Teachers loaded in some way, what they say of every position, and adapters for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from cache_builder.capture.teacher import Teacher
from cache_builder.config import CacheExperiment
from cache_builder.format.manifest import TargetOptions
from cache_builder.models.adapters import SharedBase
from cache_builder.targets.sparse import Targets
from tests.support.caches import Teaching

OPTIONS = TargetOptions(top_k=4, top_p=1.0, tail_samples=2, logp_steps_per_nat=256, seed=0)


def say(teaching: Teaching, location: Path | str, base: SharedBase | None = None, **options: Any) -> Targets:
    """What a checkpoint says of every position, loaded with these options of [teacher]."""
    teacher = load(teaching, location, base, **options)
    targets = teacher.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS)
    teacher.release()
    return targets


def load(teaching: Teaching, location: Path | str, base: SharedBase | None = None, **options: Any) -> Teacher:
    values = teaching.experiment("unused").model_dump()
    experiment = CacheExperiment.model_validate({**values, "teacher": {**values["teacher"], **options}})
    return Teacher(experiment, "step-2", str(location), teaching.tokenizer, "", base)


def assert_same(ours: Targets, theirs: Targets) -> None:
    for field in ("ids", "logp", "samples", "log_tail", "gold", "entropy"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)


def differ(ours: Targets, theirs: Targets) -> bool:
    return not np.array_equal(ours.gold, theirs.gold)


def save_adapters(base: Path, folder: Path, seed: int | None, **options: Any) -> Path:
    """Save LoRA adapters for a base: random and large enough to change what it says, or untrained without a seed."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **{"r": 2, **options})
    )
    generator = torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and seed is not None:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    model.save_pretrained(folder)
    return folder

"""What one run of the loop is, and the same as transformers' Trainer takes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from cache_builder.data.deployment import Deployment
from cache_builder.targets.tail import Tail
from trainer.config import TrainingConfig
from trainer.evaluation.selection import ValidationTasks

Watch = Callable[[Sequence[Mapping[str, Any]], int], None]


@dataclass(frozen=True)
class LoopSettings:
    """What one run of the loop is."""

    config: TrainingConfig
    output_dir: Path
    seed: int
    stages: int
    epochs_per_stage: int
    save_at: frozenset[int] = frozenset()
    """Steps after which a checkpoint is kept for good, as a teacher's are; else only the last two are kept."""
    divergence: str = "forward_kl"
    """A key of DIVERGENCES."""
    parameter: float | None = None
    """The divergence's, where it has one; TAID's is the t from which its rule moves it."""
    temperature: float = 1.0
    tail: Tail | None = None
    """What stands for the teacher's tail."""
    deployment: Deployment | None = None
    """What is written beside every model that is saved; None where nobody is to use them."""
    selection: ValidationTasks | None = None
    """What chooses the best state; the held-out loss where it is None."""
    watch: Watch | None = None
    """Told the log so far and the steps of the whole run after each held-out loss; what it raises ends the training."""


def training_arguments(settings: LoopSettings) -> TrainingArguments:
    """Return the arguments of `Trainer` for a run; evaluation and saving are decided by callbacks."""
    config = settings.config
    return TrainingArguments(
        output_dir=str(settings.output_dir),
        seed=settings.seed,
        num_train_epochs=settings.stages,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        lr_scheduler_type=config.lr_scheduler_type,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.logging_steps,
        report_to=config.report_to,
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=None if settings.save_at else 2,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        **{
            "dataloader_pin_memory": torch.cuda.is_available(),
            # only from page-locked memory; what uses a batch on the GPU comes after its copy, so the host need not wait
            "accelerator_config": {"non_blocking": torch.cuda.is_available()},
            "use_cpu": not torch.accelerator.is_available(),  # else several processes would each train alone
            **config.other_arguments,
        },
    )

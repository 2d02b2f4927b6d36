"""The loss runs inside the model's own forward, because DDP, FSDP and ZeRO only gather the head's weights there.

model(**batch, objective=Objective(…))   ──▶  LossOutput                training
model(**batch, read=f)                   ──▶  f(model, batch)           held-out losses, the schedule's probe
model(input_ids=…)                       ──▶  what it always was        generation, saving, everybody else
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cache_builder.data.batching import Batch
from cache_builder.models.lm_head import hidden_states_at, verify_head
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tail import Tail
from trainer.loss.fused import distillation_loss


@dataclass
class Objective:
    """What a batch's positions are trained towards."""

    targets: "Targets[Tensor] | None"
    divergence_weight_M: Tensor
    """[M] float32; whatever the loss is divided by is already in it."""
    ce_weight_M: Tensor
    """[M] float32, likewise."""
    divergence: str = "forward_kl"
    """A key of DIVERGENCES."""
    parameter: float | None = None
    """The divergence's, where it has one."""
    temperature: float = 1.0
    tail: Tail | None = None
    """What stands for the teacher's tail; unless given, the best of what the targets keep."""


def attach_objective(model: PreTrainedModel, vocab_size: int) -> None:
    """Teach a causal LM's forward the two calls above; a call without `objective` or `read` stays what it was.

    Raises:
        ModelError: the head is not one whose weights the loss can use (LoRA on it, quantised, an unknown family).
    """
    verify_head(model)
    plain_forward = model.forward
    # torch.compile takes the layers; the loss writes into buffers and has its gradients already, so it stays as it is.
    fused_loss = torch.compiler.disable(distillation_loss)

    def forward(
        *args: Any,
        objective: Objective | None = None,
        read: Callable[[PreTrainedModel, Batch], Any] | None = None,
        **batch: Any,
    ) -> Any:
        if read is not None:
            return read(model, Batch(**batch))  # type: ignore[typeddict-item]
        if objective is None:
            return plain_forward(*args, **batch)
        hidden_MD, head = hidden_states_at(model, Batch(**batch), vocab_size)  # type: ignore[typeddict-item]
        return fused_loss(
            hidden_MD,
            head,
            objective.targets,
            batch["label_M"],
            objective.divergence_weight_M,
            objective.ce_weight_M,
            divergence=objective.divergence,
            parameter=objective.parameter,
            temperature=objective.temperature,
            tail=objective.tail,
        )

    model.forward = forward

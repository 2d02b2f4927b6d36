"""The fused loss: every divergence and cross-entropy, with their gradients written in the forward pass.

    for a chunk of positions:   z = hidden @ weightᵀ                                      matmul 1
        gather z at support, samples, gold; mask the support; one max/exp/sum pass gives each block's logsumexp
        u = (z_support, lse_blocks) − logsumexp = the student's log-probabilities on K+G outcomes
        value, gradient g = divergence(target's outcomes, u)                             cache_builder/targets
        z ← weight_d·g + weight_ce·q on the support, a block's share · q(v | block) elsewhere, − weight_ce at gold
        grad_hidden = z @ weight;   grad_weight += zᵀ @ hidden                            matmuls 2 and 3

Nothing of size [positions, vocabulary] outlives a chunk, there is no 1 − Σ and no division by the tail's mass.

A block is a run of ids, so its part of the pass is over a slice; the tail as one outcome is the one block that is the
vocabulary. Forward KL with tail samples (temperature 1) takes the target p on the support and P/S on each sample. Its
gradient q − p̂ is unbiased for the full KL, and so is its value −Σ p̂ log q − H(p), because H(p) is the entropy that the
cache stores of the full distribution; at one position the value may therefore be negative. A mixture of both tails
(cache_builder/targets/tail.py) is the mixture of both losses; of a pooled one λ is given, and what its rule
(trainer/methods/pooled.py) needs of the positions is summed on the way. Every other case is on the outcomes. A
temperature T ≠ 1 tempers both sides there, so that the gradient still vanishes where student and teacher agree (the
samples were drawn at T = 1 and are left out); the value is times T², the gradient T·(q_T − p_T).

Shapes: M positions, C positions of a chunk, D hidden size, V vocabulary, K slots, S tail samples, G blocks of the tail,
O = K + G outcomes.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cache_builder.models.lm_head import Head, compute_weight, matmul, project
from cache_builder.targets.divergences import DIVERGENCES, Divergence
from cache_builder.targets.outcomes import outcomes, temper
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tail import Kept, Tail, choose_tail
from cache_builder.targets.tensors import nothing
from trainer.loss.sampled import sample_weight, sampled_kl


class LossOutput(NamedTuple):
    """The loss and what it is made of."""

    loss: Tensor
    """Scalar, Σ divergence_weight·D + ce_weight·CE; differentiable through hidden states, head weight and bias."""
    divergence_M: Tensor
    """[M], detached; times T² at temperature T."""
    ce_M: Tensor
    """[M], detached; of the true token, always at temperature 1."""
    sample_weight_M: Tensor
    """[M], detached; λ, the share of the tail's target that the samples stand for."""
    tail_error_V: Tensor
    """[V] of a pooled tail, else [0]; detached; Σ divergence_weight · (the samples' target − that of the outcomes)."""
    tail_noise: Tensor
    """Scalar, detached; the part of ‖tail_error_V‖² that the draws' variance alone gives, 0 where it is [0]."""


@dataclass(frozen=True)
class _Kind:
    """What is computed of every position."""

    divergence: Divergence
    parameter: float | None
    temperature: float
    tail: Tail


def distillation_loss(
    hidden_MD: Tensor,
    head: Head,
    targets: Targets | None,
    label_M: Tensor,
    divergence_weight_M: Tensor,
    ce_weight_M: Tensor,
    *,
    divergence: str = "forward_kl",
    parameter: float | None = None,
    temperature: float = 1.0,
    tail: Tail | None = None,
    chunk_positions: int | None = None,
) -> LossOutput:
    """Compute Σ_m divergence_weight_m · D_m + ce_weight_m · CE_m; without targets plain cross-entropy.

    Whatever the loss is to be divided by belongs into the weights, so that no pass over the gradients is needed for it.

    Args:
        tail: what stands for the teacher's tail; unless given, the best of what the targets keep for this divergence.
    """
    row = DIVERGENCES[divergence]
    if (row.setting is None) != (parameter is None):
        raise ValueError(
            f"the divergences that have a parameter need it, no other takes one; {divergence=}, {parameter=}"
        )
    if targets is None:
        targets, tail = nothing(len(label_M), hidden_MD.device), None
    tail = _checked(tail, targets, row.samples and temperature == 1.0)
    if chunk_positions is None:
        chunk_positions = 512 if hidden_MD.device.type == "cpu" else 1024
    return LossOutput(
        *_FusedLoss.apply(
            hidden_MD,
            head.weight_VD,
            head.bias_V,
            head,
            targets,
            label_M,
            divergence_weight_M,
            ce_weight_M,
            _Kind(row, parameter, temperature, tail),
            chunk_positions,
            torch.is_grad_enabled(),
        )
    )


def _checked(tail: Tail | None, targets: Targets[Tensor], takes_samples: bool) -> Tail:
    """Return the tail to take; refuse one that needs what the targets do not keep, or a divergence does not take."""
    kept = Kept(samples=targets.samples.shape[1], blocks=targets.log_blocks.shape[1])
    if tail is None:
        return choose_tail("auto", kept, takes_samples)
    lacks = {
        "the tail's mass by blocks": tail.by_block and not kept.blocks,
        "tail samples": tail.takes_samples and not kept.samples,
        "Σ p(v | tail)²": (tail.sample_weight is None or tail.pooled) and not targets.log_collision.shape[1],
        "forward KL at temperature 1": tail.takes_samples and not takes_samples,
    }
    for what, lacking in lacks.items():
        if lacking:
            raise ValueError(f"{tail} needs {what}")
    return tail


class _FusedLoss(torch.autograd.Function):
    """Loss and gradients in one pass; backward only scales what the forward pass has saved."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        targets: Targets,
        label_M: Tensor,
        divergence_weight_M: Tensor,
        ce_weight_M: Tensor,
        kind: _Kind,
        chunk_positions: int,
        with_grad: bool,
    ) -> tuple[Tensor, ...]:
        needs_grad = [needed and with_grad for needed in ctx.needs_input_grad[:3]]
        compute_VD = compute_weight(head)
        if compute_VD.dtype == torch.float16:  # one logit's gradient, a weight of 1/N times q, is below its range
            compute_VD = compute_VD.float()
        device_type = compute_VD.device.type
        real = torch.float64 if compute_VD.dtype == torch.float64 else torch.float32
        positions = len(hidden_MD)
        with torch.autocast(device_type, enabled=False):
            grad_hidden_MD = torch.empty_like(hidden_MD, dtype=real) if needs_grad[0] else None
            grad_weight_VD = torch.empty_like(weight_VD, dtype=real) if needs_grad[1] else None
            if grad_weight_VD is not None:  # the first chunk overwrites the vocabulary's rows
                grad_weight_VD[head.vocab_size if positions else 0 :] = 0.0
            grad_bias_V = None if bias_V is None or not needs_grad[2] else torch.zeros_like(bias_V, dtype=real)
            divergence_M, ce_M, sample_weight_M, noise_M = torch.empty(
                4, positions, dtype=real, device=hidden_MD.device
            )
            error_V = torch.zeros(head.vocab_size if kind.tail.pooled else 0, dtype=real, device=hidden_MD.device)
            logits_CV = torch.empty(
                min(chunk_positions, positions), head.vocab_size, dtype=real, device=hidden_MD.device
            )
            for start in range(0, positions, chunk_positions):
                chunk = slice(start, start + chunk_positions)
                hidden_CD = hidden_MD[chunk].to(compute_VD.dtype)
                z_CV = project(hidden_CD, head, compute_VD, out=logits_CV[: len(hidden_CD)])
                slope_CV = None if head.softcap is None else (z_CV / head.softcap).square_().neg_().add_(1.0)
                divergence_M[chunk], ce_M[chunk], sample_weight_M[chunk], noise_M[chunk] = _to_gradient(
                    z_CV,
                    targets[chunk].in_precision(real),
                    label_M[chunk],
                    divergence_weight_M[chunk].to(real),
                    ce_weight_M[chunk].to(real),
                    kind,
                    error_V,
                    scale=head.scale,
                )
                if slope_CV is not None:
                    z_CV *= slope_CV
                z_CV = z_CV.to(compute_VD.dtype)
                if grad_hidden_MD is not None:
                    matmul(z_CV, compute_VD, out=grad_hidden_MD[chunk])
                if grad_weight_VD is not None:
                    _accumulate(grad_weight_VD[: head.vocab_size], z_CV.T, hidden_CD, first=start == 0)
                if grad_bias_V is not None:
                    grad_bias_V[: head.vocab_size] += z_CV.sum(0, dtype=real)
            loss = (divergence_weight_M * divergence_M).sum() + (ce_weight_M * ce_M).sum()
        ctx.grads = [
            grad if grad is None or value is None or value.dtype == torch.float16 else grad.to(value.dtype)
            for grad, value in ((grad_hidden_MD, hidden_MD), (grad_weight_VD, weight_VD), (grad_bias_V, bias_V))
        ]
        ctx.dtypes = [None if value is None else value.dtype for value in (hidden_MD, weight_VD, bias_V)]
        found = divergence_M, ce_M, sample_weight_M, error_V, noise_M.sum()
        ctx.mark_non_differentiable(*found)
        return loss, *found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_loss = grad_outputs[0]
        if ctx.grads is None:
            raise RuntimeError("this loss keeps its gradients once; call backward() once per loss")
        grads, ctx.grads = ctx.grads, None
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:  # reading it on a GPU would wait for the GPU
            grads = [None if grad is None else grad.mul_(grad_loss.to(grad.dtype)) for grad in grads]
        # float16 is only cast to now: the loss scaler's factor is what brings the gradients into its range
        grads = [None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)]
        return (*grads, None, None, None, None, None, None, None, None)


def _accumulate(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor, *, first: bool) -> None:
    """Add a product to `total_VD`, in its float32 whatever the factors' dtype; the first one replaces what is there."""
    if left_VC.dtype == total_VD.dtype:
        torch.addmm(total_VD, left_VC, right_CD, beta=0.0 if first else 1.0, out=total_VD)
    elif first:
        matmul(left_VC, right_CD, out=total_VD)
    else:
        total_VD += matmul(left_VC, right_CD)


def _to_gradient(
    z_CV: Tensor,
    targets: "Targets[Tensor]",
    label_C: Tensor,
    divergence_weight_C: Tensor,
    ce_weight_C: Tensor,
    kind: _Kind,
    error_V: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Replace logits in place by `scale` times the loss's gradient; return the divergence, CE, λ and noise, each [C].

    A pooled tail's error is added to `error_V`.
    """
    temperature, slots = kind.temperature, targets.ids.shape[1]
    edges = targets.edges if kind.tail.by_block else (0, z_CV.shape[1])
    used_CK = targets.logp > -torch.inf
    # Whatever is read of single logits is read first: from here on the same memory holds exp(z), then the gradient.
    z_label_C = z_CV.gather(1, label_C[:, None])[:, 0]
    z_support_CK = z_CV.gather(1, targets.ids).masked_fill_(~used_CK, -torch.inf)
    z_samples_CS = z_CV.gather(1, targets.samples)

    # The tail's logsumexp from the tail alone: 1 − Σ over the support is off by 1 % where the tail is a billionth. Each
    # block's from its own maximum: beside another's a block of little mass would be 0, and log 0 an infinite loss.
    z_CV.scatter_(1, targets.ids, -torch.inf)
    blocks = [z_CV[:, start:end] for start, end in pairwise(edges)]
    largest_CG = torch.stack([block.amax(1) for block in blocks], dim=1)
    largest_CG.masked_fill_(largest_CG == -torch.inf, 0.0)  # the support is the whole block; −inf − (−inf) is NaN
    for block, largest_C1 in zip(blocks, largest_CG.split(1, dim=1), strict=True):
        block.sub_(largest_C1)
    z_CV.exp_()
    sum_CG = torch.stack([block.sum(1) for block in blocks], dim=1)
    u_CO = torch.cat([z_support_CK, largest_CG + sum_CG.log()], dim=1)
    top_C = u_CO.amax(1)  # shifting by it first keeps digits that the logits' size would cost
    u_CO -= top_C[:, None]
    log_sum_C = u_CO.logsumexp(1)
    u_CO -= log_sum_C[:, None]
    ce_C = log_sum_C - (z_label_C - top_C)

    logp_CO = outcomes(targets.logp, targets.log_blocks if kind.tail.by_block else targets.log_tail[:, None])
    sample_weight_C, noise_C = torch.full_like(ce_C, kind.tail.sample_weight or 0.0), torch.zeros_like(ce_C)
    if kind.tail.takes_samples:
        logq_samples_CS = z_samples_CS - top_C[:, None] - log_sum_C[:, None]
        if kind.tail.sample_weight is None:
            norm_CG = torch.stack([torch.linalg.vector_norm(block, dim=1) for block in blocks], dim=1) / sum_CG
            sample_weight_C = sample_weight(
                targets, logp_CO[:, slots:], u_CO[:, slots:], logq_samples_CS, norm_CG, edges
            )
        divergence_C, grad_CO, share_C, each_C = sampled_kl(
            logp_CO, u_CO, slots, logq_samples_CS, targets.entropy, sample_weight_C
        )
        if kind.tail.pooled:
            # A block holds exp(z − largest), so these weights times it are Σ w · P_g · q(v | block): one more reading.
            fill_CG = torch.where(sum_CG > 0, logp_CO[:, slots:].exp() / sum_CG, 0.0)
            for block, part_v, fill_C in zip(
                blocks, error_V.split([end - start for start, end in pairwise(edges)]), fill_CG.unbind(1), strict=True
            ):
                torch.addmv(part_v, block.T, divergence_weight_C * fill_C, alpha=-1.0, out=part_v)
            drawn_C = divergence_weight_C * each_C
            error_V.scatter_add_(0, targets.samples.flatten(), drawn_C.repeat_interleave(targets.samples.shape[1]))
            noise_C = drawn_C.square() * targets.samples.shape[1] * (1 - targets.log_collision[:, 0].exp())
    else:
        # Both sides are tempered, or the gradient would not vanish where they agree: value · T², gradient · T.
        divergence_C, grad_CO = kind.divergence(temper(logp_CO, temperature), temper(u_CO, temperature), kind.parameter)
        divergence_C, grad_CO = divergence_C * temperature**2, grad_CO * temperature

    # The weights, and the head's own scale, go into what is [C, O] so that no pass over [C, V] is spent on them.
    divergence_weight_C, ce_weight_C = divergence_weight_C * scale, ce_weight_C * scale
    grad_CO = divergence_weight_C[:, None] * grad_CO + ce_weight_C[:, None] * u_CO.exp()
    # z holds exp(z − largest), so a block's gradient · q(v | block) is one multiplication by gradient / Σ. An empty
    # block has a gradient of zero, not 0 / 0.
    factor_CG = torch.where(sum_CG > 0, grad_CO[:, slots:] / sum_CG, 0.0)
    for block, factor_C1 in zip(blocks, factor_CG.split(1, dim=1), strict=True):
        block.mul_(factor_C1)
    # An unused slot repeats slot 0's id and must write its value: which of two writes stays is not defined.
    z_CV.scatter_(1, targets.ids, torch.where(used_CK, grad_CO[:, :slots], grad_CO[:, :1]))
    if kind.tail.takes_samples:  # added, not written: a token may be drawn several times
        z_CV.scatter_add_(1, targets.samples, -(divergence_weight_C * share_C)[:, None].expand_as(targets.samples))
    z_CV.scatter_add_(1, label_C[:, None], -ce_weight_C[:, None])
    return divergence_C, ce_C, sample_weight_C, noise_C

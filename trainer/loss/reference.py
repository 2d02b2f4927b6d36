"""The loss by the book: whole rows of float64 probabilities and autograd, none of the kernel's formulas; slow.

    D(p, q) with p, q on the K + 1 outcomes, or p̂ over the vocabulary where samples stand for the tail
    loss = Σ_m divergence_weight_m · D_m + ce_weight_m · CE_m

What `fused.py` computes is tested against this, and a kernel of anybody's can be.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cache_builder.models.lm_head import Head
from cache_builder.targets.divergences import DIVERGENCES
from cache_builder.targets.sparse import Targets
from trainer.loss.fused import LossOutput


def reference_loss(
    hidden_MD: Tensor,
    head: Head,
    targets: Targets[Tensor],
    label_M: Tensor,
    divergence_weight_M: Tensor,
    ce_weight_M: Tensor,
    *,
    divergence: str = "forward_kl",
    parameter: float | None = None,
    temperature: float = 1.0,
) -> LossOutput:
    """Compute in float64 what `distillation_loss` computes; here all three results are differentiable."""
    q_MV = _student(hidden_MD, head)
    sampled = DIVERGENCES[divergence].samples and temperature == 1.0 and targets.samples.shape[1] > 0
    values = []
    for m, q_V in enumerate(q_MV):
        if sampled:
            values.append(-(_sampled_teacher(targets, m, len(q_V)) * q_V.log()).sum() - targets.entropy[m])
        else:
            p, q = (_tempered(mass, temperature) for mass in _outcomes(targets, m, q_V))
            values.append(PLAIN[divergence](p, q, parameter or 0.0) * temperature**2)
    divergence_M = torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)
    ce_M = -q_MV.log().gather(1, label_M[:, None])[:, 0]
    loss = (divergence_weight_M * divergence_M + ce_weight_M * ce_M).sum()
    return LossOutput(loss, divergence_M, ce_M)


def _student(hidden_MD: Tensor, head: Head) -> Tensor:
    logits_MV = hidden_MD.double() @ head.weight_VD.double()[: head.vocab_size].T
    if head.bias_V is not None:
        logits_MV = logits_MV + head.bias_V.double()[: head.vocab_size]
    logits_MV = logits_MV * head.scale
    if head.softcap is not None:
        logits_MV = head.softcap * torch.tanh(logits_MV / head.softcap)
    return torch.softmax(logits_MV, dim=1)


def _sampled_teacher(targets: Targets[Tensor], m: int, vocab_size: int) -> Tensor:
    """Position m's target [V] where each of the S samples stands for a share of the tail's mass."""
    used = targets.logp[m] > -torch.inf
    p_V = torch.zeros(vocab_size, dtype=torch.float64)
    p_V[targets.ids[m][used]] = targets.logp[m][used].double().exp()
    for sample in targets.samples[m]:
        p_V[sample] += targets.log_tail[m].double().exp() / targets.samples.shape[1]
    return p_V


def _outcomes(targets: Targets[Tensor], m: int, q_V: Tensor) -> tuple[Tensor, Tensor]:
    """Masses of teacher and student on position m's K + 1 outcomes; without the tail where nothing is in it."""
    used = targets.logp[m] > -torch.inf
    ids = targets.ids[m][used]
    outside = torch.ones(len(q_V), dtype=torch.bool)
    outside[ids] = False
    p = torch.cat([targets.logp[m][used].double().exp(), targets.log_tail[m].double().exp()[None]])
    q = torch.cat([q_V[ids], q_V[outside].sum()[None]])
    return (p, q) if outside.any() else (p[:-1], q[:-1])


def _tempered(mass: Tensor, temperature: float) -> Tensor:
    powered = mass ** (1 / temperature)
    return powered / powered.sum()


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return (torch.special.xlogy(a, a) - a * b.log()).sum()


def _taid(p: Tensor, q: Tensor, t: float) -> Tensor:
    mixed = q.detach() ** (1 - t) * p**t
    return _kl(mixed / mixed.sum(), q)


def _jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    m = beta * p + (1 - beta) * q
    return beta * _kl(p, m) + (1 - beta) * (q * (q.log() - m.log())).sum()


PLAIN: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward_kl": lambda p, q, _: _kl(p, q),
    "reverse_kl": lambda p, q, _: (q * (q.log() - p.log())).sum(),
    "taid": _taid,
    "jsd": _jsd,
}
"""Each divergence of DIVERGENCES in its textbook form, from masses on outcomes."""

"""What a record keeps of a teacher's distribution, and the p̂ that a student is then trained towards.

    p ─▶ support S, rounded to steps │ tail's mass P │ its shares by blocks of ids │ draws from it │ Σ p(v | tail)²

    fill       P_g · q(v | block g)                        one block: the bucket, whose K + 1 outcomes
    samples    P/m on each draw
    mixed      (1 − λ) · fill + λ · samples
    adaptive   mixed, λ = B / (B + V/m) at each position    B = ‖p − fill‖², V = 1 − ‖p‖², both of the tail as a whole
    pooled     mixed, one λ for a step, by the trainer's rule (trainer/methods/pooled.py): an error of the fill that the
               positions of a step share counts as it adds up
    none       nothing, and S renormalised

Written by the book; the fused loss and the format have their own ways. Shares of blocks are rounded to 1/`block_steps`
nat of their logarithm, one byte each, and normalised again; Σ p² to 1/16 nat.

Shapes: C positions of a chunk, V vocabulary, X columns of it, T slots that were read, K slots, S draws, G blocks.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cache_builder.format.records import RecordLayout, dequantise, encode_records, quantise
from cache_builder.format.zarr_shards import ArraySpec, encode_shard
from cache_builder.targets.sparse import Targets
from tools.cache_curve.facts import Facts

LARGE_VOCABULARY = 128_256
CHUNK_POSITIONS = 4096


@dataclass(frozen=True)
class Target:
    """One way to store a position and to train from it."""

    top_k: int
    tail: Literal["fill", "samples", "mixed", "adaptive", "pooled", "none"] = "fill"
    samples: int = 0
    blocks: int = 1
    edges: Literal["log", "equal", "mass", "frequency"] = "log"
    weight: float = 0.0
    """λ of `mixed`."""
    shared: int = 1
    """`adaptive` takes V/(m · shared): how many positions of a step are thought to have the same error of the fill."""
    top_p: float = 1.0
    steps_per_nat: int = 128
    block_steps: int = 8
    peer: str = ""
    peer_bytes: float = 0.0

    @property
    def label(self) -> str:
        """Name it as the tables do."""
        if self.peer:
            return self.peer
        parts = [f"top-{self.top_k}" if self.top_k else ""]
        parts += [f"{self.blocks} blocks" if self.blocks > 1 else "bucket" if self.tail == "fill" else ""]
        parts += [f"{self.samples} samples" if self.samples and self.tail != "fill" else ""]
        text = " + ".join(part for part in parts if part)
        text += {"mixed": f", λ = {self.weight}", "adaptive": ", adaptive", "pooled": ", pooled"}.get(self.tail, "")
        text += f", shared {self.shared}" if self.shared > 1 else ""
        text += f", edges by {self.edges}" if self.edges != "log" else ""
        text += f", blocks to 1/{self.block_steps}" if self.block_steps != 8 else ""
        return text + (f", slots to 1/{self.steps_per_nat}" if self.steps_per_nat != 128 else "")

    @property
    def map(self) -> str:
        """Name the map from ids to blocks."""
        return f"{self.edges} {self.blocks}"


@dataclass(frozen=True)
class Kept:
    """What is left of a chunk of p."""

    ids_CK: Tensor
    p_CK: Tensor
    used_CK: Tensor
    logp_CK: Tensor
    """Rounded; −inf where a slot is not used."""
    tail_C1: Tensor
    shares_CG: Tensor
    """Rounded."""
    code_CG: np.ndarray
    squares_C1: Tensor
    draws_CS: Tensor
    slots_CS: Tensor
    """Which of the slots read a draw is, −1 where it lies outside them."""


def keep(target: Target, facts: Facts, block_V: Tensor, uniforms_CS: Tensor) -> Kept:
    """Take of what was read off a chunk what a record of this kind holds."""
    k = target.top_k
    p_CK, ids_CK = facts.at_ids_CT[:, :k], facts.ids_CT[:, :k]
    used_CK = p_CK.cumsum(1) - p_CK < (target.top_p if target.top_p < 1 else 2.0)
    outside_CT = facts.at_ids_CT.clone()
    outside_CT[:, :k].masked_fill_(used_CK, 0.0)
    rest_C1 = facts.mass_CG[target.map].sum(1, keepdim=True)
    tail_C1 = outside_CT.sum(1, keepdim=True) + rest_C1
    mass_CG = with_slots(facts.mass_CG[target.map], outside_CT, block_V[facts.ids_CT])
    squares_C1 = facts.squares_CG[target.map].sum(1, keepdim=True) + outside_CT.square().sum(1, keepdim=True)
    squares_C1 = (squares_C1 / tail_C1.square()).clamp(min=1e-6, max=1.0)
    draws_CS, slots_CS = _draw(facts, outside_CT, rest_C1, uniforms_CS[:, : target.samples])

    ids_CK = torch.where(used_CK, ids_CK, ids_CK[:, :1])
    rounded = dequantise(quantise(p_CK.log().numpy(), target.steps_per_nat), target.steps_per_nat)
    logp_CK = torch.from_numpy(rounded).masked_fill(~used_CK, -torch.inf)
    total_C1 = logp_CK.exp().sum(1, keepdim=True) + tail_C1
    share_CG = mass_CG / mass_CG.sum(1, keepdim=True)
    code_CG = np.clip(np.rint(-np.log(np.maximum(share_CG.numpy(), 1e-30)) * target.block_steps), 0, 255)
    shares_CG = torch.from_numpy(np.exp(-code_CG / target.block_steps)) * (share_CG > 0)
    return Kept(
        ids_CK,
        p_CK,
        used_CK,
        logp_CK - total_C1.log(),
        tail_C1 / total_C1,
        shares_CG / shares_CG.sum(1, keepdim=True),
        code_CG.astype(np.uint8),
        (squares_C1.log() * 16).round().div(16).exp(),
        draws_CS,
        slots_CS,
    )


def head_of_kept(kept: Kept, rows: int) -> Kept:
    """Return the first positions of a chunk."""
    return Kept(**{field.name: getattr(kept, field.name)[:rows] for field in fields(kept)})


def with_slots(rest_CG: Tensor, outside_CT: Tensor, block_CT: Tensor) -> Tensor:
    """Add to what lies outside all slots, by block, the slots outside the support; zeros stand for the others."""
    return rest_CG.scatter_add(1, block_CT, outside_CT)


def _draw(facts: Facts, outside_CT: Tensor, rest_C1: Tensor, uniforms_CS: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from the tail: a slot outside the support, or one of the draws that were made outside all slots."""
    cumulative_CO = torch.cat([rest_C1, outside_CT], dim=1).double().cumsum(1)
    goal_CS = uniforms_CS.double() * cumulative_CO[:, -1:]
    slots_CS = torch.searchsorted(cumulative_CO, goal_CS, right=True).clamp_(max=cumulative_CO.shape[1] - 1) - 1
    from_slots_CS = facts.ids_CT.gather(1, slots_CS.clamp(min=0))
    return torch.where(slots_CS < 0, facts.draws_CS[:, : slots_CS.shape[1]], from_slots_CS), slots_CS


def missing(
    target: Target,
    kept: Kept,
    student: Facts,
    columns_X: Tensor,
    place_V: Tensor,
    p_CX: Tensor,
    block_V: Tensor,
    weight: float = 0.0,
) -> Tensor:
    """Return p − p̂ [C, X] on some columns of the vocabulary: the error of the gradient for a student's logits.

    `place_V` is a column's place among them, X where it is none; `student` holds its probabilities on the same columns.
    `weight` is the λ of `pooled`.
    """
    out_CX = torch.empty(len(p_CX), len(columns_X) + 1)
    missing_CX = out_CX[:, :-1]
    logp_CK = kept.logp_CK
    weight_C1 = torch.ones_like(kept.tail_C1)
    if target.tail in ("none", "samples"):
        missing_CX.copy_(p_CX)
        logp_CK = logp_CK.log_softmax(1) if target.tail == "none" else logp_CK
    else:
        ratio_CG, weight_C1 = _fill(target, kept, student, block_V)
        if target.tail == "pooled":
            weight_C1 = torch.full_like(kept.tail_C1, weight)
        torch.mul(student.columns_CX, ratio_CG[:, block_V[columns_X]], out=missing_CX)
        missing_CX.mul_((weight_C1 - 1) * kept.tail_C1).add_(p_CX)
    if target.tail in ("samples", "mixed", "adaptive", "pooled"):
        each_CS = (-weight_C1 * kept.tail_C1 / target.samples).expand(kept.draws_CS.shape)
        out_CX.scatter_add_(1, place_V[kept.draws_CS], each_CS)
    # An unused slot repeats the first one's id: it must not overwrite, so it goes to the place that is none.
    place_CK = torch.where(kept.used_CK, place_V[kept.ids_CK], len(columns_X))
    out_CX.scatter_(1, place_CK, kept.p_CK - logp_CK.exp())
    return missing_CX


def _fill(target: Target, kept: Kept, student: Facts, block_V: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the student's tail is multiplied with in each block, so that its sum is 1 [C, G], and λ [C, 1]."""
    outside_CT = student.at_ids_CT.clone()
    outside_CT[:, : target.top_k].masked_fill_(kept.used_CK, 0.0)
    block_CT = block_V[student.ids_CT]
    q_CG = with_slots(student.mass_CG[target.map], outside_CT, block_CT)
    ratio_CG = kept.shares_CG.float() / q_CG.clamp(min=1e-30)
    if target.tail != "adaptive":
        return ratio_CG, torch.full_like(kept.tail_C1, target.weight)
    squares_CG = with_slots(student.squares_CG[target.map], outside_CT.square(), block_CT)
    at_draws_CS = student.at_draws_CS[:, : target.samples]
    at_draws_CS = torch.where(kept.slots_CS < 0, at_draws_CS, student.at_ids_CT.gather(1, kept.slots_CS.clamp(min=0)))
    both_C1 = (at_draws_CS * ratio_CG.gather(1, block_V[kept.draws_CS])).mean(1, keepdim=True)
    fill_squares_C1 = (squares_CG * ratio_CG.square()).sum(1, keepdim=True)
    bias_C1 = (kept.squares_C1 - 2 * both_C1 + fill_squares_C1).clamp(min=0.0)
    variance_C1 = (1 - kept.squares_C1) / (target.samples * target.shared)
    return ratio_CG, bias_C1 / (bias_C1 + variance_C1).clamp(min=1e-30)


def noise(target: Target, kept: Kept) -> Tensor:
    """Return [C] the variance that a position's draws bring into the sum over its step, of p̂ with λ = 1."""
    return (kept.tail_C1.square() * (1 - kept.squares_C1))[:, 0] / target.samples


def record_planes(target: Target, kept: Kept, facts: Facts, vocabulary: int, *, large: bool) -> np.ndarray:
    """Encode a chunk as the format would: u8 [planes, C]; `large` spreads the ids over a vocabulary of 128,256."""

    def ids(values: Tensor) -> np.ndarray:
        return (values * LARGE_VOCABULARY // vocabulary if large else values).numpy()

    targets = Targets(
        ids(kept.ids_CK),
        kept.logp_CK.float().numpy(),
        ids(kept.draws_CS),
        kept.tail_C1[:, 0].log().float().numpy(),
        facts.gold_C.numpy(),
        facts.entropy_C.numpy(),
    )
    planes = [encode_records(RecordLayout(target.top_k, target.samples, target.steps_per_nat), targets)]
    if target.blocks > 1:
        planes.append(kept.code_CG.T)
    if target.tail in ("adaptive", "pooled"):
        planes.append((-kept.squares_C1.log() * 16).round().clamp(0, 255).to(torch.uint8).T.numpy())
    return np.concatenate(planes)


def bytes_per_position(planes: np.ndarray) -> float:
    """Return what the format's codec needs for whole chunks of 4,096 positions."""
    whole = planes[:, : planes.shape[1] // CHUNK_POSITIONS * CHUNK_POSITIONS]
    if not whole.shape[1]:
        return float("nan")
    spec = ArraySpec((len(planes), whole.shape[1]), "uint8", 16 * CHUNK_POSITIONS, CHUNK_POSITIONS, 1)
    shards = (encode_shard(spec, whole[:, slice(*spec.span(number))]) for number in range(spec.n_shards))
    return sum(len(shard.data) for shard in shards) / whole.shape[1]

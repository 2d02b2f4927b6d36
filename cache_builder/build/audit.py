"""Is what the cache says what the model says? A checkpoint runs again on sampled sequences, in full.

    live p over the vocabulary ─┬─▶ KL(p ‖ cached) on the cached support and its tail: rounding, or another model
    cached p̂ = S + tail ────────┴─▶ a student q: its loss Σ −p̂ log q against Σ −p log q, and its head's gradient
                                    Σ (q − p̂) hᵀ against Σ (q − p) hᵀ: what support and tail samples miss

The student is another checkpoint of the teacher (the oldest, or the base model): a real model that differs from it.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.capture.teacher import Teacher
from cache_builder.config import CacheExperiment
from cache_builder.data.batching import collate, plan_batches
from cache_builder.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cache_builder.errors import CacheMismatchError, MissingError
from cache_builder.models.lm_head import hidden_states_at, project
from cache_builder.models.loading import weights_fingerprint
from cache_builder.targets.outcomes import adaptive_weight, bucket_kl, pooled_weight
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tail import Kept, Tail, choose_tail
from cache_builder.targets.tensors import to_torch

AGREEMENT_NATS = 5e-3
CHUNK_POSITIONS = 256


@dataclass(frozen=True)
class Audit:
    """What an audit found, over all positions of the sampled sequences."""

    checkpoint: str
    student: str
    positions: int
    kl_mean: float
    """Mean KL(live ‖ cached) in nats, on the cached support and its tail."""
    kl_largest: float
    value_error: float
    """Relative error of the student's summed cross-entropy against the teacher."""
    gradient_degrees: float
    """Angle between the student's head gradient from the cache and that from the full distribution."""
    gradient_length: float
    """Length of the former divided by that of the latter."""

    def rows(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs to print."""
        return [
            ("KL(live ‖ cached), mean, nats", f"{self.kl_mean:.3g}"),
            ("KL(live ‖ cached), largest, nats", f"{self.kl_largest:.3g}"),
            (f"loss of {self.student} as a student, relative error", f"{self.value_error:+.3%}"),
            (f"head gradient of {self.student}, angle to the full one", f"{self.gradient_degrees:.2f}°"),
            (f"head gradient of {self.student}, length against the full one", f"{self.gradient_length:.4f}"),
        ]

    def require_agreement(self) -> None:
        """Refuse a cache that does not say what the model says.

        Raises:
            CacheMismatchError: the mean KL is above 5e-3 nats, more than rounding and other hardware explain.
        """
        if not self.kl_mean <= AGREEMENT_NATS:
            raise CacheMismatchError(
                f"the cache does not say what checkpoint {self.checkpoint!r} says now: mean KL "
                f"{self.kl_mean:.3g} nats, at most {AGREEMENT_NATS} expected; compare dtype and "
                "attn_implementation with `footsteps cache info`"
            )


def audit_cache(
    experiment: CacheExperiment, checkpoints: list[tuple[str, str]], name: str | None = None, sequences: int = 64
) -> Audit:
    """Run a checkpoint (the last complete one unless named) on evenly spaced sequences and compare.

    Raises:
        CacheMismatchError: the checkpoint's weights, or the tokenizer, are not those that the cache was built from.
        MissingError: no such checkpoint, or its folder.
    """
    cache = open_cache(experiment.cache_url)
    if cache.manifest.imported is not None:
        raise CacheMismatchError(
            f"cache {cache.url} was imported from {cache.manifest.imported.format} rows, which do not say which "
            "weights gave them; there is nothing to compare"
        )
    complete = [known for known, _ in checkpoints if known in cache.checkpoints]
    name = name or (complete[-1] if complete else None)
    locations = dict(checkpoints)
    if name is None or name not in locations:
        raise MissingError(f"no checkpoint {name!r} to audit; complete are: {', '.join(complete) or 'none'}")
    recorded = cache.checkpoint(name).identity.weights_fingerprint
    found = weights_fingerprint(locations[name], experiment.run.seed)
    if found != recorded:
        raise CacheMismatchError(
            f"checkpoint {name!r} at {locations[name]} has weights {found[:12]}…, cache {cache.url} was built from "
            f"{recorded[:12]}…; audit with the same weights"
        )
    folder = experiment.output_dir / "tokenizer"
    location = str(folder) if folder.is_dir() else experiment.tokenizer.path or experiment.teacher.model
    tokenizer = load_tokenizer(location, experiment.teacher.trust_remote_code)
    cache.check_tokenizer(tokenizer_fingerprint(tokenizer), len(tokenizer))
    other = next((known for known, _ in checkpoints if known != name), None)
    student_name, student_location = (
        (other, locations[other]) if other else ("the base model", experiment.teacher.model)
    )
    teacher = Teacher(experiment, name, locations[name], tokenizer, found)
    student = Teacher(experiment, student_name, student_location, tokenizer, "")
    rows = np.unique(np.linspace(0, len(cache.corpus) - 1, min(sequences, len(cache.corpus))).astype(np.int64))
    return _compare(cache, teacher, student, rows)


@torch.no_grad()
def _compare(cache: Cache, teacher: Teacher, student: Teacher, rows: np.ndarray) -> Audit:
    kl: list[Tensor] = []
    full_loss = cached_loss = 0.0
    full_gradient: Tensor | None = None
    error_gradient: Tensor | None = None
    lengths = np.diff(cache.corpus.token_offsets)[rows]
    for chosen in plan_batches(lengths, teacher.batching.tokens):
        batch = collate(cache.corpus.sequences(rows[chosen]), teacher.batching.pad_id)
        targets = to_torch(cache.read(teacher.name, rows[chosen])).to(teacher.device)
        hidden_p, head_p = hidden_states_at(teacher.model, batch, teacher.vocab_size)
        hidden_q, head_q = hidden_states_at(student.model, batch, teacher.vocab_size)
        for start in range(0, len(hidden_p), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            logp_CV = project(hidden_p[chunk], head_p).float().log_softmax(1)
            logq_CV = project(hidden_q[chunk], head_q).to(teacher.device).float().log_softmax(1)
            kl.append(_support_kl(logp_CV, targets, chunk))
            cached_CV = _as_trained(targets[chunk], logq_CV)
            full_loss -= float((logp_CV.exp() * logq_CV).sum())
            cached_loss -= float((cached_CV * logq_CV).sum())
            states = hidden_q[chunk].to(teacher.device).float()
            full = (logq_CV.exp() - logp_CV.exp()).T @ states
            error = (logp_CV.exp() - cached_CV).T @ states
            full_gradient = full if full_gradient is None else full_gradient.add_(full)
            error_gradient = error if error_gradient is None else error_gradient.add_(error)
    assert full_gradient is not None and error_gradient is not None
    cached_gradient = full_gradient + error_gradient
    cosine = torch.nn.functional.cosine_similarity(
        full_gradient.flatten().double(), cached_gradient.flatten().double(), 0
    )
    all_kl = torch.cat(kl)
    return Audit(
        checkpoint=teacher.name,
        student=student.name,
        positions=len(all_kl),
        kl_mean=float(all_kl.mean()),
        kl_largest=float(all_kl.max()),
        value_error=cached_loss / full_loss - 1,
        gradient_degrees=float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))),
        gradient_length=float(cached_gradient.norm() / full_gradient.norm()),
    )


def _support_kl(logp_CV: Tensor, targets: Targets, chunk: slice) -> Tensor:
    """KL(live ‖ cached) [C] on the cached support and its tail; a repeated id counts once."""
    ids_CK, cached_CK = targets.ids[chunk], targets.logp[chunk]
    live_CK = logp_CV.gather(1, ids_CK).masked_fill(cached_CK == -torch.inf, -torch.inf)
    live_tail_C = logp_CV.scatter(1, ids_CK, -torch.inf).logsumexp(1)
    return bucket_kl(live_CK, live_tail_C, cached_CK, targets.log_tail[chunk])


def _as_trained(targets: Targets, logq_CV: Tensor) -> Tensor:
    """Return the default target [C, V]; of a pooled one the chunk stands for a step."""
    kept = Kept(samples=targets.samples.shape[1], blocks=targets.log_blocks.shape[1])
    tail, every = choose_tail("auto", kept, takes_samples=True), slice(0, len(logq_CV))
    if not tail.pooled:
        return dense_target(targets, every, logq_CV, tail)
    fill_CV, drawn_CV = (dense_target(targets, every, logq_CV, replace(tail, sample_weight=end)) for end in (0.0, 1.0))
    noise = (targets.log_tail.exp().square() * (1 - targets.log_collision[:, 0].exp())).sum() / kept.samples
    return fill_CV.lerp(drawn_CV, pooled_weight(float((drawn_CV - fill_CV).sum(0).square().sum()), float(noise)))


def dense_target(targets: Targets, chunk: slice, logq_CV: Tensor, tail: Tail) -> Tensor:
    """Return what a student is trained towards by forward KL, [C, V].

    Of outcomes of the tail: the student's own distribution within each, scaled to the teacher's mass.
    """
    targets = targets[chunk]
    mass_C1, samples_CS = targets.log_tail[:, None].exp(), targets.samples
    inside_CV = torch.zeros_like(logq_CV)  # of the tail, 1 in all
    if tail.sample_weight != 1:
        edges = targets.edges if tail.by_block else (0, logq_CV.shape[1])
        log_mass_CG = targets.log_blocks if tail.by_block else targets.log_tail[:, None]
        share_CG = (log_mass_CG - targets.log_tail[:, None]).exp().nan_to_num(0.0)
        outside_CV = logq_CV.scatter(1, targets.ids, -torch.inf)
        for block, (start, end) in enumerate(pairwise(edges)):
            within_Cv = outside_CV[:, start:end].softmax(1).nan_to_num(0.0)
            inside_CV[:, start:end] = within_Cv * share_CG[:, block, None]
    if tail.takes_samples:
        weight_C1: Tensor | float = tail.sample_weight or 0.0
        if tail.sample_weight is None:
            squares = targets.log_collision[:, 0].exp(), inside_CV.square().sum(1)
            weight_C1 = adaptive_weight(squares[0], inside_CV.gather(1, samples_CS), squares[1])[:, None]
        inside_CV *= 1 - weight_C1
        each = (weight_C1 * torch.ones_like(mass_C1) / samples_CS.shape[1]).expand(samples_CS.shape)
        inside_CV.scatter_add_(1, samples_CS, each)
    return (inside_CV * mass_C1).scatter_add_(1, targets.ids, targets.logp.exp())

"""The two terms of a schedule on the probe, for every checkpoint, and by sequence for the margin's error."""

from collections.abc import Callable

import numpy as np
import torch

from cache_builder.cache.reader import Cache
from cache_builder.targets.outcomes import bucket_kl
from trainer.methods.schedules import ProbeSums

Outcomes = tuple[torch.Tensor, torch.Tensor]
"""Log-probabilities of the probe's ids, f64 [P, R], and of the rest, f64 [P]."""
Terms = tuple[dict[str, float], dict[str, float], ProbeSums | None]


def outcomes(logp: np.ndarray, log_rest: np.ndarray) -> Outcomes:
    """Return what the probe holds, in double precision."""
    return torch.from_numpy(logp).double(), torch.from_numpy(log_rest).double()


def student_kl(student: Outcomes, teacher: Outcomes) -> torch.Tensor:
    """Return KL(q‖p_j), §5.2's own second term, f64 [P]."""
    return bucket_kl(*student, *teacher)


def teacher_kl(student: Outcomes, teacher: Outcomes) -> torch.Tensor:
    """Return KL(p_j‖q), what a stage of forward KL minimises, f64 [P]."""
    return bucket_kl(*teacher, *student)


def probe_terms(
    cache: Cache, best: str, student: Outcomes, distance: Callable[[Outcomes, Outcomes], torch.Tensor]
) -> Terms:
    """Return KL(p_best‖p_j) and the student's distance from every checkpoint j, means over the probe's positions."""
    known = {name: outcomes(cache.probe_logp(name), cache.probe_log_tail(name)) for name in cache.checkpoints}
    quality_P = {name: bucket_kl(*known[best], *teacher).numpy() for name, teacher in known.items()}
    distance_P = {name: distance(student, teacher).numpy() for name, teacher in known.items()}
    rows, offsets = cache.probe_rows, cache.corpus.position_offsets
    positions_S = offsets[rows + 1] - offsets[rows]
    sequence_P = np.repeat(np.arange(len(rows)), positions_S)
    total_S = {name: np.bincount(sequence_P, quality_P[name] + distance_P[name], len(rows)) for name in known}
    return (
        {name: float(values.mean()) for name, values in quality_P.items()},
        {name: float(values.mean()) for name, values in distance_P.items()},
        ProbeSums(total_S, positions_S),
    )

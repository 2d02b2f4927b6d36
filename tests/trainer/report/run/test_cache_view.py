"""Distances between checkpoints on the probe, as the report computes them, without torch."""

import numpy as np
import torch

from cache_builder.targets.outcomes import bucket_kl
from trainer.report.run.cache_view import probe_kl


def test_distances_on_the_probe_are_those_by_which_a_schedule_chooses() -> None:
    logits_3MV = np.random.default_rng(0).normal(size=(3, 50, 9))
    logits_3MV[1, 7, 2:] = logits_3MV[2, 7, 2:] = logits_3MV[0, 7, 2:] = -np.inf  # two ids are the whole vocabulary
    logp_3MV = logits_3MV - np.logaddexp.reduce(logits_3MV, axis=2, keepdims=True)
    probes = [
        (logp_MV[:, :4].astype(np.float32), np.logaddexp.reduce(logp_MV[:, 4:], axis=1).astype(np.float32))
        for logp_MV in logp_3MV
    ]
    tensors = [tuple(map(torch.from_numpy, probe)) for probe in probes]
    expected = [[float(bucket_kl(*p, *q).mean()) for q in tensors] for p in tensors]
    np.testing.assert_allclose(probe_kl(probes), expected, rtol=1e-4, atol=1e-7)
    assert (probe_kl(probes) >= 0).all() and (np.diag(probe_kl(probes)) == 0).all()

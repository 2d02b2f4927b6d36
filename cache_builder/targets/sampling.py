"""The uniform numbers behind the tail's draws: a pure function, so that what is drawn depends on nothing else."""

import hashlib

import numpy as np


def tail_uniforms(seed: int, checkpoint: str, positions: np.ndarray, samples: int) -> np.ndarray:
    """Return uniforms [M, S] in (0, 1), float64: a pure function of (seed, checkpoint, global position, sample).

    So what is drawn does not depend on batches, shards, processes, or how many samples there are.
    """
    digest = hashlib.sha256(f"tail samples\0{seed}\0{checkpoint}".encode()).digest()
    key = np.uint64(int.from_bytes(digest[:8], "little"))
    counter = np.asarray(positions, np.uint64)[:, None] * np.uint64(1 << 20) + np.arange(samples, dtype=np.uint64)
    return ((_splitmix(_splitmix(counter) ^ key) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _splitmix(state: np.ndarray) -> np.ndarray:
    """Scramble uint64s (Steele, Lea and Flood 2014, the finaliser of SplitMix64)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))

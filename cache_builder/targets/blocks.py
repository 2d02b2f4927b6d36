"""The tail's mass by blocks of token ids: the vocabulary cut at edges, the same ones for every position.

    edges       0 ──────── 256 ── 363 ── 516 ─ … ──────────── V       logarithmic: BPE numbers its tokens by frequency
    mass            P_1      P_2    P_3                               Σ P_g = P, the tail's: outside the support

A block is a run of ids, so a kernel sums it as a slice. No torch here: the edges are part of a cache's manifest.
"""

from itertools import pairwise

import numpy as np

FIRST_BLOCK = 256
"""Ids of the first block at most: in a byte-level BPE the bytes, which come before every merge."""


def block_edges(blocks: int, vocab_size: int) -> tuple[int, ...]:
    """Return blocks + 1 edges from 0 to the vocabulary's size, each block wider than the one before by a factor.

    Raises:
        ValueError: the vocabulary has fewer tokens than that.
    """
    if not 1 <= blocks <= vocab_size:
        raise ValueError(f"{blocks:,} blocks of {vocab_size:,} tokens")
    first = min(FIRST_BLOCK, vocab_size // blocks) if blocks > 1 else vocab_size
    ends = np.rint(np.geomspace(first, vocab_size, blocks)).astype(np.int64).tolist()
    edges = [0]
    for end in ends:
        edges.append(max(end, edges[-1] + 1))
    return tuple(edges)


def check_edges(edges: tuple[int, ...], vocab_size: int) -> None:
    """Refuse edges that do not cut the vocabulary into blocks.

    Raises:
        ValueError: they do not begin at 0, do not rise, or do not end at the vocabulary's size.
    """
    rising = all(start < end for start, end in pairwise(edges))
    if len(edges) < 2 or edges[0] != 0 or edges[-1] != vocab_size or not rising:
        raise ValueError(f"block edges must rise from 0 to {vocab_size:,}, got {str(edges)[:80]}")


def ids_inside(ids_MK: np.ndarray, used_MK: np.ndarray, edges: tuple[int, ...]) -> np.ndarray:
    """Count the support's ids in each block, i64 [M, G]."""
    block_MK = np.searchsorted(np.asarray(edges[1:]), ids_MK, side="right")
    counts_MG = np.zeros((len(ids_MK), len(edges) - 1), np.int64)
    np.add.at(counts_MG, (np.arange(len(ids_MK))[:, None], block_MK), used_MK)
    return counts_MG

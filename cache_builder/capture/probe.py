"""Some rows of a corpus through one model, batch by batch, and what it says of the probe's positions.

    rows [P], rising ─▶ batches of like length ─▶ one forward pass each ─▶ places among all positions of `rows`, [M]

Shapes: P rows, M positions of all of them, m those of one batch, R probe ids.
"""

from collections.abc import Callable, Iterator

import numpy as np

from cache_builder.data.batches import Batching
from cache_builder.data.batching import Batch
from cache_builder.positions import counts_of, offsets_of, positions_of
from cache_builder.sequences import NumberedSequences, Sequences

ReadProbe = Callable[[np.ndarray, Batch, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(rows of the batch, batch, ids [m, R]) to log-probabilities [m, R] and the log of the mass outside them [m]."""


def batches_of(corpus: Sequences, rows: np.ndarray, batching: Batching) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield each batch of `rows` once, with its rows in its own order."""
    for members in batching.plan(counts_of(corpus.token_offsets, rows)):
        yield rows[members], batching.collate([corpus.sequence(int(row)) for row in rows[members]])


def placed_batches_of(
    corpus: NumberedSequences, rows: np.ndarray, batching: Batching
) -> Iterator[tuple[np.ndarray, np.ndarray, Batch]]:
    """Yield each batch of rising `rows` with the places [m] of its positions among those of all of them."""
    offsets = offsets_of(counts_of(corpus.position_offsets, rows))
    for chosen, batch in batches_of(corpus, rows, batching):
        yield chosen, positions_of(offsets, np.searchsorted(rows, chosen)), batch


def run_probe(
    read: ReadProbe, corpus: NumberedSequences, rows: np.ndarray, ids_MR: np.ndarray, batching: Batching
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities f32 [M, R] at the probe's ids, and the log of the mass outside them f32 [M]."""
    logp_MR, log_rest_M = np.empty(ids_MR.shape, np.float32), np.empty(len(ids_MR), np.float32)
    for chosen, places, batch in placed_batches_of(corpus, rows, batching):
        logp_MR[places], log_rest_M[places] = read(chosen, batch, ids_MR[places])
    return logp_MR, log_rest_M

"""The loss of every sequence of a corpus under one model: −Σ log p(true token) over its positions, nats."""

from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.progress import track

from cache_builder.capture.capture import sequence_losses
from cache_builder.data.batches import Batching
from cache_builder.data.batching import Batch
from cache_builder.narration import manner
from cache_builder.sequences import Sequences


def corpus_losses(
    gold_logp: Callable[[Batch], np.ndarray],
    corpus: Sequences,
    batching: Batching,
    *,
    part: tuple[int, int] = (0, 1),
    description: str | None = None,
) -> np.ndarray:
    """Return the loss of every sequence, f64 [n]; the batches of other parts are left zero.

    Every part runs as many batches as the others, so that processes whose model is sharded stay in step.
    """
    index, parts = part
    losses = np.zeros(len(corpus.token_offsets) - 1)
    batches = batching.plan(np.diff(corpus.token_offsets))
    rounds = range(-(-len(batches) // parts))
    shown = manner() == "text" and Console().is_terminal
    for turn in track(rounds, description=description) if description and shown else rounds:
        number = turn * parts + index
        rows = batches[min(number, len(batches) - 1)]
        batch = batching.collate([corpus.sequence(int(row)) for row in rows])
        values = sequence_losses(batch, gold_logp(batch), len(rows))
        if number < len(batches):
            losses[rows] = values
    return losses

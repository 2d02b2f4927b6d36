"""Batches of random tokens, and the model's own log-probabilities at their positions: the yardstick of capture."""

import numpy as np
import torch
from torch import Tensor, nn

from cache_builder.data.batching import Batch, collate
from cache_builder.targets.sampling import tail_uniforms

VOCABULARY = 300  # of the model's 304 rows


def make_batch(seed: int = 0, lengths: tuple[int, ...] = (9, 24, 5, 13)) -> Batch:
    return collate(make_sequences(seed, lengths), pad_id=1)


def make_sequences(seed: int = 0, lengths: tuple[int, ...] = (9, 24, 5, 13)) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        (generator.integers(0, VOCABULARY, length).astype(np.uint32), np.arange(length) >= length // 2)
        for length in lengths
    ]


def uniforms(batch: Batch, samples: int = 4) -> np.ndarray:
    return tail_uniforms(0, "checkpoint-1", np.arange(len(batch["label_M"])), samples)


def dense_logp(model: nn.Module, batch: Batch) -> Tensor:
    """[M, V] in float64, from the model's own logits."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.log_softmax(logits.flatten(0, 1)[batch["hidden_index_M"], :VOCABULARY].double(), dim=1)

"""The only padding and the only shift, for capture and for training.

    token      t0  t1  t2  t3  pad        B sequences, right-padded to T
    completion  0   0   1   1             t2 and t3 are targets …
    hidden_index    1   2                 … predicted from the hidden states of t1 and t2 (flat index into [B·T])
    label           t2  t3                row m of a target is the distribution of the token `label[m]`

Shapes: B sequences, T tokens, M positions of the batch, ordered by (sequence, token).
"""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from cache_builder.positions import is_position

PASS_PART = 64
"""A forward pass counts as this part of its budget's tokens, besides those that it takes."""


class Batch(TypedDict):
    """What a forward pass at positions needs; every tensor is int64."""

    input_ids: torch.Tensor
    """[B, T]"""
    attention_mask: torch.Tensor
    """[B, T], by length and never by id, because the pad token may be eos."""
    position_ids: NotRequired[torch.Tensor]
    """[B, T], of a packed batch alone (`packing.py`), whose rows hold several sequences; then the model takes these in
    place of the mask."""
    hidden_index_M: torch.Tensor
    """[M], flat index into [B·T] of the hidden state that predicts the position."""
    label_M: torch.Tensor
    """[M], the true token."""
    sequence_M: torch.Tensor
    """[M], which of the B sequences the position belongs to."""


BATCH_KEYS = tuple(Batch.__annotations__)


def model_inputs(batch: Batch, device: torch.device | str) -> dict[str, Any]:
    """Return what a model's forward takes of a batch, on a device.

    With position ids there must be neither mask nor cache: transformers looks for packed sequences only without them.
    """
    input_ids = sent(batch["input_ids"], device)
    if "position_ids" in batch:
        return {"input_ids": input_ids, "position_ids": sent(batch["position_ids"], device), "use_cache": False}
    return {"input_ids": input_ids, "attention_mask": sent(batch["attention_mask"], device)}


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor on a device, to which it may still be under way; what uses it there comes after it.

    From page-locked memory, or a GPU would finish all it has to do before the copy began.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def collate(sequences: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int) -> Batch:
    """Pad (token ids [T], completion mask [T]) pairs to one batch and find its positions."""
    width = max(len(tokens) for tokens, _ in sequences)
    input_ids = np.full((len(sequences), width), pad_id, np.int64)
    attention_mask = np.zeros((len(sequences), width), np.int64)
    is_target = np.zeros((len(sequences), width), np.bool_)
    for row, (tokens, completion) in enumerate(sequences):
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
        is_target[row, : len(tokens)] = is_position(completion)
    sequence, token = np.nonzero(is_target)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "hidden_index_M": torch.from_numpy(sequence * width + token - 1),
        "label_M": torch.from_numpy(input_ids[sequence, token]),
        "sequence_M": torch.from_numpy(sequence),
    }


def plan_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Group sequences of like length so that none of the padded batches exceeds `batch_tokens`, longest first.

    Of all ways to cut the sequences, sorted by length, the one that takes the fewest tokens, padding included, where a
    batch counts as a 64th of `batch_tokens` besides: else every length would be a batch of its own.

    A pure function of the lengths: i64 indices into them, every one once. A sequence longer than the budget is alone.
    """
    by_length = np.argsort(-lengths, kind="stable")
    widths = np.maximum(lengths[by_length], 1).astype(np.int64)
    counts = np.arange(1, max(1, batch_tokens) + 1)
    # of the cheapest way to cut the sequences before each place
    cost = np.full(len(widths) + 1, np.iinfo(np.int64).max)
    begins = np.zeros(len(widths) + 1, np.int64)  # of the last batch of that way
    cost[0] = 0
    for start, width in enumerate(widths.tolist()):
        found = cost[start] + batch_tokens // PASS_PART + width * counts[: max(1, batch_tokens // width)]
        best = cost[start + 1 : start + 1 + len(found)]
        cheaper = found[: len(best)] <= best
        best[cheaper] = found[: len(best)][cheaper]
        begins[start + 1 : start + 1 + len(found)][cheaper] = start
    batches, end = [], len(widths)
    while end:
        batches.append(by_length[begins[end] : end])
        end = int(begins[end])
    return batches[::-1]

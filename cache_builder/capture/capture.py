"""A model and a batch to sparse targets, losses and probe log-probabilities, a chunk of positions at a time.

    batch ─▶ hidden states at positions                       prompts and padding never meet the head
          ─▶ chunks of logits, float32, in one buffer         never [positions, vocabulary]
          ─▶ extract.py: top-k, tail, entropy, samples        in few passes, by slices that stay in a CPU's caches

Tie rule: by falling logit, then by rising id. Results do not depend on what else is in the batch, up to the rounding of
the model's own dtype. A NaN or an infinity stops the capture and names the row.

Shapes: B sequences, M positions, C positions of a chunk, D hidden size, W the vocabulary in whole blocks, K slots,
S tail samples, R probe ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cache_builder.capture.topk import BLOCK, LOWEST, extract, log_sum_exp, logp_and_rest, top
from cache_builder.data.batching import Batch, sent
from cache_builder.errors import ConfigError, ModelError
from cache_builder.models.lm_head import Head, compute_weight, hidden_states_at, project, verify_head
from cache_builder.targets.sparse import Targets

CPU_CHUNK, GPU_CHUNK = 512, 1024
"""Positions of a chunk. On a CPU a head's matmul of 256 took an eighth longer per position than one of 512."""


class NonFiniteError(ModelError):
    """A model's logits hold a NaN or an infinity."""

    def __init__(self, model: nn.Module, row: int, position: int) -> None:
        super().__init__(
            f"{type(model).__name__}: NaN or infinite logits in row {row} of the batch, at its position {position}; "
            f"expected finite numbers; try a wider dtype (bfloat16 or float32), or check the checkpoint"
        )
        self.row = row


@dataclass
class BegunCapture:
    """A batch's targets, which a GPU may still be making while the next batch is brought to it."""

    model: nn.Module
    batch: Batch
    targets: Targets[Tensor]
    """On the CPU, once `done` has happened."""
    done: "torch.cuda.Event | None"

    def arrived(self) -> Targets[np.ndarray]:
        """Wait for the targets, and look at them.

        Raises:
            NonFiniteError: the logits hold a NaN or an infinity.
        """
        if self.done is not None:
            self.done.synchronize()
        targets = self.targets.to_numpy()
        _check_finite(self.model, self.batch, targets.gold + targets.entropy + targets.logp[:, 0])
        return targets


@torch.no_grad()
def begin_capture(
    model: nn.Module,
    batch: Batch,
    vocab_size: int,
    *,
    top_k: int,
    top_p: float,
    uniforms_MS: np.ndarray,
    edges: tuple[int, ...] = (),
    chunk_positions: int | None = None,
) -> BegunCapture:
    """Give a device all that makes a batch's targets, without waiting for it.

    Args:
        top_k: slots per position; the support is the smallest prefix of them that holds `top_p` of the mass, or all.
        uniforms_MS: one number in (0, 1) per tail sample, from `tail_uniforms`; [M, 0] for no samples.
        edges: where the vocabulary is cut into blocks whose mass in the tail is kept; none of them unless given.

    Raises:
        ConfigError: `top_k` exceeds the vocabulary.
        ModelError: the model is in training mode, or its head is not understood.
    """
    if top_k > vocab_size:
        raise ConfigError(f"cache.top_k is {top_k}, but the vocabulary has only {vocab_size} tokens; lower it")
    _check_ready(model, batch)
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    label_M = sent(batch["label_M"], hidden_MD.device)
    uniforms = sent(torch.from_numpy(uniforms_MS), hidden_MD.device)
    chunks = [
        extract(logits_CW, vocab_size, label_M[chunk], uniforms[chunk], top_k, top_p, edges)
        for chunk, logits_CW in _chunks_of_logits(hidden_MD, head, chunk_positions)
    ]
    # joined where they are: leaving the device after each chunk would make it wait for the CPU
    targets = Targets.join(chunks, torch.cat)
    if hidden_MD.device.type != "cuda":
        return BegunCapture(model, batch, targets, None)
    targets = targets.each(lambda value: torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, True))
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(hidden_MD.device))
    return BegunCapture(model, batch, targets, done)


@torch.no_grad()
def gold_logp(model: nn.Module, batch: Batch, vocab_size: int) -> np.ndarray:
    """Return the log-probability of the true token at every position, [M] float32.

    Raises:
        NonFiniteError: the logits hold a NaN or an infinity.
    """
    _check_ready(model, batch)
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    label_M = batch["label_M"].to(hidden_MD.device)
    parts = []
    for chunk, logits_CW in _chunks_of_logits(hidden_MD, head):
        z_label_C = logits_CW.gather(1, label_M[chunk, None])[:, 0]
        largest_C, log_sum_C = log_sum_exp(logits_CW)
        parts.append((z_label_C - largest_C) - log_sum_C)
    gold = _join(parts)
    _check_finite(model, batch, gold)
    return gold


@torch.no_grad()
def probe_logp(model: nn.Module, batch: Batch, vocab_size: int, ids_MR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities at given ids, [M, R], and the log of the mass outside them, [M]; both float32.

    Raises:
        NonFiniteError: the logits hold a NaN or an infinity.
    """
    _check_ready(model, batch)
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    ids = torch.from_numpy(ids_MR.astype(np.int64)).to(hidden_MD.device)
    parts = [
        logp_and_rest(logits_CW[:, :vocab_size], ids[chunk]) for chunk, logits_CW in _chunks_of_logits(hidden_MD, head)
    ]
    logp, log_rest = (_join(column) for column in zip(*parts, strict=True))
    _check_finite(model, batch, logp[:, 0])
    return logp, log_rest


@torch.no_grad()
def probe_ids(model: nn.Module, batch: Batch, vocab_size: int, count: int) -> np.ndarray:
    """Choose the probe's ids [M, count], int64: the model's top tokens, the last of them replaced by a gold that is not
    among them.

    Raises:
        NonFiniteError: the logits hold a NaN or an infinity.
    """
    _check_ready(model, batch)
    hidden_MD, head = hidden_states_at(model, batch, vocab_size)
    label_M = batch["label_M"].to(hidden_MD.device)
    parts, finite = [], []
    for chunk, logits_CW in _chunks_of_logits(hidden_MD, head):
        ids_CR, values_CR = top(logits_CW, vocab_size, min(count, vocab_size))
        absent_C = (ids_CR != label_M[chunk, None]).all(1)
        ids_CR[:, -1] = torch.where(absent_C, label_M[chunk], ids_CR[:, -1])
        parts.append(ids_CR)
        finite.append(values_CR.sum(1))
    _check_finite(model, batch, _join(finite))
    return _join(parts)


def sequence_losses(batch: Batch, gold: np.ndarray, sequences: int) -> np.ndarray:
    """Sum −gold [M] over the positions of each of a batch's sequences, in float64: [B]."""
    sequence_M = batch["sequence_M"].cpu().numpy()
    return np.bincount(sequence_M, weights=-gold.astype(np.float64), minlength=sequences)


def _chunks_of_logits(
    hidden_MD: Tensor, head: Head, chunk_positions: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice of positions, logits [C, W]) for each position once; the padding columns hold −1e30.

    The buffer is used again. Without positions one empty chunk keeps the results' shapes.
    """
    chunk_positions = chunk_positions or (CPU_CHUNK if hidden_MD.device.type == "cpu" else GPU_CHUNK)
    weight_VD = compute_weight(head)
    width = -(-head.vocab_size // BLOCK) * BLOCK
    positions = len(hidden_MD)
    dtype = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32
    buffer_CW = torch.empty(min(chunk_positions, positions), width, dtype=dtype, device=hidden_MD.device)
    for start in range(0, max(positions, 1), chunk_positions):
        end = min(start + chunk_positions, positions)
        logits_CW = buffer_CW[: end - start]
        project(hidden_MD[start:end], head, weight_VD, out=logits_CW[:, : head.vocab_size])
        logits_CW[:, head.vocab_size :] = LOWEST
        yield slice(start, end), logits_CW


def _join(parts: tuple[Tensor, ...] | list[Tensor]) -> np.ndarray:
    joined = torch.cat(list(parts))
    return (joined.float() if joined.is_floating_point() else joined).cpu().numpy()


def _check_ready(model: nn.Module, batch: Batch) -> None:
    """Refuse a model whose head is not understood, or whose dropout would make what it says random."""
    if model.training:
        raise ModelError(
            f"{type(model).__name__} is in training mode, so dropout would make its targets random; "
            "expected a model in eval mode; call model.eval() first"
        )
    verify_head(model)
    verify_head(model, batch)


def _check_finite(model: nn.Module, batch: Batch, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        sequences = batch["sequence_M"].cpu().numpy()
        row = int(sequences[bad[0]])
        raise NonFiniteError(model, row, int(bad[0] - np.searchsorted(sequences, row)))

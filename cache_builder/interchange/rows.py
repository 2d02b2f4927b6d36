"""One row of another program's file, and the targets that can be made of it.

    logp of K tokens, as the source has them ─▶ temperature undone ─▶ sorted ─┬─▶ tail "complement": P = 1 − Σ p
                                                                              └─▶ tail "none": p / Σ p, P = 0
    gold      log p(true token) where it is in the support and p is the whole vocabulary's; else NaN
    entropy   NaN: it takes the whole distribution

A sum of rounded numbers is right only up to their rounding, so P is never taken for less than that:
2⁻²⁴ + unit roundoff · Σ p |log p|.

Shapes: T tokens, M positions, K slots.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cache_builder.errors import DataError
from cache_builder.positions import is_position
from cache_builder.targets.sparse import Targets

Tail = Literal["complement", "none"]
SUM_TOLERANCE = 0.05
"""By how much probabilities may sum to more than one: a polynomial, or bfloat16, is not exact."""
FLOAT32_ROUNDOFF = 2.0**-24
LARGEST_LOGP = 1e30
"""No model's logit is as large, and float32 holds it times any temperature."""


@dataclass(frozen=True)
class SourceRow:
    """One sequence of a source, its targets as they are written there."""

    where: str
    """What an error calls it: file and row."""
    sample_id: str
    tokens: np.ndarray
    """u32 [T]"""
    completion: np.ndarray
    """bool [T], tokens to be learned that have a target."""
    ids: np.ndarray
    """i64 [M, K]; of an unused slot anything."""
    logp: np.ndarray
    """f64 [M, K] in any order, not necessarily normalised; −inf in an unused slot."""
    left_out: int
    """Tokens to be learned that have no target."""

    @property
    def positions(self) -> np.ndarray:
        """Indices of the tokens that have targets, rising, [M]."""
        return np.flatnonzero(is_position(self.completion))


def check_tokens(tokens: np.ndarray, vocab_size: int, where: str) -> None:
    """Refuse a sequence that the tokenizer cannot have made.

    Raises:
        DataError: a token id is negative, or lies beyond the tokenizer.
    """
    outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(outside):
        at = outside[0]
        raise DataError(
            f"{where}: `input_ids` has the token {tokens[at]} at place {at}, the tokenizer has {vocab_size:,} tokens; "
            "give the tokenizer that these rows were made with"
        )


def targets_of(
    row: SourceRow, vocab_size: int, tail: Tail, temperature: float = 1.0, roundoff: float = FLOAT32_ROUNDOFF
) -> Targets:
    """Turn a source's log-probabilities into targets of its positions; no tail samples.

    Args:
        temperature: at which the source's probabilities were taken; another than 1 only without a tail.
        roundoff: unit roundoff of the numbers in the source, relative.

    Raises:
        DataError: a number is not one, an id lies beyond the tokenizer or stands twice, a position has nothing, or
            probabilities sum to more than one; the message names row and token.
    """
    ids_MK, logp_MK = _by_rising_id(row, vocab_size)
    order_MK = np.argsort(-logp_MK, axis=1, kind="stable")
    ids_MK, logp_MK = np.take_along_axis(ids_MK, order_MK, axis=1), np.take_along_axis(logp_MK, order_MK, axis=1)
    used_MK = logp_MK > -np.inf
    ids_MK = np.where(used_MK, ids_MK, ids_MK[:, :1])
    gold_MK = used_MK & (ids_MK == row.tokens[row.positions].astype(np.int64)[:, None])
    logp_MK = logp_MK * temperature
    top_M = logp_MK[:, 0]
    if tail == "none":
        logp_MK = logp_MK - (top_M + np.log(np.exp(logp_MK - top_M[:, None]).sum(1)))[:, None]
        log_tail_M = np.full(len(ids_MK), -np.inf)
        known_M = used_MK.sum(1) == vocab_size
    else:
        p_MK = np.exp(np.minimum(logp_MK, 1.0))
        sum_M = p_MK.sum(1)
        _check_sums(row, sum_M)
        rounding_M = FLOAT32_ROUNDOFF - roundoff * np.where(used_MK, p_MK * np.where(used_MK, logp_MK, 0), 0).sum(1)
        tail_M = np.where(used_MK.sum(1) < vocab_size, np.maximum(1 - sum_M, rounding_M), 0.0)
        total_M = sum_M + tail_M
        logp_MK = logp_MK - np.log(total_M)[:, None]
        with np.errstate(divide="ignore"):
            log_tail_M = np.log(tail_M) - np.log(total_M)
        known_M = np.ones(len(ids_MK), np.bool_)
    label_M = np.where(gold_MK, logp_MK, 0.0).sum(1)
    label_M[~(known_M & gold_MK.any(1))] = np.nan
    return Targets(
        ids=ids_MK,
        logp=logp_MK.astype(np.float32),
        samples=np.zeros((len(ids_MK), 0), np.int64),
        log_tail=log_tail_M.astype(np.float32),
        gold=np.minimum(label_M, 0).astype(np.float32),
        entropy=np.full(len(ids_MK), np.nan, np.float32),
    )


def _by_rising_id(row: SourceRow, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the slots by rising id, which settles ties of the order by probability; unused slots have negative ids."""
    used_MK = row.logp > -np.inf
    wrong = np.argwhere(np.isnan(row.logp) | (used_MK & (np.abs(row.logp) > LARGEST_LOGP)))
    if len(wrong):
        m, k = wrong[0]
        raise DataError(f"{_at(row, m)}: expected log-probabilities, got {row.logp[m, k]}")
    empty = np.flatnonzero(~used_MK.any(axis=1))
    if len(empty):
        raise DataError(f"{_at(row, empty[0])}: expected at least one log-probability, got none above −inf")
    beyond = np.argwhere(used_MK & ((row.ids < 0) | (row.ids >= vocab_size)))
    if len(beyond):
        m, k = beyond[0]
        raise DataError(
            f"{_at(row, m)}: its target has the token id {row.ids[m, k]}, the tokenizer has {vocab_size:,} tokens; "
            "give the tokenizer that these rows were made with"
        )
    ids_MK = np.where(used_MK, row.ids, -1 - np.arange(row.ids.shape[1]))
    order_MK = np.argsort(ids_MK, axis=1)
    ids_MK = np.take_along_axis(ids_MK, order_MK, axis=1)
    twice = np.argwhere(ids_MK[:, 1:] == ids_MK[:, :-1])
    if len(twice):
        m, k = twice[0]
        raise DataError(f"{_at(row, m)}: its target has the token id {ids_MK[m, k]} twice; expected each once")
    return ids_MK, np.take_along_axis(row.logp, order_MK, axis=1)


def _check_sums(row: SourceRow, sum_M: np.ndarray) -> None:
    above = np.flatnonzero(sum_M > 1 + SUM_TOLERANCE)
    if len(above):
        raise DataError(
            f"{_at(row, above[0])}: its probabilities sum to {sum_M[above[0]]:.4g}, expected at most 1: these are "
            "logits, or not of temperature 1; give `--tail none` to normalise them over the stored tokens"
        )


def _at(row: SourceRow, position: int) -> str:
    return f"{row.where}, the target of token {row.positions[position]}"

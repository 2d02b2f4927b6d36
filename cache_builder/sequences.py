"""Sequences by row, wherever they lie: a tokenised corpus and a cache's own copy of it are both read through these.

Sequences            token_offsets [n+1], sequence(row) ─▶ token ids, completion mask
  NumberedSequences  position_offsets [n+1], sample_ids
    FlatSequences    tokens, completion: every row one after the other, as a cache stores them
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol, overload

import numpy as np


class SampleIds(Sequence[str]):
    """A sequence of ids that holds none of them."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Return the id of a row, 0 ≤ row < n, as UTF-8."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        return self.read(range(len(self))[index]).decode()


class FlatSampleIds(SampleIds):
    """Ids one after the other: `text` u8 [bytes], `offsets` i64 [n+1]."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, row: int) -> bytes:
        return bytes(self.text[self.offsets[row] : self.offsets[row + 1]])


class Sequences(Protocol):
    """Sequences by row."""

    token_offsets: np.ndarray
    """i64 [n+1], where each row's tokens begin, and the end."""

    def sequence(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a row's token ids, u32 [T], and completion mask, bool [T]."""


class SomeRows:
    """The sequences `rows` of a corpus, numbered from 0."""

    def __init__(self, corpus: Sequences, rows: np.ndarray) -> None:
        self.corpus, self.rows = corpus, rows
        self.token_offsets = np.concatenate([[0], np.cumsum(np.diff(corpus.token_offsets)[rows])])

    def sequence(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and completion mask."""
        return self.corpus.sequence(int(self.rows[row]))


class NumberedSequences(Sequences, Protocol):
    """Sequences whose positions are numbered through all rows."""

    position_offsets: np.ndarray
    """i64 [n+1], where each row's positions begin, and the end."""

    @property
    def sample_ids(self) -> SampleIds: ...

    @property
    def n_positions(self) -> int: ...

    def __len__(self) -> int: ...


class FlatSequences(NumberedSequences, Protocol):
    """Sequences that lie one after the other."""

    @property
    def tokens(self) -> np.ndarray:
        """Return all rows' ids, u32 [tokens]."""

    @property
    def completion(self) -> np.ndarray:
        """Return which tokens belong to a completion, bool [tokens]."""

    @property
    def sample_ids(self) -> FlatSampleIds: ...


class Fingerprint:
    """SHA-256 of sequences, added one after another: what names a corpus's content, wherever it lies."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256(b"footsteps corpus 1")

    def add(self, sample_id: bytes, tokens_T: np.ndarray, completion_T: np.ndarray) -> None:
        """Add a sequence: its id, token ids and completion mask."""
        tokens = np.asarray(tokens_T, "<u4").tobytes()
        completion = np.asarray(completion_T, np.bool_).tobytes()
        for part in (len(tokens).to_bytes(8, "little"), tokens, completion, sample_id, b"\0"):
            self._digest.update(part)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def fingerprint_of(sequences: Iterable[tuple[bytes, np.ndarray, np.ndarray]]) -> str:
    """Return the fingerprint of (id, token ids, completion mask) of every sequence, in order."""
    fingerprint = Fingerprint()
    for sequence in sequences:
        fingerprint.add(*sequence)
    return fingerprint.hexdigest()

"""All sequences of a split, tokenised once, in flat memory-mapped files.

    tokens.u32       [tokens]   every sequence's token ids, one after another
    completion.u8    [tokens]   1 where the token belongs to a completion
    offsets.i64      [n+1, 2]   where each sequence's tokens and positions begin
    ids.u8, id_offsets.i64      the examples' ids
    stage.json                  sizes, what was truncated or dropped, each file's digest, the fingerprint; written last

A position is a completion token with something before it to predict it from, so never a sequence's first token.
`tokenising.py` makes one; reading it takes no tokenizer and no torch.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cache_builder.data.digests import check_files
from cache_builder.sequences import FlatSampleIds
from cache_builder.steps import finished_result

FILES = ("tokens.u32", "completion.u8", "offsets.i64", "ids.u8", "id_offsets.i64")


class Corpus:
    """Sequences by row. `token_offsets` and `position_offsets` are i64 [n+1]; `fingerprint` names the content.

    Raises:
        CacheDamagedError: a file is missing or has other bytes than were written.
    """

    def __init__(self, folder: Path, result: dict[str, Any]) -> None:
        if "files" in result:
            check_files(folder, result["files"], "the tokenised corpus", "remove the folder to make it again")
        self.folder = folder
        self.fingerprint: str = result["fingerprint"]
        self.tokenizer_fingerprint: str = result["tokenizer_fingerprint"]
        self.template_fingerprint: str = result["template_fingerprint"]
        self.max_length: int = result["max_length"]
        self.counts: dict[str, int] = result["counts"]
        offsets = np.fromfile(folder / "offsets.i64", dtype="<i8").reshape(-1, 2)
        self.token_offsets = np.ascontiguousarray(offsets[:, 0])
        self.position_offsets = np.ascontiguousarray(offsets[:, 1])
        self.tokens = np.memmap(folder / "tokens.u32", dtype="<u4", mode="r")
        self.completion = np.memmap(folder / "completion.u8", dtype=np.bool_, mode="r")
        self.sample_ids = FlatSampleIds(
            np.memmap(folder / "ids.u8", dtype=np.uint8, mode="r"), np.fromfile(folder / "id_offsets.i64", dtype="<i8")
        )

    def __len__(self) -> int:
        return len(self.token_offsets) - 1

    @property
    def n_positions(self) -> int:
        return int(self.position_offsets[-1])

    def sequence(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a row's token ids, u32 [T], and completion mask, bool [T]."""
        span = slice(int(self.token_offsets[row]), int(self.token_offsets[row + 1]))
        return self.tokens[span], self.completion[span]

    def sequence_positions(self, row: int) -> int:
        """Return how many positions a row has."""
        return int(self.position_offsets[row + 1] - self.position_offsets[row])


def open_corpus(folder: Path) -> Corpus:
    """Open a corpus that `build_corpus` made.

    Raises:
        MissingError: there is none, or it is unfinished.
    """
    return Corpus(folder, finished_result(folder, "the tokenised corpus", "footsteps run CONFIG"))

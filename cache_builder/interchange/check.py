"""The first pass over another program's rows: every one is checked, its tokens stored, and nothing of a cache made yet.

    rows ─▶ targets, or the row is refused ─▶ CACHE.import/ (tokens, completion, ids; what the pass saw)

A killed import finds a finished first pass again and does not repeat it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from cache_builder.data.chat import Encoded
from cache_builder.data.corpus import Corpus
from cache_builder.data.tokenising import store_sequences
from cache_builder.data.tokenizer import tokenizer_fingerprint
from cache_builder.errors import CacheMismatchError, DataError
from cache_builder.interchange.rows import SourceRow, Tail, targets_of
from cache_builder.interchange.tables import count_rows
from cache_builder.steps import finish_stage, stage_result
from cache_builder.storage.base import Store
from cache_builder.storage.local import LocalStore
from cache_builder.storage.locks import folder_lock
from cache_builder.targets.sparse import Targets

UNKNOWN = "unknown"


class Source(Protocol):
    """Another program's rows."""

    files: list[Path]

    @property
    def format(self) -> Literal["distillkit", "axolotl"]:
        """Name of the program."""

    @property
    def roundoff(self) -> float:
        """Unit roundoff of its numbers, relative."""

    @property
    def settings(self) -> dict[str, Any]:
        """How the rows are read, as plain values."""

    @property
    def default_tail(self) -> Tail:
        """What rows of this kind know of the mass outside their support."""

    def rows(self) -> Iterator[SourceRow]:
        """Yield every row; DataError where one is malformed."""


@dataclass
class Reading:
    """How rows become targets, and what the first pass saw of them."""

    vocab_size: int
    tail: Tail
    temperature: float
    roundoff: float
    top_k: int = 0
    left_out: int = 0
    rows: int = 0
    rows_without_target: int = 0

    def targets(self, row: SourceRow) -> Targets:
        return targets_of(row, self.vocab_size, self.tail, self.temperature, self.roundoff)


@contextmanager
def scratch_folder(store: Store) -> Iterator[Path]:
    """Hold the folder of a first pass: beside a local cache, so that a killed import finds it; else a temporary one.

    It is removed at the end, and where a row was malformed.
    """
    if isinstance(store, LocalStore):
        folder = store.folder.with_name(f"{store.folder.name}.import")
    else:
        folder = Path(tempfile.mkdtemp(prefix="footsteps-import-"))
    with folder_lock(folder):
        try:
            yield folder
        except BaseException as error:
            if isinstance(error, DataError) or not isinstance(store, LocalStore):
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def first_pass(
    source: Source, source_sha256: str, folder: Path, tokenizer: PreTrainedTokenizerBase, reading: Reading
) -> Corpus:
    """Check every row and store its tokens; what the pass saw is kept with them."""
    inputs = {
        "source": source_sha256,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "settings": source.settings,
        "tail": reading.tail,
        "temperature": reading.temperature,
    }
    try:
        result = stage_result(folder, inputs)
    except CacheMismatchError:  # an import of something else was killed here
        for path in folder.glob("[!.]*"):
            path.unlink()
        result = stage_result(folder, inputs)
    if result is None:
        identity = {"tokenizer_fingerprint": inputs["tokenizer"], "template_fingerprint": UNKNOWN, "max_length": 0}
        stored = store_sequences(checked(source, reading), folder)
        if not stored["counts"]["sequences"]:
            raise DataError(f"{source.files[0]}: none of {reading.rows:,} rows has a target; nothing to import")
        result = {**stored, **identity, "reading": asdict(reading)}
        finish_stage(folder, result)
    for field in ("top_k", "left_out", "rows", "rows_without_target"):
        setattr(reading, field, result["reading"][field])
    return Corpus(folder, result)


def checked(source: Source, reading: Reading) -> Iterator[tuple[str, Encoded]]:
    """Yield (id, tokens) of every row that has a target, once its targets could be made."""
    rows = track(
        source.rows(),
        "checking rows",
        total=count_rows(source.files),
        console=Console(stderr=True),
        transient=True,
        disable=not Console(stderr=True).is_terminal,
    )
    for row in rows:
        reading.rows += 1
        reading.left_out += row.left_out
        if not len(row.positions):
            reading.rows_without_target += 1
            continue
        reading.targets(row)
        reading.top_k = max(reading.top_k, row.ids.shape[1])
        yield row.sample_id, Encoded(row.tokens.tolist(), row.completion.tolist(), truncated_tokens=0)

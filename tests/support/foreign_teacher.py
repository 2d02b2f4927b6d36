"""A model whose targets are written as other programs' rows, and caches that are imported from them."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlamaForCausalLM

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.interchange.axolotl import AxolotlSource
from cache_builder.interchange.check import Reading
from cache_builder.interchange.distillkit import DistillKitSource
from cache_builder.interchange.importing import import_cache
from tests.support import foreign_rows
from tests.support.caches import Teaching
from tests.support.foreign_rows import write_distillkit, write_lines

SEQUENCES = 12


STEP = 1 / 128


class Teacher:
    """A model, its tokenizer, and sequences: `answers` as the corpus has them, `sequences` with most tokens learned."""

    def __init__(self, teaching: Teaching, model: LlamaForCausalLM) -> None:
        self.teaching, self.model, self.tokenizer = teaching, model, teaching.tokenizer
        self.answers = [teaching.corpus.sequence(row) for row in range(SEQUENCES)]
        self.sequences = [(tokens, np.arange(len(tokens)) > 3) for tokens, _ in self.answers]

    def dense(self, sequences: list[tuple[np.ndarray, np.ndarray]] | None = None) -> np.ndarray:
        """Log-probabilities at every position of every sequence, f64 [M, V]."""
        rows = []
        for tokens, completion in sequences or self.sequences:
            logp = foreign_rows.dense_logp(self.model, tokens)
            rows += [logp[token - 1] for token in range(1, len(tokens)) if completion[token]]
        return np.array(rows)

    def distillkit(self, folder: Path, codec: dict[str, Any], **options: Any) -> Path:
        files = options.pop("files", 1)
        rows = foreign_rows.distillkit_rows(self.model, self.sequences, codec, **options)
        return write_distillkit(folder, rows, codec, files)

    def import_distillkit(self, source: Path, cache: Path, **options: Any) -> tuple[Cache, Reading]:
        reading = import_cache(DistillKitSource(source, self.tokenizer, None), str(cache), self.tokenizer, **options)
        return open_cache(str(cache)), reading

    def import_axolotl(self, rows: list[dict[str, Any]], folder: Path, **options: Any) -> tuple[Cache, Reading]:
        folder.mkdir(exist_ok=True)
        ours = {name: options.pop(name) for name in ("tail", "temperature") if name in options}
        source = AxolotlSource(write_lines(folder / "rows.jsonl", rows), self.tokenizer, **options)
        reading = import_cache(source, str(folder / "cache"), self.tokenizer, **ours)
        return open_cache(str(folder / "cache")), reading


def golds(cache: Cache) -> np.ndarray:
    parts = [tokens[1:][completion[1:]] for tokens, completion in cache.corpus.sequences(range(len(cache.corpus)))]
    return np.concatenate(parts).astype(np.int64)


def assert_same_targets(one: Cache, other: Cache) -> None:
    assert one.corpus.fingerprint == other.corpus.fingerprint
    targets = [cache.read("imported", range(len(cache.corpus))) for cache in (one, other)]
    for field in ("ids", "logp", "log_tail", "gold"):
        np.testing.assert_array_equal(*(getattr(each, field) for each in targets))


def good_rows(teacher: Teacher) -> list[dict[str, Any]]:
    return [foreign_rows.axolotl_prepared(teacher.model, *sequence, k=3) for sequence in teacher.sequences[:3]]


def first_target(row: dict[str, Any]) -> int:
    return next(j for j, mask in enumerate(row["target_mask"]) if mask[0])

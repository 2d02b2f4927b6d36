"""A second engine: checkpoints that are tables of logits, written beforehand for the sequences of a corpus.

    <location>/config.json, logits.safetensors     one tensor [T, V] per sequence, by the digest of its tokens

It shares nothing with the transformers engine but the protocol: plain numpy in float64, a sequence at a time.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.config import CacheExperiment
from cache_builder.format.manifest import CheckpointIdentity, TargetOptions
from cache_builder.positions import is_position, rows_between
from cache_builder.sequences import NumberedSequences
from cache_builder.targets.sampling import tail_uniforms
from cache_builder.targets.sparse import Targets

FILE = "logits.safetensors"


@torch.no_grad()
def write_table(model: Path, location: Path, corpora: Iterable[NumberedSequences], vocab_size: int) -> str:
    """Store a model's own logits of every sequence; return the location."""
    live = LlamaForCausalLM.from_pretrained(model).eval()
    table = {}
    for corpus in corpora:
        for row in range(len(corpus)):
            tokens, _ = corpus.sequence(row)
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            table[_key(tokens)] = live(ids).logits[0, :, :vocab_size].contiguous().numpy()
    location.mkdir()
    save_file(table, location / FILE)
    (location / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
    return str(location)


class TableEngine:
    def __init__(self, experiment: CacheExperiment, tokenizer: PreTrainedTokenizerBase) -> None:
        pass

    def identify(self, location: str) -> str:
        return hashlib.sha256((Path(location) / FILE).read_bytes()).hexdigest()

    def load(self, name: str, location: str) -> "TableBackend":
        return TableBackend(
            Path(location),
            CheckpointIdentity(
                name=name, weights_fingerprint=self.identify(location), dtype="float32", attn_implementation="table"
            ),
        )

    def run_build(self, build: Callable[[], bool]) -> bool:
        return build()


class TableBackend:
    def __init__(self, location: Path, identity: CheckpointIdentity) -> None:
        self.identity = identity
        self._table = safe_open(location / FILE, "numpy")

    def logp(self, corpus: NumberedSequences, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities f64 [M, V] at a row's positions, and the true tokens [M]."""
        tokens, completion = corpus.sequence(row)
        logits = self._table.get_tensor(_key(tokens)).astype(np.float64)
        logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
        at = np.flatnonzero(is_position(completion))
        return logits[at - 1], tokens[at].astype(np.int64)

    def rows(self, corpus: NumberedSequences, rows: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        said = [self.logp(corpus, int(row)) for row in rows]
        return np.concatenate([logp for logp, _ in said]), np.concatenate([gold for _, gold in said])

    def targets(self, corpus: NumberedSequences, start: int, end: int, options: TargetOptions) -> Targets:
        rows = rows_between(corpus.position_offsets, start, end)
        first = int(corpus.position_offsets[rows[0]])
        logp, gold = (part[start - first : end - first] for part in self.rows(corpus, rows))
        ids = np.argsort(-logp, axis=1, kind="stable")[:, : options.top_k]
        tail_logp = logp.copy()
        np.put_along_axis(tail_logp, ids, -np.inf, 1)
        log_tail = np.logaddexp.reduce(tail_logp, axis=1)
        uniforms = tail_uniforms(options.seed, self.identity.name, np.arange(start, end), options.tail_samples)
        cumulative = np.exp(tail_logp - log_tail[:, None]).cumsum(1)
        drawn = (cumulative[:, None, :] <= uniforms[:, :, None]).sum(2)
        return Targets(
            ids,
            np.take_along_axis(logp, ids, 1).astype(np.float32),
            drawn,
            log_tail.astype(np.float32),
            np.take_along_axis(logp, gold[:, None], 1)[:, 0].astype(np.float32),
            -(np.exp(logp) * logp).sum(1).astype(np.float32),
            *_blocks(tail_logp, options),
            edges=options.edges,
        )

    def probe_ids(self, corpus: NumberedSequences, rows: np.ndarray, count: int) -> np.ndarray:
        logp, gold = self.rows(corpus, rows)
        ids = np.argsort(-logp, axis=1, kind="stable")[:, :count]
        absent = (ids != gold[:, None]).all(1)
        ids[absent, -1] = gold[absent]
        return ids.astype(np.uint32)

    def probe_logp(
        self, corpus: NumberedSequences, rows: np.ndarray, ids_MR: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        logp, _ = self.rows(corpus, rows)
        ids = ids_MR.astype(np.int64)
        rest = logp.copy()
        np.put_along_axis(rest, ids, -np.inf, 1)
        shared = np.take_along_axis(logp, ids, 1)
        return shared.astype(np.float32), np.logaddexp.reduce(rest, axis=1).astype(np.float32)

    def mean_loss(self, corpus: NumberedSequences) -> float:
        logp, gold = self.rows(corpus, range(len(corpus)))
        return float(-np.take_along_axis(logp, gold[:, None], 1).mean())

    def agree_on_batches(self, begun_with: int | None) -> int | None:
        """It has no batches."""
        return None

    def done_with(self, corpus: NumberedSequences, rows: np.ndarray) -> None:
        """Nothing is kept of rows."""

    def release(self) -> None:
        del self._table


def _blocks(tail_logp: np.ndarray, options: TargetOptions) -> tuple[np.ndarray, np.ndarray]:
    """The tail's mass by blocks, and the chance that two draws from it agree, as logs."""
    parts = [np.logaddexp.reduce(tail_logp[:, start:end], axis=1) for start, end in pairwise(options.edges)]
    collision = np.logaddexp.reduce(2 * tail_logp, axis=1) - 2 * np.logaddexp.reduce(tail_logp, axis=1)
    log_blocks = np.stack(parts, axis=1) if parts else np.empty((len(tail_logp), 0))
    kept = bool(options.edges and options.tail_samples)
    return log_blocks.astype(np.float32), collision.astype(np.float32)[:, None][:, :kept]


def _key(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(tokens, "<u4").tobytes()).hexdigest()

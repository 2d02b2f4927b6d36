"""The engine that runs the teacher in transformers: a checkpoint in memory, and what it says of sequences.

location ─▶ weights, or a base and adapters ─▶ this process's device, several, or a group's processes ─▶ Teacher
sequences ─▶ batches of like length ─▶ hidden states ─▶ targets, probe, losses
"""

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cache_builder.capture.capture import BegunCapture, NonFiniteError, begin_capture, gold_logp, probe_ids, probe_logp
from cache_builder.capture.losses import corpus_losses
from cache_builder.capture.probe import batches_of, placed_batches_of, run_probe
from cache_builder.config import CacheExperiment
from cache_builder.data.batches import Batching
from cache_builder.data.batching import Batch
from cache_builder.data.tokenizer import resolve
from cache_builder.errors import ModelError
from cache_builder.format.manifest import CheckpointIdentity, TargetOptions
from cache_builder.models.adapters import SharedBase, adapter_at
from cache_builder.models.lm_head import read_head
from cache_builder.models.loading import check_vocabulary, load_model, weights_fingerprint
from cache_builder.models.packed import packing_of
from cache_builder.models.placement import default_batch_tokens, describe_dtype, place
from cache_builder.models.tensor_parallel import load_divided, run_together
from cache_builder.positions import counts_of, positions_of, rows_between
from cache_builder.sequences import NumberedSequences
from cache_builder.targets.sampling import tail_uniforms
from cache_builder.targets.sparse import Targets


class TransformersEngine:
    """Runs checkpoints in this process, in transformers; or in a tensor-parallel group that this process leads."""

    def __init__(self, experiment: CacheExperiment, tokenizer: PreTrainedTokenizerBase) -> None:
        self.experiment, self.tokenizer = experiment, tokenizer
        self._base = SharedBase()

    def identify(self, location: str) -> str:
        """Return the fingerprint of a checkpoint's weights."""
        return weights_fingerprint(location, self.experiment.run.seed)

    def load(self, name: str, location: str) -> "Teacher":
        """Load a checkpoint; a base that adapters share stays in memory between them."""
        return Teacher(self.experiment, name, location, self.tokenizer, self.identify(location), self._base)

    def run_build(self, build: Callable[[], bool]) -> bool:
        """Let the first process of each tensor-parallel group build, and the others run their part of what it runs."""
        return run_together(self.experiment, build)


class Teacher:
    """A checkpoint in memory."""

    def __init__(
        self,
        experiment: CacheExperiment,
        name: str,
        location: str,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str,
        base: SharedBase | None = None,
    ) -> None:
        """Load a checkpoint; of adapters, `base` is used again where it is theirs.

        Raises:
            MissingError: there is no such checkpoint, or its base.
            ModelError: it cannot be loaded, does not fit the tokenizer, or has a head that is not supported.
        """
        self.name = name
        self.vocab_size = len(tokenizer)
        self.base = base or SharedBase()
        self.model = self._load(experiment, location)
        self._asked_batch_tokens = experiment.cache.batch_tokens
        check_vocabulary(self.model, tokenizer, name)
        self.batching = Batching(
            pad_id=int(tokenizer.pad_token_id),
            tokens=self._asked_batch_tokens or default_batch_tokens(self.model),
            packing=packing_of(self.model, "cache.packing") if experiment.cache.packing else None,
        )
        self.device = read_head(self.model, self.vocab_size).weight_VD.device
        self.identity = CheckpointIdentity(
            name=name,
            weights_fingerprint=fingerprint,
            dtype=describe_dtype(self.model),
            attn_implementation=str(self.model.config._attn_implementation),
        )

    def _load(self, experiment: CacheExperiment, location: str) -> PreTrainedModel:
        config, seed = experiment.teacher, experiment.run.seed
        if config.tensor_parallel > 1:
            return load_divided(config, seed, location)

        def load(location: str) -> PreTrainedModel:
            return place(load_model(config, seed, location), config)

        adapter = adapter_at(*resolve(location))
        if adapter is not None:
            return self.base.load(adapter, load)
        self.base.forget()
        return load(location)

    def agree_on_batches(self, begun_with: int | None) -> int:
        """Go on with the tokens of a batch that a checkpoint was begun with, unless the config asks for others."""
        tokens = self._asked_batch_tokens or begun_with or self.batching.tokens
        self.batching = replace(self.batching, tokens=tokens)
        return tokens

    def done_with(self, corpus: NumberedSequences, rows: np.ndarray) -> None:
        """Nothing is kept of rows."""

    def release(self) -> None:
        """Give the memory back, except a base that other adapters may need; this teacher says nothing any more."""
        self.base.take_out(self.model)
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def targets(self, corpus: NumberedSequences, start: int, end: int, options: TargetOptions) -> Targets:
        """Capture the global positions [start, end).

        Batches are formed from the sequences of this span alone, so its bytes do not depend on who builds what else.

        Raises:
            ModelError: NaN or infinite logits; the message names the sequence.
        """
        inside_rows = rows_between(corpus.position_offsets, start, end)
        size, k, s = end - start, options.top_k, options.tail_samples
        targets = Targets.blank(size, k, s, options.edges)

        def place(rows: np.ndarray, positions: np.ndarray, begun: BegunCapture) -> None:
            with naming_the_sequence(self.name, corpus, rows):
                targets[positions - start] = begun.arrived()

        before: tuple[np.ndarray, np.ndarray, BegunCapture] | None = None
        for rows, batch in batches_of(corpus, inside_rows, self.batching):
            positions = positions_of(corpus.position_offsets, rows)
            inside = (positions >= start) & (positions < end)
            positions = positions[inside]
            begun = begin_capture(
                self.model,
                only_positions(batch, inside),
                self.vocab_size,
                top_k=k,
                top_p=options.top_p,
                uniforms_MS=tail_uniforms(options.seed, self.name, positions, s),
                edges=options.edges,
            )
            if before is not None:  # only here, so that a GPU has its next batch before this one is waited for
                place(*before)
            before = rows, positions, begun
        if before is not None:
            place(*before)
        return targets

    def probe_ids(self, corpus: NumberedSequences, rows: np.ndarray, count: int) -> np.ndarray:
        """Choose the probe's ids, u32 [M, R]: the top tokens and the gold at every position of `rows`."""
        size = int(counts_of(corpus.position_offsets, rows).sum())
        ids = np.empty((size, min(count, self.vocab_size)), np.uint32)
        for chosen, places, batch in placed_batches_of(corpus, rows, self.batching):
            with naming_the_sequence(self.name, corpus, chosen):
                ids[places] = probe_ids(self.model, batch, self.vocab_size, ids.shape[1])
        return ids

    def probe_logp(
        self, corpus: NumberedSequences, rows: np.ndarray, ids_MR: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return log-probabilities f32 [M, R] at the probe's ids, and the log of the mass outside them f32 [M]."""

        def read(chosen: np.ndarray, batch: Batch, ids_mR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with naming_the_sequence(self.name, corpus, chosen):
                return probe_logp(self.model, batch, self.vocab_size, ids_mR)

        return run_probe(read, corpus, rows, ids_MR, self.batching)

    def mean_loss(self, corpus: NumberedSequences) -> float:
        """Return the mean negative log-likelihood per position of a whole corpus, in nats."""
        losses = corpus_losses(lambda batch: gold_logp(self.model, batch, self.vocab_size), corpus, self.batching)
        return float(losses.sum() / corpus.n_positions)


class naming_the_sequence:
    """Turn a batch row with NaN logits into the name of its sequence."""

    def __init__(self, checkpoint: str, corpus: NumberedSequences, rows: np.ndarray) -> None:
        self.checkpoint, self.corpus, self.rows = checkpoint, corpus, rows

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NonFiniteError):
            row = int(self.rows[error.row])
            raise ModelError(
                f"checkpoint {self.checkpoint!r} gives NaN or infinite logits on sequence "
                f"{self.corpus.sample_ids[row]!r} (row {row}); the build stops here; "
                "try another teacher.dtype (bfloat16 or float32), or leave this checkpoint out"
            ) from error


def only_positions(batch: Batch, inside: np.ndarray) -> Batch:
    """Return the batch with some of its positions; its sequences stay whole."""
    if inside.all():
        return batch
    keep = torch.from_numpy(inside)
    chosen: Batch = {**batch}
    for name in ("hidden_index_M", "label_M", "sequence_M"):
        chosen[name] = batch[name][keep]
    return chosen

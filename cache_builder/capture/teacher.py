"""One checkpoint of the teacher, loaded and run over sequences: what capture needs between a corpus and its targets."""

import gc
from collections.abc import Iterator
from dataclasses import fields
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cache_builder.capture.capture import NonFiniteError, capture, gold_logp, probe_ids, probe_logp
from cache_builder.capture.losses import corpus_losses
from cache_builder.config import CacheExperiment
from cache_builder.data.batching import Batch, collate, plan_batches
from cache_builder.data.tokenizer import resolve
from cache_builder.errors import ModelError
from cache_builder.format.manifest import CheckpointIdentity, TargetOptions
from cache_builder.format.records import quantise
from cache_builder.models.adapters import SharedBase, adapter_at
from cache_builder.models.lm_head import read_head
from cache_builder.models.loading import check_vocabulary, load_model, weights_fingerprint
from cache_builder.models.placement import describe_dtype, place
from cache_builder.models.tensor_parallel import load_divided
from cache_builder.positions import counts_of, offsets_of, positions_of, rows_between
from cache_builder.sequences import NumberedSequences
from cache_builder.targets.sampling import tail_uniforms
from cache_builder.targets.sparse import Targets

Result = TypeVar("Result")


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
        self.pad_id = int(tokenizer.pad_token_id)
        self.batch_tokens = experiment.cache.batch_tokens
        self.base = base or SharedBase()
        self.model = self._load(experiment, location)
        check_vocabulary(self.model, tokenizer, name)
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
        size, k, s = end - start, options.top_k, options.tail_samples
        targets = Targets.blank(size, k, s)
        for rows, batch in self._batches(corpus, rows_between(corpus.position_offsets, start, end)):
            positions = positions_of(corpus.position_offsets, rows)
            inside = (positions >= start) & (positions < end)
            positions = positions[inside]
            uniforms = tail_uniforms(options.seed, self.name, positions, s)
            with naming_the_sequence(self.name, corpus, rows):
                captured = capture(
                    self.model,
                    only_positions(batch, inside),
                    self.vocab_size,
                    top_k=k,
                    top_p=options.top_p,
                    uniforms_MS=uniforms,
                )
            for field in fields(Targets):
                getattr(targets, field.name)[positions - start] = getattr(captured, field.name)
        return targets

    def probe_ids(self, corpus: NumberedSequences, rows: np.ndarray, count: int) -> np.ndarray:
        """Choose the probe's ids, u32 [M, R]: the top tokens and the gold at every position of `rows`."""
        at = offsets_of(counts_of(corpus.position_offsets, rows))
        ids = np.empty((at[-1], min(count, self.vocab_size)), np.uint32)
        for order, batch in self._batches(corpus, rows):
            with naming_the_sequence(self.name, corpus, order):
                chosen = probe_ids(self.model, batch, self.vocab_size, ids.shape[1])
            ids[positions_of(at, np.searchsorted(rows, order))] = chosen
        return ids

    def probe_logp(
        self, corpus: NumberedSequences, rows: np.ndarray, ids_MR: np.ndarray, steps_per_nat: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return quantised log-probabilities u16 [M, R] at the probe's ids, and the log of the rest's mass f32 [M]."""
        at = offsets_of(counts_of(corpus.position_offsets, rows))
        code, log_tail = np.empty(ids_MR.shape, np.uint16), np.empty(len(ids_MR), np.float32)
        for order, batch in self._batches(corpus, rows):
            places = positions_of(at, np.searchsorted(rows, order))
            with naming_the_sequence(self.name, corpus, order):
                logp_MR, log_rest = probe_logp(self.model, batch, self.vocab_size, ids_MR[places])
            code[places], log_tail[places] = quantise(logp_MR, steps_per_nat), log_rest
        return code, log_tail

    def mean_loss(self, corpus: NumberedSequences) -> float:
        """Return the mean negative log-likelihood per position of a whole corpus, in nats."""
        losses = corpus_losses(
            lambda batch: gold_logp(self.model, batch, self.vocab_size),
            corpus,
            self.pad_id,
            batch_tokens=self.batch_tokens,
        )
        return float(losses.sum() / corpus.n_positions)

    def _batches(self, corpus: NumberedSequences, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Batch]]:
        lengths = counts_of(corpus.token_offsets, rows)
        for chosen in plan_batches(lengths, self.batch_tokens):
            yield rows[chosen], collate([corpus.sequence(int(row)) for row in rows[chosen]], self.pad_id)


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


def identify(experiment: CacheExperiment, location: str) -> str:
    """Return the fingerprint of a checkpoint's weights."""
    return weights_fingerprint(location, experiment.run.seed)


def only_positions(batch: Batch, inside: np.ndarray) -> Batch:
    """Return the batch with some of its positions; its sequences stay whole."""
    if inside.all():
        return batch
    keep = torch.from_numpy(inside)
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "hidden_index_M": batch["hidden_index_M"][keep],
        "label_M": batch["label_M"][keep],
        "sequence_M": batch["sequence_M"][keep],
    }

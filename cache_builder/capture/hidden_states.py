"""The engine that runs no layers: another one has written the last layer's hidden states, or is writing them.

    batch's tokens ─▶ each sequence's file ─▶ states [B, T, D] ─▶ final norm ─▶ head ─▶ what every checkpoint says

A model without its layers stands in for the whole one: in front of its final norm, a hook puts the stored states in the
place of what it was given. All that follows, targets, probe, losses and their checks, is the transformers engine's.

Shapes: B sequences, T tokens, D hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_builder.capture.state_files import StateFiles, sequence_key, shared_keys
from cache_builder.capture.teacher import Teacher, TransformersEngine
from cache_builder.config import CacheExperiment, expand
from cache_builder.data.batching import collate
from cache_builder.errors import CacheMismatchError
from cache_builder.format.manifest import TargetOptions
from cache_builder.models.last_parts import final_norm, load_last_parts
from cache_builder.models.lm_head import base_of, read_head, verify_head
from cache_builder.models.placement import place
from cache_builder.positions import rows_between
from cache_builder.sequences import NumberedSequences
from cache_builder.targets.sparse import Targets

_VERIFIED_TOKENS = 64
"""What of the first sequence's states the head is verified on; the model's own logits of them are [T, vocabulary]."""


class HiddenStatesEngine(TransformersEngine):
    """Turns files of hidden states into what the checkpoints say; of their weights it loads norm and head."""

    def load(self, name: str, location: str) -> "StatesTeacher":
        """Load what comes after a checkpoint's layers.

        Raises:
            MissingError: there is no such checkpoint, or nothing says what wrote its states.
            CacheMismatchError: the states are of other weights.
            ModelError: its family does not work without layers.
        """
        return StatesTeacher(self.experiment, name, location, self.tokenizer, self.identify(location))

    def run_build(self, build: Callable[[], bool]) -> bool:
        """Build in this process."""
        return build()


class StatesTeacher(Teacher):
    """A checkpoint of which only what comes after its layers is in memory."""

    def __init__(self, experiment: CacheExperiment, name: str, location: str, tokenizer: Any, fingerprint: str) -> None:
        config = experiment.teacher
        assert config.hidden_states is not None  # the config holds it with this engine
        folder = Path(expand(config.hidden_states))
        self.files = StateFiles.of(folder, name, config.hidden_states_wait)
        self.deletes = config.hidden_states_delete
        self.shared = shared_keys(folder) if self.deletes else frozenset()
        self._verified = False
        ran_by = self.files.ran_by()
        if ran_by.weights_fingerprint != fingerprint:
            raise CacheMismatchError(
                f"{self.files.folder}: hidden states of weights {ran_by.weights_fingerprint[:12]}…, but checkpoint "
                f"{name!r} at {location!r} has {fingerprint[:12]}…; run the engine on this checkpoint"
            )
        super().__init__(experiment, name, location, tokenizer, fingerprint)
        self.source = _StoredStates(self.model, final_norm(self.model), self.files)
        self.identity = self.identity.model_copy(
            update={
                "dtype": f"{ran_by.dtype}, final norm and head {self.identity.dtype}",
                "attn_implementation": f"hidden states of {ran_by.engine} {ran_by.version}",
            }
        )

    def _load(self, experiment: CacheExperiment, location: str) -> PreTrainedModel:
        model = place(load_last_parts(experiment.teacher, experiment.run.seed, location), experiment.teacher)
        verify_head(model)  # before stored states take the place of what a few tokens give
        return model

    def targets(self, corpus: NumberedSequences, start: int, end: int, options: TargetOptions) -> Targets:
        """Capture the global positions [start, end)."""
        self._verify_on(corpus, rows_between(corpus.position_offsets, start, end))
        return super().targets(corpus, start, end, options)

    def probe_ids(self, corpus: NumberedSequences, rows: np.ndarray, count: int) -> np.ndarray:
        """Choose the probe's ids, u32 [M, R]: the top tokens and the gold at every position of `rows`."""
        self._verify_on(corpus, rows)
        return super().probe_ids(corpus, rows, count)

    def done_with(self, corpus: NumberedSequences, rows: np.ndarray) -> None:
        """Delete the files of these rows, if that was asked for, but for those that other rows share."""
        if not self.deletes:
            return
        for row in rows:
            key = sequence_key(corpus.sequence(int(row))[0])
            if key not in self.shared:
                self.files.delete(key)

    def release(self) -> None:
        """Give the memory back."""
        del self.source
        super().release()

    def _verify_on(self, corpus: NumberedSequences, rows: np.ndarray) -> None:
        """Compare the head with the model's own logits on stored states, which reach what a few tokens may not.

        The states are of a row that is asked for now: another's may have been deleted.
        """
        if self._verified or not len(rows):
            return
        self._verified = True
        tokens, completion = corpus.sequence(int(rows[0]))
        states_TD = self.files.read(tokens, self.source.hidden_size)[:_VERIFIED_TOKENS]
        part = collate([(tokens[:_VERIFIED_TOKENS], completion[:_VERIFIED_TOKENS])], self.batching.pad_id)
        with self.source.serving(states_TD):
            verify_head(self.model, part)


class _StoredStates:
    """Puts stored states in front of a model's final norm, by the tokens that the model is called with."""

    def __init__(self, model: PreTrainedModel, norm: nn.Module, files: StateFiles) -> None:
        self.files = files
        self.hidden_size = read_head(model, 1).weight_VD.shape[1]
        self._served_TD: Tensor | None = None
        self._next_BTD: Tensor | None = None
        base_of(model).register_forward_pre_hook(self._find, with_kwargs=True)
        norm.register_forward_pre_hook(self._put)

    @contextmanager
    def serving(self, states_TD: Tensor) -> Iterator[None]:
        """Give these states to whatever single sequence the model is called with."""
        self._served_TD = states_TD
        try:
            yield
        finally:
            self._served_TD = None

    def _find(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = (args[0] if args else kwargs["input_ids"]).cpu()
        mask = kwargs["attention_mask"].cpu().bool()
        rows = [
            self.files.read(ids[used].numpy(), self.hidden_size) if self._served_TD is None else self._served_TD
            for ids, used in zip(input_ids, mask, strict=True)
        ]
        states_BTD = torch.zeros(*input_ids.shape, self.hidden_size, dtype=rows[0].dtype)
        for states_TD, row_TD, used in zip(states_BTD, rows, mask, strict=True):
            states_TD[used] = row_TD
        self._next_BTD = states_BTD

    def _put(self, norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self._next_BTD is not None
        states_BTD, self._next_BTD = self._next_BTD, None
        # Half-precision states are widened where norm and head compute in more: rounding them again would lose digits.
        return (states_BTD.to(args[0].device, args[0].dtype), *args[1:])

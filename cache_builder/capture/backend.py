"""The seam for engines that run the teacher: what `build` knows of them, and the one place that names them.

    config ─▶ open_engine ─▶ Engine ── identify(location) ─▶ fingerprint of a checkpoint's weights
                               ├───── load(name, location) ─▶ Backend: targets, probe, losses of one checkpoint
                               └───── run_build(work)          with the processes that it needs around a build

An engine is added by fulfilling the two protocols and naming it here and in the setting `teacher.engine`; nothing in
`build` changes. Whatever it runs on, the same checkpoint must say the same of the same positions, whoever asks and in
whatever order.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from cache_builder.capture.hidden_states import HiddenStatesEngine
from cache_builder.capture.teacher import TransformersEngine
from cache_builder.config import CacheExperiment, EngineName
from cache_builder.format.manifest import CheckpointIdentity, TargetOptions
from cache_builder.sequences import NumberedSequences
from cache_builder.targets.sparse import Targets


class Backend(Protocol):
    """One checkpoint, ready to be run over sequences.

    Every method raises ModelError where the checkpoint gives NaN or infinite numbers; the message names the sequence.
    """

    @property
    def identity(self) -> CheckpointIdentity:
        """What the cache records of the checkpoint: its name, weights, and in which numbers it computes."""

    def agree_on_batches(self, begun_with: int | None) -> int | None:
        """Say how many tokens a batch takes, so that a build which is continued rounds as it did before.

        Args:
            begun_with: what this said when the checkpoint was begun; None where it has not been, or said None.
        """

    def targets(self, corpus: NumberedSequences, start: int, end: int, options: TargetOptions) -> Targets:
        """Capture the global positions [start, end).

        A position's tail samples are the first ids at which the tail's cumulative sum exceeds `tail_uniforms`. Where
        `options.edges` cuts the vocabulary, the tail's mass in each block is kept, and with samples Σ p(v | tail)².
        """

    def probe_ids(self, corpus: NumberedSequences, rows: np.ndarray, count: int) -> np.ndarray:
        """Choose the probe's ids, u32 [M, R], at every position of `rows` [P]: the top tokens and the gold."""

    def probe_logp(
        self, corpus: NumberedSequences, rows: np.ndarray, ids_MR: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return log-probabilities f32 [M, R] at these ids, and the log of the mass outside them f32 [M]."""

    def mean_loss(self, corpus: NumberedSequences) -> float:
        """Return the mean negative log-likelihood per position of a whole corpus, in nats."""

    def done_with(self, corpus: NumberedSequences, rows: np.ndarray) -> None:
        """What these rows give is committed, and they will not be asked for again."""

    def release(self) -> None:
        """Give the memory back; the checkpoint says nothing any more."""


class Engine(Protocol):
    """Runs the checkpoints of one experiment."""

    def identify(self, location: str) -> str:
        """Return the fingerprint of a checkpoint's weights, without loading them.

        Raises:
            MissingError: there is no checkpoint at this folder or hub id.
        """

    def load(self, name: str, location: str) -> Backend:
        """Bring a checkpoint to memory; the one loaded before must have been released.

        Raises:
            MissingError: there is no such checkpoint.
            ModelError: it cannot be loaded, or does not fit the tokenizer.
        """

    def run_build(self, build: Callable[[], bool]) -> bool:
        """Do a build, with whatever processes the engine needs around it; return its result."""


OpenEngine = Callable[[CacheExperiment, PreTrainedTokenizerBase], Engine]

ENGINES: dict[EngineName, OpenEngine] = {
    "transformers": TransformersEngine,
    "hidden-states": HiddenStatesEngine,
}
"""By the name that `teacher.engine` gives."""


def open_engine(experiment: CacheExperiment, tokenizer: PreTrainedTokenizerBase) -> Engine:
    """Return the engine that runs an experiment's teacher; nothing is loaded yet."""
    return ENGINES[experiment.teacher.engine](experiment, tokenizer)

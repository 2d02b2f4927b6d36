"""What is to be done, as numbers: models, corpus, checkpoints, students; from an experiment, whose data may be unread.

corpus       tokenised ─▶ exact         read, not tokenised ─▶ 4 bytes a token         given ─▶ as given
"""

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from cache_builder.data.corpus import Corpus, open_corpus
from cache_builder.data.examples import Split, load_splits
from cache_builder.errors import MissingError, UserError
from cache_builder.format.size import CacheSize
from trainer.config import Experiment, StudentConfig, TrainingConfig
from trainer.methods.methods import get_method
from trainer.planning.measured import Measured

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTISED_BYTES: dict[str | None, float] = {"8bit": 1.0, "4bit": 0.5}
"""Of a parameter; scales and what stays unquantised are not counted."""
BYTES_PER_TOKEN = 4
"""UTF-8 bytes of English text per token: a rule of thumb, used only until the corpus is tokenised."""


@dataclass(frozen=True)
class CorpusSize:
    """The sizes of a corpus."""

    sequences: int
    tokens: int
    positions: int
    source: str
    attention_length: float = 0.0
    """Tokens of the sequence of a token, on the average over tokens."""
    padding: float = 1.0
    """Tokens computed in training per token of text, the sequences of a batch being padded to the longest."""
    held_out_tokens: int = 0
    held_out_positions: int = 0
    sample_id_bytes: int | None = None
    """Of all ids together; None where they are not known."""
    problem: bool = False
    """Whether the data could not be read; `source` says why."""


@dataclass(frozen=True)
class Training:
    """One training run over the corpus."""

    epochs: int
    sequences_per_step: int
    micro_batch: int
    gradient_checkpointing: bool = False
    lora: bool = False
    half: bool = False
    """Whether it computes in 16 bits, whatever the weights are kept in."""

    @property
    def passes(self) -> float:
        """Forward passes of the body that cost as much as a step: forward, backward, and what is recomputed."""
        return (2.0 if self.lora else 3.0) + self.gradient_checkpointing


@dataclass(frozen=True)
class Workload:
    """Everything that takes time in an experiment, and its evaluation, which is not planned, left out."""

    cache: CacheSize
    corpus: CorpusSize
    max_length: int
    teacher_dtype: str
    teacher_parameter_bytes: float
    """As the cache's builder holds them, quantised or not."""
    teacher_gpus: int
    """That share one checkpoint while the cache is built."""
    student_dtype: str
    teacher_sft: Training | None
    """None where the checkpoints are given."""
    student_sft: Training | None
    distill: Training
    """Of one stage."""
    stages: int
    methods: tuple[str, ...]
    seeds: int
    batch_tokens: int
    window_chunks: int
    bytes_per_position: tuple[float, str]
    """Of the records on disk, and how that is known."""

    @property
    def students(self) -> int:
        return len(self.methods) * self.seeds

    @property
    def reading_students(self) -> int:
        """Students that a checkpoint teaches, all but those of `sft`."""
        return sum(get_method(method).divergence is not None for method in self.methods) * self.seeds


def corpus_size(experiment: Experiment) -> CorpusSize:
    """Return the sizes of the training corpus, exact where it is tokenised, else estimated from the text."""
    folder = experiment.output_dir / "corpus"
    try:
        size = tokenised_size(open_corpus(folder / "train"), experiment.distill.per_device_train_batch_size)
        with suppress(MissingError):
            held_out = open_corpus(folder / "validation")
            size = replace(
                size, held_out_tokens=int(held_out.token_offsets[-1]), held_out_positions=held_out.n_positions
            )
        return size
    except MissingError:
        pass
    try:
        splits = load_splits(experiment.data, experiment.run.seed)
    except (UserError, OSError) as error:
        return CorpusSize(0, 0, 0, f"not to be read here: {error}", problem=True)
    tokens, positions = _estimated(splits["train"], experiment.text.max_length)
    held_out_tokens, held_out_positions = _estimated(splits["validation"], experiment.text.max_length)
    return CorpusSize(
        sequences=len(splits["train"]),
        tokens=tokens,
        positions=positions,
        source=f"positions estimated at {BYTES_PER_TOKEN} bytes a token",
        attention_length=tokens / max(1, len(splits["train"])),
        held_out_tokens=held_out_tokens,
        held_out_positions=held_out_positions,
    )


def tokenised_size(corpus: Corpus, micro_batch: int) -> CorpusSize:
    """Return the sizes of a tokenised corpus, and how much a random batch of it pads."""
    lengths = np.sort(np.diff(corpus.token_offsets)).astype(np.float64)
    n = len(lengths)
    ranks = np.arange(1, n + 1) / n
    longest = float((lengths * (ranks**micro_batch - (ranks - 1 / n) ** micro_batch)).sum())
    return CorpusSize(
        sequences=n,
        tokens=int(lengths.sum()),
        positions=corpus.n_positions,
        source="tokenised",
        attention_length=float((lengths**2).sum() / lengths.sum()),
        padding=longest / float(lengths.mean()),
        sample_id_bytes=int(corpus.sample_ids.offsets[-1]),
    )


def given_size(positions: float, share: float, length: float, held_out: float) -> CorpusSize:
    """Return the sizes of a corpus of which only numbers are known; `held_out` is a share of all there is."""
    tokens, others = positions / share, held_out / (1 - held_out)
    return CorpusSize(
        sequences=max(1, round(tokens / length)),
        tokens=round(tokens),
        positions=round(positions),
        source="given",
        attention_length=length,
        held_out_tokens=round(tokens * others),
        held_out_positions=round(positions * others),
    )


def workload(
    experiment: Experiment, corpus: CorpusSize, vocabulary: int, measured: Measured, *, sft: bool = True
) -> Workload:
    """Return what an experiment will do with such a corpus and a tokenizer of so many tokens.

    Args:
        sft: whether the fine-tunings of teacher and student are among it.
    """
    cache, distill, text = experiment.cache, experiment.distill, experiment.text
    checkpoints = experiment.teacher.checkpoints
    count = checkpoints if isinstance(checkpoints, int) else len(checkpoints)
    probed = min(cache.probe_sequences, corpus.sequences) / max(1, corpus.sequences)
    size = CacheSize(
        sequences=corpus.sequences,
        tokens=corpus.tokens,
        positions=corpus.positions,
        checkpoints=count,
        top_k=cache.top_k,
        tail_samples=cache.tail_samples,
        shard_positions=cache.shard_positions,
        chunk_positions=cache.chunk_positions,
        probe_sequences=cache.probe_sequences,
        probe_positions=round(corpus.positions * probed),
        probe_top_k=min(cache.probe_top_k, vocabulary),
        sample_id_bytes=corpus.sample_id_bytes,
    )
    fine_tuned = sft and isinstance(checkpoints, int)
    return Workload(
        cache=size,
        corpus=corpus,
        max_length=text.max_length,
        teacher_dtype=experiment.teacher.dtype,
        teacher_parameter_bytes=QUANTISED_BYTES.get(
            experiment.teacher.quantization, DTYPE_BYTES[experiment.teacher.dtype]
        ),
        teacher_gpus=experiment.teacher.tensor_parallel,
        student_dtype=experiment.student.dtype,
        teacher_sft=training(experiment.sft.teacher, experiment.sft.teacher.num_train_epochs) if fine_tuned else None,
        student_sft=training(experiment.sft.student, experiment.sft.student.num_train_epochs, experiment.student)
        if sft
        else None,
        distill=training(distill, distill.epochs_per_stage, experiment.student),
        stages=count,
        methods=tuple(distill.methods),
        seeds=len(distill.seeds),
        batch_tokens=cache.batch_tokens,
        window_chunks=distill.window_chunks,
        bytes_per_position=measured.bytes_per_position(
            cache.top_k, cache.top_p, cache.tail_samples, cache.logp_steps_per_nat
        ),
    )


def training(config: TrainingConfig, epochs: int, student: StudentConfig | None = None) -> Training:
    """Return what a section of the config says of a training."""
    return Training(
        epochs=epochs,
        sequences_per_step=config.sequences_per_step,
        micro_batch=config.per_device_train_batch_size,
        gradient_checkpointing=bool(config.other_arguments.get("gradient_checkpointing")),
        lora=student is not None and student.lora is not None,
        half=bool(config.other_arguments.get("bf16") or config.other_arguments.get("fp16")),
    )


def _estimated(split: Split, max_length: int) -> tuple[int, int]:
    """Return (tokens, positions) at four bytes a token."""
    tokens = positions = 0
    for example in split:
        counts = {True: 0, False: 0}
        for message in example["messages"]:
            counts[message["role"] == "assistant"] += len(message["content"].encode()) // BYTES_PER_TOKEN + 1
        tokens += min(max_length, sum(counts.values()))
        positions += min(max_length, counts[True])
    return tokens, positions

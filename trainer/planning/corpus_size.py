"""How much text there is to train on.

tokenised ─▶ exact         read, not tokenised ─▶ 4 bytes a token         sizes given ─▶ as given
"""

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from cache_builder.data.corpus import Corpus, open_corpus
from cache_builder.data.examples import Split
from cache_builder.data.splits import load_splits
from cache_builder.errors import ConfigError, MissingError, UserError
from trainer.config import Experiment

BYTES_PER_TOKEN = 4
"""UTF-8 bytes of English text per token: a rule of thumb, used only until the corpus is tokenised."""


@dataclass(frozen=True)
class CorpusSize:
    """The sizes of a training corpus, and of what is held out beside it."""

    sequences: int
    tokens: int
    positions: int
    source: str
    attention_length: float
    """Tokens of the sequence of a token, on the average over tokens."""
    padding: float = 1.0
    """Tokens computed in training per token of text, the sequences of a batch being padded to the longest."""
    held_out_tokens: int = 0
    held_out_positions: int = 0
    sample_id_bytes: int | None = None
    """Of all ids together; None where they are not known."""


def corpus_size(experiment: Experiment) -> CorpusSize:
    """Return the sizes of an experiment's corpus, exact where it is tokenised, else estimated from the text.

    Raises:
        ConfigError: the data cannot be read here.
    """
    folder = experiment.output_dir / "corpus"
    with suppress(MissingError):
        size = tokenised_size(open_corpus(folder / "train"), experiment.distill.per_device_train_batch_size)
        with suppress(MissingError):
            held_out = open_corpus(folder / "validation")
            tokens = int(held_out.token_offsets[-1])
            size = replace(size, held_out_tokens=tokens, held_out_positions=held_out.n_positions)
        return size
    try:
        splits = load_splits(experiment.data, experiment.run.seed)
    except (UserError, OSError) as error:
        raise ConfigError(f"the data cannot be read here: {error}; give --positions, such as 1e6") from error
    tokens, positions = _estimated(splits["train"], experiment.text.max_length)
    held_out_tokens, held_out_positions = _estimated(splits["validation"], experiment.text.max_length)
    return CorpusSize(
        sequences=len(splits["train"]),
        tokens=tokens,
        positions=positions,
        source=f"estimated at {BYTES_PER_TOKEN} bytes a token",
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


def _estimated(split: Split, max_length: int) -> tuple[int, int]:
    """Return (tokens, positions) at four bytes a token."""
    tokens = positions = 0
    for example in split:
        counts = {True: len(example.get("text", "").encode()) // BYTES_PER_TOKEN, False: 0}
        for message in example["messages"]:
            written = f"{message.get('reasoning_content', '')}{message['content']}"
            counts[message["role"] == "assistant"] += len(written.encode()) // BYTES_PER_TOKEN + 1
        tokens += min(max_length, sum(counts.values()))
        positions += min(max_length, counts[True])
    return tokens, positions

"""The sequences that pairs are measured on: (token ids, completion mask), as a corpus has them.

PubMed    every token of an abstract but its first 33     plain text
SNIPS     the answer's tokens                             prompt and answer in the model's own chat template
others    a BPE of its own, trained on the texts          rows of SEQUENCE_TOKENS tokens, as a stream
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from cache_builder.config import DataConfig
from cache_builder.data.chat import encode
from cache_builder.data.splits import load_splits
from cache_builder.data.tokenizer import train_tokenizer

SEQUENCE_TOKENS = 128
CONTEXT_TOKENS = 33
Sequence = tuple[np.ndarray, np.ndarray]


def abstracts(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[Sequence]:
    """Return PubMedQA's abstracts; the first tokens, which nothing tells, are no completion."""
    records = json.loads(file.read_text(encoding="utf-8")).values()
    sequences = []
    for record in records:
        ids = np.array(tokenizer(" ".join(record["CONTEXTS"]))["input_ids"][: CONTEXT_TOKENS + SEQUENCE_TOKENS])
        sequences.append((ids, np.arange(len(ids)) >= CONTEXT_TOKENS))
    return sequences


def answers(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[Sequence]:
    """Return SNIPS' questions after intents and slots, with their answers as the completion, in a random order."""
    config = DataConfig(source="snips", path=str(folder), validation_fraction=0)
    examples = load_splits(config, 0)["train"]
    template = str(tokenizer.chat_template)
    sequences = []
    for row in np.random.default_rng(0).permutation(len(examples))[:4000]:
        encoded = encode(examples[int(row)], tokenizer, template, max_length=256)
        if encoded is not None:
            sequences.append((np.array(encoded.input_ids), np.array(encoded.completion)))
    return sequences


def stream(files: list[Path], vocabulary: int) -> np.ndarray:
    """Train a BPE on the texts and cut them to [rows, SEQUENCE_TOKENS]."""
    texts = [text for file in files for text in texts_in(file)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, vocabulary, Path(folder))
    tokens = np.concatenate([np.array([*tokenizer(text)["input_ids"], 0]) for text in texts])
    return tokens[: len(tokens) // SEQUENCE_TOKENS * SEQUENCE_TOKENS].reshape(-1, SEQUENCE_TOKENS)


def texts_in(file: Path) -> Iterator[str]:
    """The conversations of a ShareGPT file, the longer texts in another JSON file, or the paragraphs of any other."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        for line in content.strip().split("\n"):
            yield "\n".join(turn["value"] for turn in json.loads(line)["conversations"])
        return
    if file.suffix != ".json":
        yield from (part for part in content.split("\n\n") if part.strip())
        return
    pending = [json.loads(content)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str) and len(value) > 30:
            yield value

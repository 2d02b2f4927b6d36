"""A corpus is tokenised once, names its content, and is never reused for another."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from cache_builder.data.chat import encode
from cache_builder.data.corpus import Corpus, build_corpus, open_corpus
from cache_builder.data.examples import Example
from cache_builder.errors import CacheMismatchError, DataError, MissingError
from tests.support.toys import color_examples


def build(folder: Path, tokenizer: PreTrainedTokenizerBase, examples: list[Example], max_length: int = 64) -> Corpus:
    return build_corpus(examples, tokenizer, folder, chat_template="plain", max_length=max_length, inputs={"data": "x"})


def test_a_corpus_holds_what_was_encoded(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = color_examples(20)
    corpus = build(tmp_path / "c", tokenizer, examples)
    for row, example in enumerate(examples):
        encoded = encode(example, tokenizer, "plain", 64)
        assert encoded is not None
        tokens, completion = corpus.sequence(row)
        assert tokens.tolist() == encoded.input_ids
        assert completion.tolist() == encoded.completion
        assert corpus.sequence_positions(row) == sum(encoded.completion[1:])
        assert corpus.sample_ids[row] == example["id"]
    assert corpus.n_positions == corpus.counts["positions"] == int(np.sum(corpus.completion))


def test_a_finished_corpus_is_reopened_and_not_made_again(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    first = build(tmp_path / "c", tokenizer, color_examples(5))
    assert build(tmp_path / "c", tokenizer, []).fingerprint == first.fingerprint
    assert open_corpus(tmp_path / "c").fingerprint == first.fingerprint


def test_other_settings_are_refused_by_name(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    build(tmp_path / "c", tokenizer, color_examples(5))
    with pytest.raises(CacheMismatchError, match="max_length: it has 64, now 32"):
        build(tmp_path / "c", tokenizer, color_examples(5), max_length=32)


def test_the_fingerprint_names_tokens_masks_ids_and_order(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = color_examples(6)
    renamed = [{**examples[0], "id": "other"}, *examples[1:]]
    fingerprints = [
        build(tmp_path / str(index), tokenizer, rows).fingerprint  # type: ignore[arg-type]
        for index, rows in enumerate([examples, examples[::-1], examples[:5], renamed, examples])
    ]
    assert len(set(fingerprints)) == 4
    assert fingerprints[0] == fingerprints[4]


def test_what_is_truncated_or_dropped_is_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    long_prompt: Example = {**color_examples(1)[0], "id": "long"}
    long_prompt["messages"] = [{"role": "user", "content": "red " * 50}, {"role": "assistant", "content": "green"}]
    long_answer: Example = {**color_examples(1)[0], "id": "answer"}
    long_answer["messages"] = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "green " * 50}]
    corpus = build(tmp_path / "c", tokenizer, [*color_examples(3), long_prompt, long_answer], max_length=20)
    assert (corpus.counts["sequences"], corpus.counts["truncated"], corpus.counts["dropped"]) == (4, 1, 1)


def test_nothing_left_duplicate_ids_and_a_missing_corpus_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match="no example is left"):
        build(tmp_path / "a", tokenizer, color_examples(3), max_length=3)
    with pytest.raises(DataError, match="'color-0'"):
        build(tmp_path / "b", tokenizer, [*color_examples(2), *color_examples(1)])
    with pytest.raises(MissingError, match="unfinished"):
        open_corpus(tmp_path / "b")

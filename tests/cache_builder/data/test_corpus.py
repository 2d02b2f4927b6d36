"""A corpus is tokenised once, names its content, and is never reused for another."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from cache_builder.config import TextConfig
from cache_builder.data.chat import encode
from cache_builder.data.corpus import FILES, Corpus, open_corpus
from cache_builder.data.examples import Example
from cache_builder.data.tokenising import build_corpus
from cache_builder.errors import CacheDamagedError, CacheMismatchError, DataError, MissingError
from tests.support.toys import color_examples


def build(folder: Path, tokenizer: PreTrainedTokenizerBase, examples: list[Example], max_length: int = 64) -> Corpus:
    return build_corpus(
        examples, tokenizer, folder, text=TextConfig(chat_template="plain", max_length=max_length), inputs={"data": "x"}
    )


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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "remove"])
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, name: str, damage: str
) -> None:
    build(tmp_path / "c", tokenizer, color_examples(5))
    path = tmp_path / "c" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flip": bytes(content), "cut": content[:-1], "grow": content + b"\0", "empty": b""}
    path.unlink()
    if damage != "remove":
        path.write_bytes(damaged[damage])
    with pytest.raises(CacheDamagedError, match=name.replace(".", r"\.")):
        open_corpus(tmp_path / "c")
    with pytest.raises(CacheDamagedError, match=name.replace(".", r"\.")):
        build(tmp_path / "c", tokenizer, color_examples(5))


def test_settings_of_what_is_trained_on_make_another_corpus(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    messages = color_examples(1)[0]["messages"]
    rows: list[Example] = [{"id": "a", "task": "t", "messages": [*messages, *messages]}]
    text = TextConfig(chat_template="plain", max_length=64)
    everything = build_corpus(rows, tokenizer, tmp_path / "c", text=text, inputs={})
    last = text.model_copy(update={"train_on": "last"})
    with pytest.raises(CacheMismatchError, match="train_on: it has None, now 'last'"):
        build_corpus(rows, tokenizer, tmp_path / "c", text=last, inputs={})
    only = build_corpus(rows, tokenizer, tmp_path / "last", text=last, inputs={})
    assert only.fingerprint != everything.fingerprint and 0 < only.n_positions * 2 == everything.n_positions


def test_every_token_of_a_text_is_a_position_whole_or_in_blocks(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows: list[Example] = [
        {"id": "long", "task": "t", "messages": [], "text": "red green blue " * 20},
        {"id": "short", "task": "t", "messages": [], "text": "red"},
    ]
    whole = build_corpus(rows, tokenizer, tmp_path / "whole", text=TextConfig(max_length=1000), inputs={})
    assert list(whole.sample_ids) == ["long", "short"]
    ids = tokenizer(rows[0]["text"])["input_ids"]
    assert whole.sequence(0)[0].tolist() == [*ids, tokenizer.eos_token_id]
    assert whole.sequence_positions(0) == len(ids)
    blocks = TextConfig(max_length=16, split_documents=True)
    cut = build_corpus(rows, tokenizer, tmp_path / "cut", text=blocks, inputs={})
    assert list(cut.sample_ids)[:2] == ["long", "long#1"] and cut.n_positions == whole.n_positions
    parts = [cut.sequence(row)[0].tolist() for row in range(len(cut) - 1)]
    assert all(len(part) <= 16 for part in parts)
    assert [*parts[0][:1], *(token for part in parts for token in part[1:])] == [*ids, tokenizer.eos_token_id]
    dropped = build_corpus(rows, tokenizer, tmp_path / "dropped", text=TextConfig(max_length=16), inputs={})
    assert (list(dropped.sample_ids), dropped.counts["dropped"]) == (["short"], 1)

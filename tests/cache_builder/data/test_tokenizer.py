"""A tokenizer with gaps in its ids is refused before it takes memory, or where it gives an id beyond its size."""

import json
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from transformers import PreTrainedTokenizerBase

from cache_builder.data.chat import encode, encode_prompt, encode_text
from cache_builder.data.tokenizer import load_tokenizer
from cache_builder.errors import DataError, ModelError
from tests.support.fuzz import in_time
from tests.support.toys import color_examples


def renumbered(tokenizer: PreTrainedTokenizerBase, folder: Path, token: str, number: int) -> str:
    """Save a tokenizer in which one token has another id."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model"]["vocab"][token] = number
    for added in settings["added_tokens"]:
        if added["content"] == token:
            added["id"] = number
    path.write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers 5.18 goes through all ids itself while it loads, before anybody can refuse them",
)
@pytest.mark.parametrize("number", [2**24, 2**31, 2**32 - 1])
def test_an_id_that_no_cache_holds_is_refused_before_it_takes_memory(
    number: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    place = renumbered(tokenizer, tmp_path / "tokenizer", "r", number)
    with in_time(), pytest.raises(ModelError, match=rf"has a token with the id {number:,}, a cache holds ids below"):
        load_tokenizer(place)


def test_a_file_that_the_tokenizers_own_program_breaks_down_at_is_one_message(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model"]["continuing_subword_prefix"] = "../../x"  # longer than the tokens that merges join
    path.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match=r"cannot be read: PanicException: range end index .*get its files anew"):
        load_tokenizer(str(tmp_path))


def test_a_token_beyond_the_tokenizers_size_is_refused_where_a_text_has_it(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    gap = load_tokenizer(renumbered(tokenizer, tmp_path / "letter", "?", 5_000))
    row = {
        **color_examples(1)[0],
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "red"}],
    }
    for read in (
        lambda: encode(row, gap, "plain", 64),
        lambda: encode_prompt(row, gap, "plain"),
        lambda: encode_text({"id": "a", "text": "red?"}, gap, 64, False),  # type: ignore[typeddict-item]
    ):
        with pytest.raises(DataError, match=r"has \d+ tokens and gives the id 5,000: its ids have gaps"):
            read()
    assert encode_text({"id": "a", "text": "red"}, gap, 64, False)  # type: ignore[typeddict-item]


def test_an_end_of_text_beyond_the_tokenizers_size_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    assert isinstance(tokenizer.eos_token, str)
    gap = load_tokenizer(renumbered(tokenizer, tmp_path / "eos", tokenizer.eos_token, 5_000))
    with pytest.raises(DataError, match="gives the id 5,000"):
        encode_text({"id": "a", "text": "red"}, gap, 64, False)  # type: ignore[typeddict-item]

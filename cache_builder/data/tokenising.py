"""Examples to a corpus: tokenised once, into the files that `corpus.py` reads.

examples ─▶ encode_all ─▶ (id, tokens and completion, or None: dropped) ─▶ store_sequences ─▶ files, counts, digests
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from cache_builder.config import TextConfig
from cache_builder.data.chat import Encoded, encode, encode_text
from cache_builder.data.corpus import FILES, Corpus
from cache_builder.data.digests import sha256_of
from cache_builder.data.examples import Example
from cache_builder.data.rendering.templates import template_fingerprint
from cache_builder.data.tokenizer import tokenizer_fingerprint
from cache_builder.errors import DataError
from cache_builder.positions import is_position
from cache_builder.sequences import Fingerprint
from cache_builder.steps import finish_stage, stage_result


def build_corpus(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    text: TextConfig,
    inputs: dict[str, Any],
) -> Corpus:
    """Tokenise `examples` into `folder`, or reopen what is there if it was made from the same `inputs`.

    Raises:
        DataError: nothing is left to train on, two examples share an id, or an example cannot be encoded.
        CacheMismatchError: the folder holds a corpus made from other inputs.
    """
    identity = {
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "template_fingerprint": template_fingerprint(tokenizer, text.chat_template),
        "max_length": text.max_length,
    }
    # As a corpus made before there were these settings has none of them, the defaults are not recorded.
    chosen = text.model_dump(include={"train_on", "split_documents"}, exclude_defaults=True)
    result = stage_result(folder, {**inputs, **identity, **chosen})
    if result is None:
        result = {**store_sequences(encode_all(examples, tokenizer, text), folder), **identity}
        if not result["counts"]["sequences"]:
            raise DataError(
                f"no example is left to use: {result['counts']['dropped']} were dropped because their completion does "
                f"not fit text.max_length = {text.max_length} tokens"
            )
        finish_stage(folder, result)
    return Corpus(folder, result)


def encode_all(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, text: TextConfig
) -> Iterator[tuple[str, Encoded | None]]:
    """Yield each example's id and tokens, None where they do not fit; a text's blocks are `id`, `id#1`, `id#2`, …

    Raises:
        DataError: an example cannot be encoded; the message names it.
    """
    for example in examples:
        if "text" not in example:
            yield example["id"], encode(example, tokenizer, text.chat_template, text.max_length, text.train_on)
            continue
        blocks = encode_text(example, tokenizer, text.max_length, text.split_documents)
        for number, block in enumerate(blocks):
            yield f"{example['id']}#{number}" if number else example["id"], block
        if not blocks:
            yield example["id"], None


def store_sequences(sequences: Iterable[tuple[str, Encoded | None]], folder: Path) -> dict[str, Any]:
    """Write (id, sequence) pairs into flat files; return their fingerprint and counts. None is counted as dropped.

    Raises:
        DataError: two sequences share an id.
    """
    counts = {"sequences": 0, "tokens": 0, "positions": 0, "truncated": 0, "truncated_tokens": 0, "dropped": 0}
    fingerprint = Fingerprint()
    seen_ids: set[bytes] = set()
    id_bytes = 0
    files: list[BinaryIO] = [(folder / name).open("wb") for name in FILES]
    try:
        tokens_file, completion_file, offsets_file, ids_file, id_offsets_file = files
        offsets_file.write(np.zeros(2, "<i8").tobytes())
        id_offsets_file.write(np.zeros(1, "<i8").tobytes())
        for name, encoded in sequences:
            if encoded is None:
                counts["dropped"] += 1
                continue
            try:
                sample_id = name.encode()
            except UnicodeEncodeError:
                raise DataError(f"the id {name!r} is no Unicode text; rename the example") from None
            key = hashlib.blake2b(sample_id, digest_size=12).digest()
            if key in seen_ids:
                raise DataError(f"two examples have the id {name!r}; ids must be unique")
            seen_ids.add(key)
            tokens = np.asarray(encoded.input_ids, "<u4")
            completion = np.asarray(encoded.completion, np.bool_)
            counts["sequences"] += 1
            counts["tokens"] += len(encoded.input_ids)
            counts["positions"] += int(is_position(completion).sum())
            counts["truncated"] += encoded.truncated_tokens > 0
            counts["truncated_tokens"] += encoded.truncated_tokens
            id_bytes += len(sample_id)
            tokens_file.write(tokens.tobytes())
            completion_file.write(completion.tobytes())
            offsets_file.write(np.asarray([counts["tokens"], counts["positions"]], "<i8").tobytes())
            ids_file.write(sample_id)
            id_offsets_file.write(np.asarray([id_bytes], "<i8").tobytes())
            fingerprint.add(sample_id, tokens, completion)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files:
            file.close()
    digests = {name: sha256_of(folder / name) for name in FILES}
    return {"fingerprint": fingerprint.hexdigest(), "counts": counts, "files": digests}

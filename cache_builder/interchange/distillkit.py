"""Rows of DistillKit's Parquet files: one sequence each, with a compressed target for every token but the first.

    input_ids             t0  t1  t2  t3  …
    compressed_logprobs       r0  r1  r2  …     row r is the distribution of token r + 1: DistillKit drops the first
                                                token's, and trains on them unshifted; a packed row has one more,
                                                of the token after the last one, which is not used
    labels (optional)   −100 where a token is not to be learned; without it every token but the first is learned

A pad token that DistillKit's capture puts at the end, to get the last token's target, is not learned, unless it is eos.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from cache_builder.errors import DataError
from cache_builder.interchange.distillkit_codec import Codec, LegacyCodec, load_codec
from cache_builder.interchange.rows import SourceRow, Tail, check_tokens
from cache_builder.interchange.tables import PARQUET, matrix, read_columns, source_files, vector

CONFIG_FILE = "compression_config.yaml"
CURRENT, LEGACY = ("compressed_logprobs", "bytepacked_indices"), ("packed_indices", "exact_values", "coeffs")
IGNORED = -100


class DistillKitSource:
    """A folder or file of DistillKit's rows, and the codec that they were written with."""

    format: Literal["distillkit"] = "distillkit"

    def __init__(self, source: Path, tokenizer: PreTrainedTokenizerBase, compression_config: Path | None) -> None:
        self.files = source_files(source, PARQUET)
        folder = source if source.is_dir() else source.parent
        self.codec = load_codec(compression_config or folder / CONFIG_FILE)
        self.vocab_size, self.eos_id = len(tokenizer), tokenizer.eos_token_id
        self.pad_id = tokenizer.pad_token_id

    @property
    def settings(self) -> dict[str, Any]:
        return {"codec": self.codec.model_dump(mode="json")}

    @property
    def default_tail(self) -> Tail:
        """What is stored of old captures are logits less their mean, of new ones log-probabilities."""
        return "none" if isinstance(self.codec, LegacyCodec) else "complement"

    @property
    def roundoff(self) -> float:
        return self.codec.roundoff

    def rows(self) -> Iterator[SourceRow]:
        """Yield every row.

        Raises:
            DataError: a row does not fit the codec or the tokenizer.
        """
        needed = LEGACY if isinstance(self.codec, LegacyCodec) else CURRENT
        for number, (where, columns) in enumerate(
            read_columns(self.files, ("input_ids", *needed), ("labels", "attention_mask", "id"))
        ):
            tokens = vector(columns["input_ids"], "input_ids", where)
            check_tokens(tokens, self.vocab_size, where)
            packed = self._packed(columns, where)
            lengths = {name: len(values) for name, values in zip(needed, packed, strict=True)}
            if any(length not in (len(tokens) - 1, len(tokens)) for length in lengths.values()):
                raise DataError(
                    f"{where}: expected a target for each of {len(tokens)} tokens, or for each but the first, got "
                    + ", ".join(f"{length} in `{name}`" for name, length in lengths.items())
                )
            learned = self._learned(tokens, columns, where)
            at = np.flatnonzero(learned) - 1
            ids_MK, logp_MK = self._decode([values[at] for values in packed])
            name = columns["id"].as_py() if "id" in columns else None
            yield SourceRow(
                where=where,
                sample_id=f"row-{number}" if name is None else str(name),
                tokens=tokens.astype(np.uint32),
                completion=learned,
                ids=ids_MK,
                logp=logp_MK,
                left_out=0,
            )

    def _packed(self, columns: dict[str, Any], where: str) -> list[np.ndarray]:
        codec = self.codec
        if isinstance(codec, Codec):
            return [
                matrix(columns["compressed_logprobs"], "compressed_logprobs", where, codec.value_bytes, "uint8"),
                matrix(columns["bytepacked_indices"], "bytepacked_indices", where, codec.index_bytes, "uint8"),
            ]
        return [
            matrix(columns["packed_indices"], "packed_indices", where, codec.index_words, "uint64"),
            matrix(columns["exact_values"], "exact_values", where, min(codec.exact_k, codec.k), "float64"),
            matrix(columns["coeffs"], "coeffs", where, codec.coefficients, "float64"),
        ]

    def _decode(self, packed: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):  # a number that is none is refused when targets are made, by row and token
            if isinstance(self.codec, Codec):
                return self.codec.ids(packed[1]), self.codec.values(packed[0])
            return self.codec.ids(packed[0]), self.codec.values(packed[1], packed[2])

    def _learned(self, tokens: np.ndarray, columns: dict[str, Any], where: str) -> np.ndarray:
        learned = np.ones(len(tokens), np.bool_)
        for name, ignored in (("labels", IGNORED), ("attention_mask", 0)):
            if name in columns and columns[name].is_valid:
                values = vector(columns[name], name, where)
                if len(values) != len(tokens):
                    raise DataError(f"{where}: `{name}`: expected {len(tokens)} numbers, got {len(values)}")
                learned &= values != ignored
        if "labels" not in columns and len(tokens) and tokens[-1] == self.pad_id != self.eos_id:
            learned[-1] = False
        learned[:1] = False
        return learned

"""How DistillKit packs the top-k log-probabilities of a token, and the way back; from a description of the format.

current   compressed_logprobs   exact_k values │ polynomial's coefficients │ per bin: scale, packed residuals │ …
          bytepacked_indices    k ids of ⌈log2 d⌉ bits, one after another, the highest bit first
legacy    exact_values, coeffs  numbers;   packed_indices   ⌊64 / bits⌋ ids in each 64-bit word, the first one lowest

    value i < exact_k     as stored
    value exact_k + t     Σ_j coefficient_j · term_j(t) + residual_t        t = 0, 1, …; legacy: t = 1, 2, …
    delta_encoding        values are differences to the one before

Computed in float64 throughout, where DistillKit uses the stored types. Source: github.com/arcee-ai/DistillKit,
distillkit/compression.

Shapes: R tokens of a row, K values.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cache_builder.errors import ConfigError, MissingError

Dtype = Literal["float16", "bfloat16", "float32", "float64"]
BYTES: dict[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
UNIT_ROUNDOFF: dict[str, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
MAX_CONFIG_BYTES, MAX_BRACKETS = 1 << 20, 500
MAX_VALUES, MAX_VOCABULARY, MAX_DEGREE = 1 << 20, 1 << 30, 64
"""Of any codec: a config may be anybody's, and what it says is allocated."""


class _Codec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ResidualBin(_Codec):
    """Residuals of some values after the exact ones, as integers times one scale."""

    scale_dtype: Dtype
    element_bits: int = Field(ge=1, le=64)
    num_elements: int = Field(ge=1, le=MAX_VALUES)


class Codec(_Codec):
    """DistillKit's `logprob_compressor`, by its own names and defaults."""

    d: int = Field(ge=2, le=MAX_VOCABULARY)
    k: int = Field(ge=1, le=MAX_VALUES)
    exact_k: int = Field(ge=0, le=MAX_VALUES)
    exact_dtype: Dtype = "float32"
    polynomial_terms: list[Annotated[int, Field(ge=0, le=MAX_DEGREE)] | Literal["sqrt", "exp"]] | None = None
    term_dtype: Dtype = "float32"
    residual_bins: list[ResidualBin]
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        approximated = self.k - self.exact_k
        if approximated < 0 or sum(each.num_elements for each in self.residual_bins) > approximated:
            raise ValueError("exact_k and the bins' num_elements must be at most k together")
        return self

    @property
    def index_bits(self) -> int:
        return _bits(self.d)

    @property
    def index_bytes(self) -> int:
        return -(-self.k * self.index_bits // 8)

    @property
    def value_bytes(self) -> int:
        """Bytes of one token's log-probabilities."""
        bins = (BYTES[each.scale_dtype] + _packed_bytes(each) for each in self.residual_bins)
        terms = len(self.polynomial_terms or ()) * BYTES[self.term_dtype]
        return self.exact_k * BYTES[self.exact_dtype] + terms + sum(bins)

    @property
    def roundoff(self) -> float:
        """Unit roundoff of the values that hold nearly all the mass."""
        return UNIT_ROUNDOFF[self.exact_dtype if self.exact_k else self.term_dtype]

    def ids(self, packed_RB: np.ndarray) -> np.ndarray:
        """Unpack ids, i64 [R, K]."""
        return unpack_bits(packed_RB, self.index_bits, self.k).astype(np.int64)

    def values(self, packed_RB: np.ndarray) -> np.ndarray:
        """Unpack log-probabilities, f64 [R, K]."""
        at = self.exact_k * BYTES[self.exact_dtype]
        exact_RK = _floats(packed_RB[:, :at], self.exact_dtype)
        approximated_RK = np.zeros((len(packed_RB), self.k - self.exact_k))
        if self.polynomial_terms:
            size = len(self.polynomial_terms) * BYTES[self.term_dtype]
            coefficients_RJ = _floats(packed_RB[:, at : at + size], self.term_dtype)
            approximated_RK += coefficients_RJ @ self._terms().T
            at += size
        start = 0
        for each in self.residual_bins:
            scale_R1 = _floats(packed_RB[:, at : at + BYTES[each.scale_dtype]], each.scale_dtype)
            at += BYTES[each.scale_dtype]
            codes = unpack_bits(packed_RB[:, at : at + _packed_bytes(each)], each.element_bits, each.num_elements)
            at += _packed_bytes(each)
            signed = codes * 2.0 - 1.0 if each.element_bits == 1 else codes - 2.0 ** (each.element_bits - 1)
            approximated_RK[:, start : start + each.num_elements] += signed * scale_R1
            start += each.num_elements
        values_RK = np.concatenate([exact_RK, approximated_RK], axis=1)
        return np.cumsum(values_RK, axis=1) if self.delta_encoding else values_RK

    def _terms(self) -> np.ndarray:
        count = self.k - self.exact_k
        t = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        special = {"sqrt": np.sqrt, "exp": np.exp}
        terms = [special[term](t) if isinstance(term, str) else t**term for term in self.polynomial_terms or ()]
        return np.stack(terms, axis=1)


class LegacyCodec(_Codec):
    """DistillKit's `legacy_logit_compression`, by its own names and defaults."""

    k: int = Field(ge=1, le=MAX_VALUES)
    exact_k: int = Field(ge=0, le=MAX_VALUES)
    polynomial_degree: int = Field(ge=0, le=MAX_DEGREE)
    vocab_size: int = Field(ge=2, le=MAX_VOCABULARY)
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: Dtype = "float32"

    @property
    def index_bits(self) -> int:
        return _bits(self.vocab_size)

    @property
    def index_words(self) -> int:
        return -(-self.k // (64 // self.index_bits))

    @property
    def coefficients(self) -> int:
        return 0 if self.exact_k >= self.k else self.polynomial_degree + 1 + self.with_sqrt_term

    @property
    def roundoff(self) -> float:
        return UNIT_ROUNDOFF["float16"]

    def ids(self, words_RW: np.ndarray) -> np.ndarray:
        """Unpack ids, i64 [R, K], from u64 words."""
        shifts = np.arange(64 // self.index_bits, dtype=np.uint64) * np.uint64(self.index_bits)
        ids_RWE = (words_RW[:, :, None] >> shifts) & np.uint64((1 << self.index_bits) - 1)
        return ids_RWE.reshape(len(words_RW), -1)[:, : self.k].astype(np.int64)

    def values(self, exact_RK: np.ndarray, coefficients_RJ: np.ndarray) -> np.ndarray:
        """Join exact and approximated values, f64 [R, K]."""
        if not self.coefficients:
            return exact_RK
        t = np.arange(1, self.k - self.exact_k + 1, dtype=np.float64)
        terms = [t ** (-degree if self.invert_polynomial else degree) for degree in range(self.polynomial_degree + 1)]
        terms += [np.sqrt(t)] if self.with_sqrt_term else []
        return np.concatenate([exact_RK, coefficients_RJ @ np.stack(terms)], axis=1)


def load_codec(path: Path) -> Codec | LegacyCodec:
    """Read a compression config: the one that DistillKit's capture writes, or a training config that quotes it.

    Raises:
        MissingError: there is no such file.
        ConfigError: it is not one; the message names every field that does not fit.
    """
    if not path.is_file():
        raise MissingError(
            f"{path}: no such file; DistillKit's rows do not say how they were compressed: give "
            "`--compression-config` the YAML file that they were captured with"
        )
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes, expected {MAX_CONFIG_BYTES:,} at most")
        text = path.read_text(encoding="utf-8")
        if text.count("[") + text.count("{") > MAX_BRACKETS:  # PyYAML's time grows with their square
            raise ValueError(f"more than {MAX_BRACKETS:,} brackets")
        values: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    values = values.get("teacher", values) if isinstance(values, dict) else {}
    for key, schema in (("logprob_compressor", Codec), ("legacy_logit_compression", LegacyCodec)):
        if isinstance(values, dict) and values.get(key) is not None:
            return _validated(schema, values[key], path)
    legacy = isinstance(values, dict) and "polynomial_degree" in values
    return _validated(LegacyCodec if legacy else Codec, values, path)


def unpack_bits(packed_RB: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Read `count` unsigned integers of `bits` bits, the highest bit first, from each row of bytes; u64 [R, count]."""
    bits_RCB = np.unpackbits(packed_RB, axis=1, count=bits * count).reshape(len(packed_RB), count, bits)
    width = 32 if bits <= 32 else 64
    wide = np.zeros((len(packed_RB), count, width), np.uint8)
    wide[:, :, width - bits :] = bits_RCB
    return np.packbits(wide, axis=2).view(f">u{width // 8}")[:, :, 0].astype(np.uint64)


def _validated(schema: type[Codec] | type[LegacyCodec], values: Any, path: Path) -> Codec | LegacyCodec:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigError(f"{path} is not a compression config of DistillKit:\n" + "\n".join(problems)) from None


def _floats(bytes_RB: np.ndarray, dtype: str) -> np.ndarray:
    """Read little-endian numbers from each row of bytes, f64 [R, …]."""
    packed = np.ascontiguousarray(bytes_RB)
    if dtype == "bfloat16":
        return (packed.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return packed.view(np.dtype(dtype).newbyteorder("<")).astype(np.float64)


def _packed_bytes(each: ResidualBin) -> int:
    return -(-each.element_bits * each.num_elements // 8)


def _bits(size: int) -> int:
    return math.ceil(math.log2(np.float32(size)))

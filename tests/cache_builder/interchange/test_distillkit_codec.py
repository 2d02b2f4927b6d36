"""DistillKit's bytes, written by the test from the format's description, and read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cache_builder.errors import ConfigError, MissingError
from cache_builder.interchange.distillkit_codec import Codec, LegacyCodec, load_codec, unpack_bits
from tests.support.foreign_rows import EXACT, LEGACY, RECOMMENDED, distillkit_token, floats, legacy_token, pack

BINS = [
    {"scale_dtype": "float16", "element_bits": 8, "num_elements": 5},
    {"scale_dtype": "float32", "element_bits": 3, "num_elements": 3},
    {"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 2},
]


def falling_logp(k: int, seed: int) -> tuple[list[int], list[float]]:
    rng = np.random.default_rng(seed)
    logits = -np.sort(rng.exponential(2, 300))
    return rng.permutation(300)[:k].tolist(), (logits - np.log(np.exp(logits).sum()))[:k].tolist()


def read(codec: Codec, data: bytes, ids: bytes) -> tuple[np.ndarray, np.ndarray]:
    return codec.ids(np.frombuffer(ids, np.uint8)[None])[0], codec.values(np.frombuffer(data, np.uint8)[None])[0]


@pytest.mark.parametrize("bits", [1, 3, 8, 9, 17, 24, 33, 64])
def test_numbers_of_any_width_are_unpacked(bits: int) -> None:
    rng = np.random.default_rng(bits)
    numbers = [int.from_bytes(rng.bytes(8), "big") >> (64 - bits) for _ in range(13)]
    packed = np.frombuffer(pack(numbers, bits), np.uint8)
    assert unpack_bits(np.stack([packed, packed]), bits, 13).tolist() == [numbers, numbers]


def test_bytes_written_by_hand_say_what_the_format_says() -> None:
    """Ids 5 and 1 of three bits: 101 001 00; −1 and −2 in bfloat16, the latter as the difference −1."""
    options = {"d": 8, "k": 2, "exact_k": 2, "exact_dtype": "bfloat16", "residual_bins": []}
    ids, values = read(Codec(**options), bytes([0x80, 0xBF, 0x80, 0xBF]), bytes([0b10100100]))
    assert (ids.tolist(), values.tolist()) == ([5, 1], [-1.0, -2.0])
    ids, values = read(Codec(**options, delta_encoding=False), bytes([0x80, 0xBF, 0x00, 0xC0]), bytes([0b10100100]))
    assert values.tolist() == [-1.0, -2.0]


def test_residuals_written_by_hand_are_signed_and_scaled() -> None:
    """Of one bit, 1 is plus and 0 minus a scale of one half; of three, 0 is −4 and 7 is 3 times a scale of one."""
    bins = [
        {"scale_dtype": "float16", "element_bits": 1, "num_elements": 3},
        {"scale_dtype": "float32", "element_bits": 3, "num_elements": 2},
    ]
    codec = Codec(d=8, k=6, exact_k=0, residual_bins=bins, delta_encoding=False)
    data = floats([0.5], "float16") + bytes([0b10100000]) + floats([1.0], "float32") + bytes([0b00011100])
    _, values = read(codec, data, bytes(3))
    assert values.tolist() == [0.5, -0.5, 0.5, -4.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        (EXACT, 1e-6),
        ({**EXACT, "delta_encoding": True}, 1e-6),
        ({**EXACT, "exact_dtype": "float64", "d": 65537}, 1e-12),
        (RECOMMENDED, 0.05),
        ({**RECOMMENDED, "normalize_t": True, "exact_dtype": "float16", "polynomial_terms": [0, 1, "exp"]}, 0.5),
        ({**RECOMMENDED, "k": 20, "exact_k": 8, "polynomial_terms": [0, 1], "residual_bins": BINS}, 0.5),
        ({**RECOMMENDED, "k": 12, "exact_k": 4, "polynomial_terms": None, "residual_bins": BINS[:2]}, 1.5),
    ],
    ids=["exact", "delta", "float64", "recommended", "normalised", "bins", "bins-alone"],
)
def test_what_the_encoder_wrote_is_read_back(changes: dict[str, Any], tolerance: float) -> None:
    codec = Codec(**changes)
    for seed in range(5):
        ids, logp = falling_logp(codec.k, seed)
        data, packed = distillkit_token(ids, logp, changes)
        assert (len(data), len(packed)) == (codec.value_bytes, codec.index_bytes)
        read_ids, read_logp = read(codec, data, packed)
        assert read_ids.tolist() == ids
        np.testing.assert_allclose(read_logp, logp, rtol=0, atol=tolerance)


def test_residuals_are_worth_their_bits() -> None:
    """With 16 bits for each residual nothing but their scale's rounding is left."""
    bins = [{"scale_dtype": "float16", "element_bits": 16, "num_elements": 8}]
    options = {**RECOMMENDED, "exact_dtype": "float64", "polynomial_terms": [0, 1], "residual_bins": bins}
    ids, logp = falling_logp(24, 3)
    _, read_logp = read(Codec(**options), *distillkit_token(ids, logp, options))
    np.testing.assert_allclose(read_logp, logp, rtol=0, atol=1e-4)


def test_the_legacy_kind_is_read_back_from_its_words_and_coefficients() -> None:
    codec = LegacyCodec(**LEGACY)
    ids, logp = falling_logp(codec.k, 1)
    token = legacy_token(ids, logp, LEGACY)
    assert len(token["packed_indices"]) == codec.index_words and len(token["coeffs"]) == codec.coefficients
    assert codec.ids(np.array([token["packed_indices"]], np.uint64))[0].tolist() == ids
    values = codec.values(np.array([token["exact_values"]]), np.array([token["coeffs"]]))[0]
    np.testing.assert_allclose(values, logp, rtol=0, atol=0.1)
    np.testing.assert_allclose(values[:12], logp[:12], rtol=0, atol=5e-3)


def test_a_compression_config_is_found_in_a_training_config_and_refused_by_field(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(MissingError, match="give `--compression-config`"):
        load_codec(path)
    path.write_text(yaml.safe_dump({"teacher": {"kind": "dataset", "logprob_compressor": RECOMMENDED}}))
    assert load_codec(path) == Codec(**RECOMMENDED)
    path.write_text(yaml.safe_dump({"teacher": {"legacy_logit_compression": LEGACY}}))
    assert load_codec(path) == LegacyCodec(**LEGACY)
    path.write_text(yaml.safe_dump(LEGACY))
    assert load_codec(path) == LegacyCodec(**LEGACY)
    for changes, message in (
        ({"exact_k": 99}, "at most k together"),
        ({"polynomial_terms": [0, "log"]}, r"polynomial_terms\.1"),
        ({"vocabulary": 7}, "vocabulary: Extra inputs"),
    ):
        path.write_text(yaml.safe_dump({**RECOMMENDED, **changes}))
        with pytest.raises(ConfigError, match=message):
            load_codec(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_codec(path)

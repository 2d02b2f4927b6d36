"""Arrays made to deceive, whose digests agree: description, values, bytes and index are held to the manifest."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_builder.cache.reader import open_cache
from cache_builder.format.zarr_shards import ArraySpec, array_metadata
from tests.support.crafted import Crafted, bomb, everything
from tests.support.refusals import CHECKPOINT, EVERY_ARRAY, HUGE, refusals, refusals_in_little_memory


def test_an_honest_cache_is_read_and_verified(crafted: Crafted) -> None:
    assert refusals_in_little_memory(crafted.folder) == []
    (crafted.folder / "notes.txt").write_text("of the owner")
    assert refusals(crafted.folder) == []


def test_crafting_alone_changes_nothing(crafted: Crafted, honest: Path) -> None:
    for group, name in EVERY_ARRAY:
        crafted.array(group, name, crafted.values(group, name))
        crafted.chunks(group, name, crafted.first_payloads(group, name))
    assert refusals(crafted.folder) == []
    assert str(everything(open_cache(str(crafted.folder)))) == str(everything(open_cache(str(honest))))


DESCRIPTIONS: dict[str, Callable[[ArraySpec], ArraySpec]] = {
    "one entry less": lambda spec: replace(spec, shape=(*spec.shape[:-1], spec.length - 1)),
    "one entry more": lambda spec: replace(spec, shape=(*spec.shape[:-1], spec.length + 1)),
    "no entries": lambda spec: replace(spec, shape=(*spec.shape[:-1], 0)),
    "10¹² entries": lambda spec: replace(spec, shape=(*spec.shape[:-1], HUGE)),
    "2⁷⁰ entries": lambda spec: replace(spec, shape=(*spec.shape[:-1], 2**70)),
    "negative": lambda spec: replace(spec, shape=(*spec.shape[:-1], -1)),
    "10¹² planes": lambda spec: replace(spec, shape=(HUGE, spec.length)),
    "three axes": lambda spec: replace(spec, shape=(1, 1, *spec.shape)),
    "another type": lambda spec: replace(spec, dtype="int64" if spec.dtype != "int64" else "float64"),
    "wide chunks": lambda spec: replace(spec, chunk=2**40, shard=2**40),
    "wide shards": lambda spec: replace(spec, shard=spec.shard * 2**30),
    "another level": lambda spec: replace(spec, level=9),
}
TAKES_MEMORY = ("10¹² entries", "10¹² planes", "wide chunks")


@pytest.mark.parametrize("change", DESCRIPTIONS, ids=str)
@pytest.mark.parametrize(("group", "name"), EVERY_ARRAY)
def test_an_array_is_what_the_manifest_makes_it(group: str, name: str, change: str, crafted: Crafted) -> None:
    spec = DESCRIPTIONS[change](crafted.spec(group, name))
    attributes = json.loads((crafted.folder / group / name / "zarr.json").read_bytes())["attributes"]
    crafted.describe(group, name, array_metadata(spec, attributes))
    check = refusals_in_little_memory if change in TAKES_MEMORY else refusals
    assert f"{group}/" in check(crafted.folder)[0]


VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "of another length": lambda values: values[..., :-1],
    "doubled": lambda values: np.concatenate([values, values], axis=-1),
    "all bits set": lambda values: np.full(values.shape, 255, np.uint8).repeat(values.itemsize, -1).view(values.dtype),
    "zeros": np.zeros_like,
    "backwards": lambda values: values[..., ::-1],
    "the first entry the largest": lambda values: _with(values, 0, np.iinfo),
    "the last entry the largest": lambda values: _with(values, -1, np.iinfo),
    "a NaN": lambda values: _with(values, 0, np.nan),
    "infinite": lambda values: _with(values, -1, np.inf),
    "minus infinity": lambda values: _with(values, -1, -np.inf),
    "as floats": lambda values: values.astype(np.float64 if values.dtype != np.float64 else np.float32),
}
PLAUSIBLE = {("ids", "zeros"), ("ids", "backwards"), ("ids", "minus infinity")}
"""Tokens of the vocabulary: on which ones checkpoints are compared was the anchor's choice, and nobody can check it."""


def _with(values: np.ndarray, at: int, value: Any) -> np.ndarray:
    """Return values with another at one place of the last axis; the largest of an integer type."""
    if value is np.iinfo and not np.issubdtype(values.dtype, np.integer):
        value = np.finfo(values.dtype).max
    elif not np.issubdtype(values.dtype, np.integer) or value is np.iinfo:
        value = np.iinfo(values.dtype).max if value is np.iinfo else value
    elif np.issubdtype(values.dtype, np.integer):
        value = np.iinfo(values.dtype).min if value == -np.inf else np.iinfo(values.dtype).max
    values[..., at] = value
    return values


@pytest.mark.parametrize("change", VALUES, ids=str)
@pytest.mark.parametrize(("group", "name"), EVERY_ARRAY)
def test_values_that_no_build_writes_are_refused(group: str, name: str, change: str, crafted: Crafted) -> None:
    values = crafted.values(group, name)
    changed = VALUES[change](values.copy())
    if changed.tobytes() == values.tobytes():
        pytest.skip("these are the honest values")
    crafted.array(group, name, np.ascontiguousarray(changed))
    assert refusals(crafted.folder) or (name, change) in PLAUSIBLE


@pytest.mark.parametrize("says_so", [True, False])
@pytest.mark.parametrize(("group", "name"), EVERY_ARRAY)
def test_a_chunk_takes_no_more_memory_than_its_array_gives_it(
    group: str, name: str, says_so: bool, crafted: Crafted
) -> None:
    payloads = crafted.first_payloads(group, name)
    payloads[0] = bomb(3 << 30, says_so=says_so)
    assert len(payloads[0]) < 100_000
    crafted.chunks(group, name, payloads)
    assert f"{name}/c" in refusals_in_little_memory(crafted.folder)[0]


@pytest.mark.parametrize("n_bytes", [0, 1, 1 << 40])
def test_a_frame_that_lies_about_its_size_is_damage(n_bytes: int, crafted: Crafted) -> None:
    payloads = crafted.first_payloads("corpus", "tokens")
    short = bytearray(bomb(16, says_so=True))
    short[5:13] = n_bytes.to_bytes(8, "little")
    for payload in (bytes(short), b"", b"\x28", payloads[0] + payloads[0], payloads[0][:-1], b"no zstd at all"):
        crafted.chunks("corpus", "tokens", [payload, *payloads[1:]])
        assert refusals(crafted.folder)


@pytest.mark.parametrize(
    "span", [(0, 2**63), (0, 2**64 - 2), (2**63, 20), (2**64 - 2, 20), (10**6, 20), (0, 0), (0, 3), (0, 4), (1, 20)]
)
def test_an_index_points_into_its_shard(span: tuple[int, int], crafted: Crafted) -> None:
    crafted.chunks(CHECKPOINT, "records", crafted.first_payloads(CHECKPOINT, "records"), [span])
    assert "records/c/0/0" in refusals(crafted.folder)[0]

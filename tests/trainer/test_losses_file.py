"""A losses file is read as it was written, for its own cache, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cache_builder.errors import CacheDamagedError, CacheMismatchError, MissingError, UserError
from trainer.losses_file import read_losses, write_losses

LOSSES_N = np.random.default_rng(0).gamma(2.0, 1.0, 40)


def test_losses_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "losses" / "student.safetensors"
    write_losses(path, LOSSES_N, "ours")
    np.testing.assert_array_equal(read_losses(path, "ours", 40), LOSSES_N)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_from_before_the_digest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_file({"loss": LOSSES_N}, path, metadata={"cache_fingerprint": "ours"})
    np.testing.assert_array_equal(read_losses(path, "ours", 40), LOSSES_N)


def test_losses_of_another_cache_are_refused_though_they_are_as_many(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    write_losses(path, LOSSES_N, "theirs")
    with pytest.raises(CacheMismatchError, match="belongs to the cache theirs…, this one is ours…"):
        read_losses(path, "ours", 40)


def test_losses_that_are_not_there_say_which_command_makes_them(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="footsteps losses CONFIG"):
        read_losses(tmp_path / "student.safetensors", "ours", 40)


@pytest.mark.parametrize("losses_N", [LOSSES_N[:39], LOSSES_N[None], np.full(40, np.nan), np.full(40, -np.inf)])
def test_losses_that_cannot_be_those_of_the_corpus_are_refused(tmp_path: Path, losses_N: np.ndarray) -> None:
    path = tmp_path / "student.safetensors"
    write_losses(path, losses_N, "ours")
    with pytest.raises(CacheDamagedError, match="expected 40 finite losses"):
        read_losses(path, "ours", 40)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_damage_passes_and_none_is_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "student.safetensors"
    write_losses(path, LOSSES_N, "ours")
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "noise"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    elif kind == "cut":
        damaged = whole[:at]
    elif kind == "insert":
        damaged = whole[:at] + data.draw(st.binary(min_size=1, max_size=20)) + whole[at:]
    else:
        damaged = data.draw(st.binary(max_size=300))
    path.write_bytes(damaged)
    try:
        np.testing.assert_array_equal(read_losses(path, "ours", 40), LOSSES_N)
    except UserError as error:
        assert str(path) in str(error)

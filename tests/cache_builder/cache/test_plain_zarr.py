"""`Cache.zarr`: plain zarr-python reads what this package's reader decodes."""

import sys

import fsspec
import numpy as np
import pytest

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.errors import CacheIncompleteError, ConfigError
from cache_builder.format.records import RecordLayout, decode_records, dequantise, normalise
from tools.make_fixture_cache import FIXTURE
from tools.make_fixture_cache import FOLDER as FIXTURE_FOLDER


def check_alike(cache: Cache, name: str) -> None:
    """Compare every array of a checkpoint with what the reader gives."""
    group = cache.zarr(name)
    assert group.read_only and set(group.array_keys()) == {"records", "loss", "probe_logp", "probe_log_tail"}
    options = cache.manifest.targets
    decoded = decode_records(RecordLayout.of(options), np.asarray(group["records"][:]), cache.manifest.tokenizer.size)
    read = cache.read(name, range(len(cache.corpus)))
    for field in ("ids", "logp", "samples", "log_tail", "gold", "entropy"):
        np.testing.assert_array_equal(getattr(decoded, field), getattr(read, field))
    np.testing.assert_array_equal(group["loss"][:], cache.losses(name))
    logp = dequantise(np.asarray(group["probe_logp"][:]), options.logp_steps_per_nat).T
    found = normalise(logp, np.asarray(group["probe_log_tail"][:]), options.logp_steps_per_nat)
    np.testing.assert_array_equal(found[0], cache.probe_logp(name))
    np.testing.assert_array_equal(found[1], cache.probe_log_tail(name))


def test_the_arrays_of_the_fixture_in_plain_zarr_are_what_the_reader_decodes() -> None:
    cache = open_cache(str(FIXTURE_FOLDER))
    for name in FIXTURE.checkpoints:
        check_alike(cache, name)


@pytest.mark.parametrize("scheme", ["memory", "s3"])
def test_so_are_those_of_a_cache_at_a_url(scheme: str, request: pytest.FixtureRequest) -> None:
    url = f"{request.getfixturevalue('bucket')}/plain" if scheme == "s3" else "memory://plain"
    fs, root = fsspec.core.url_to_fs(url)
    fs.put(f"{FIXTURE_FOLDER}/", f"{root}/", recursive=True)
    check_alike(open_cache(url), "step-2")


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(CacheIncompleteError, match="does not know checkpoint 'x'"):
        open_cache(str(FIXTURE_FOLDER)).zarr("x")


def test_without_zarr_the_reader_is_named_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ConfigError, match=r"cannot be opened in zarr .*`cache\.read` reads it"):
        open_cache(str(FIXTURE_FOLDER)).zarr("step-1")

"""Another engine than transformers builds a whole cache through the protocol; nothing in build knows which it is."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from cache_builder.build.build import build_cache
from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.capture.backend import ENGINES
from cache_builder.config import CacheExperiment, EngineName
from cache_builder.errors import CacheMismatchError
from cache_builder.storage.open import open_store
from tests.support.caches import Teaching, files_of
from tests.support.table_engine import TableEngine, write_table

SEQUENCES = 40
"""Of the teaching."""


@pytest.fixture(scope="module")
def tables(teaching: Teaching, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("tables")
    corpora = teaching.corpus, teaching.held_out
    return [(name, write_table(Path(model), folder / name, corpora, 300)) for name, model in teaching.checkpoints]


def build(
    teaching: Teaching, tables: list[tuple[str, str]], cache: Path, part: tuple[int, int] = (0, 1), **options: int
) -> bool:
    experiment: CacheExperiment = teaching.experiment(cache, **options)
    inputs = teaching.corpus, teaching.tokenizer, tables, teaching.held_out
    return build_cache(experiment, *inputs, part=part, engine=TableEngine)


def test_a_cache_of_stored_logits_says_what_they_say(
    teaching: Teaching, tables: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert build(teaching, tables, tmp_path / "cache")
    cache, corpus = open_cache(str(tmp_path / "cache")), teaching.corpus
    assert not verify_cache(open_store(str(tmp_path / "cache"))).damaged
    engine = TableEngine(teaching.experiment("unused"), teaching.tokenizer)
    for name, location in tables:
        backend = engine.load(name, location)
        assert cache.checkpoint(name).identity == backend.identity
        for row in range(len(corpus)):
            (logp, gold), targets = backend.logp(corpus, row), cache.read(name, [row])
            np.testing.assert_array_equal(targets.ids, np.argsort(-logp, axis=1, kind="stable")[:, :4])
            np.testing.assert_allclose(targets.logp, np.take_along_axis(logp, targets.ids, 1), atol=1 / 256)
            np.testing.assert_allclose(targets.gold, np.take_along_axis(logp, gold[:, None], 1)[:, 0], atol=1e-6)
            np.testing.assert_allclose(targets.entropy, -(np.exp(logp) * logp).sum(1), atol=1e-5)
            assert cache.losses(name)[row] == pytest.approx(-np.take_along_axis(logp, gold[:, None], 1).sum(), rel=1e-5)
        shared = backend.probe_logp(corpus, cache.probe_rows, cache.probe_ids)[0]
        np.testing.assert_allclose(cache.probe_logp(name), shared, atol=1 / 256)
        assert cache.held_out(name) == backend.mean_loss(teaching.held_out)


def test_two_engines_that_read_the_same_weights_agree(
    teaching: Teaching, tables: list[tuple[str, str]], built: Path, tmp_path: Path
) -> None:
    assert build(teaching, tables, tmp_path / "cache")
    ours, theirs = open_cache(str(tmp_path / "cache")), open_cache(str(built))
    np.testing.assert_array_equal(ours.probe_rows, theirs.probe_rows)
    rows = range(len(teaching.corpus))
    for name, _ in tables:
        one, other = ours.read(name, rows), theirs.read(name, rows)
        assert (one.ids == other.ids).mean() > 0.99
        assert (one.samples == other.samples).mean() > 0.95  # the same uniforms
        np.testing.assert_allclose(one.gold, other.gold, atol=1e-5)
        np.testing.assert_allclose(one.log_tail, other.log_tail, atol=1 / 256)


def test_two_engines_agree_on_the_tail_s_blocks(
    teaching: Teaching, tables: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert build(teaching, tables, tmp_path / "ours", tail_blocks=7)
    assert teaching.build(tmp_path / "theirs", tail_blocks=7)
    ours, theirs = (open_cache(str(tmp_path / name)) for name in ("ours", "theirs"))
    for name, _ in tables:
        one, other = (cache.read(name, range(len(teaching.corpus))) for cache in (ours, theirs))
        assert one.edges == other.edges and len(one.edges) == 8
        close = np.abs(np.exp(one.log_blocks) - np.exp(other.log_blocks)) < 1e-4
        assert close.mean() > 0.99  # a share between two steps may be rounded to either
        np.testing.assert_allclose(one.log_blocks, other.log_blocks, atol=0.3)
        np.testing.assert_allclose(one.log_collision, other.log_collision, atol=0.07)


def test_parts_and_restarts_work_for_any_engine(
    teaching: Teaching, tables: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert build(teaching, tables, tmp_path / "whole")
    assert [build(teaching, tables, tmp_path / "parts", (part, 3)) for part in (2, 0, 1)] == [False, False, True]
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_cache_is_not_continued_by_an_engine_whose_weights_are_others(
    teaching: Teaching, tables: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert not build(teaching, tables, tmp_path / "cache", part=(0, 2))
    with pytest.raises(CacheMismatchError, match="weights_fingerprint"):
        teaching.build(tmp_path / "cache")


def test_every_engine_that_a_config_may_name_is_there() -> None:
    assert set(ENGINES) == set(get_args(EngineName))

"""Files and bytes predicted of a cache, against caches that are built."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.format.size import ArraySize, CacheSize, recommended_layout
from cache_builder.format.zarr_shards import ArraySpec, encode_shard
from cache_builder.storage.local import LocalStore
from tests.support.caches import make_teaching
from tools.synthetic_cache import Synthetic, write_synthetic_cache


def size_of(cache: Cache) -> CacheSize:
    """What would have been predicted of a cache that is there."""
    manifest = cache.manifest
    rows = cache.probe_rows
    ids = [cache.corpus.sample_ids.read(row) for row in range(len(cache.corpus))]
    return CacheSize(
        sequences=manifest.corpus.sequences,
        tokens=manifest.corpus.tokens,
        positions=manifest.corpus.positions,
        checkpoints=len(cache.checkpoints),
        top_k=manifest.targets.top_k,
        tail_samples=manifest.targets.tail_samples,
        shard_positions=manifest.layout.shard_positions,
        chunk_positions=manifest.layout.chunk_positions,
        probe_sequences=manifest.probe.sequences,
        probe_positions=int(np.diff(cache.corpus.position_offsets)[rows].sum()),
        probe_top_k=manifest.probe.top_k,
        sample_id_bytes=sum(map(len, ids)),
    )


def files_of(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts]


def test_a_built_cache_has_the_files_that_were_predicted_and_no_more_bytes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make_model: Any
) -> None:
    teaching = make_teaching(tmp_path / "teaching", tokenizer, make_model, sequences=40)
    assert teaching.build(tmp_path / "cache")
    found, size = files_of(tmp_path / "cache"), size_of(open_cache(str(tmp_path / "cache")))
    assert size.records.shards > 1
    assert len(found) == size.files
    assert sum(found) <= size.max_bytes


@pytest.mark.parametrize("shard_positions", [4096, 65_536])
def test_a_larger_cache_is_within_its_bound_and_not_far_below(tmp_path: Path, shard_positions: int) -> None:
    synthetic = Synthetic(1500, shard_positions=shard_positions, checkpoints=("a", "b"))
    write_synthetic_cache(LocalStore(tmp_path), synthetic)
    cache = open_cache(str(tmp_path))
    found, size = files_of(tmp_path), size_of(cache)
    assert len(found) == size.files
    assert sum(found) <= size.max_bytes <= 2 * sum(found)
    assert cache.checkpoint_bytes("a") <= sum(array.max_bytes for array in size.checkpoint)


@pytest.mark.parametrize(
    ("entries", "planes", "shard", "chunk"),
    [(9_000, 116, 65_536, 4_096), (4_096, 3, 65_536, 4_096), (1, 40, 65_536, 4_096), (5_000, 3, 1_024, 64)],
)
def test_bytes_that_do_not_compress_are_within_the_bound_of_their_array(
    entries: int, planes: int, shard: int, chunk: int
) -> None:
    spec = ArraySpec((planes, entries), "uint8", shard, chunk, 1)
    noise = np.random.default_rng(0).integers(0, 256, spec.shape, np.uint8)
    stored = sum(len(encode_shard(spec, noise[:, slice(*spec.span(shard))]).data) for shard in range(spec.n_shards))
    size = ArraySize("noise", planes, entries, shard, chunk, planes)
    assert size.raw_bytes < stored <= size.max_shard_bytes
    slack = 80 * size.chunks + size.raw_bytes // 256 + 16 * planes
    assert stored > size.max_shard_bytes - slack  # the index and the checksums are counted, not hidden in the slack


def test_the_ledgers_have_the_bytes_that_were_predicted(tmp_path: Path) -> None:
    synthetic = Synthetic(400, shard_positions=256, chunk_positions=32)
    write_synthetic_cache(LocalStore(tmp_path), synthetic)
    written = sum(
        (tmp_path / group / "zarr.json").stat().st_size for group in ("corpus", "probe", "checkpoints/step-1")
    )
    assert size_of(open_cache(str(tmp_path))).ledger_bytes == pytest.approx(written, rel=0.05)


def test_the_recommended_layout_grows_with_the_corpus_and_is_one_that_a_config_takes() -> None:
    layouts = [recommended_layout(10**power) for power in (6, 9, 10, 11, 12, 14)]
    assert layouts[0] == layouts[1] == (65_536, 4_096)
    assert layouts == sorted(layouts) and layouts[-1] == (2**22, 2**16)
    assert all(shard % chunk == 0 for shard, chunk in layouts)

"""Which arrays each group of a cache has, and what each of them must be; all that a manifest claims is held to it.

    group           array               shape                  dtype     last axis
    corpus          tokens              [tokens]               u32       cut as a vector: 16,384 a chunk, 2²⁰ a shard
                    completion          [tokens]               u8
                    token_offsets       [n+1]                  i64
                    position_offsets    [n+1]                  i64
                    sample_ids          [any]                  u8
                    sample_id_offsets   [n+1]                  i64
    probe           rows                [≤ probe.sequences]    i64
                    ids                 [R ≤ probe.top_k, Q]   u32
    checkpoints/…   records             [planes, P]            u8        as `layout` says
                    loss                [n]                    f64
                    probe_logp          [R, Q]                 u16
                    probe_log_tail      [Q]                    f32

A cache may come from anybody, and its digests are of its own making: they show damage, not intent. So nothing is
allocated, decompressed or read because a file says so, before what it says fits this table.
"""

from collections.abc import Callable

from cache_builder.errors import CacheDamagedError, ConfigError
from cache_builder.format.manifest import Ledger, Manifest, ProbeGroup
from cache_builder.format.records import records_spec
from cache_builder.format.zarr_shards import MAX_CHUNK_BYTES, ArraySpec

Specs = dict[str, ArraySpec]
METADATA = "zarr.json"


def corpus_schema(manifest: Manifest, found: Specs) -> Specs:
    """Return what the arrays of `corpus` must be; `found` gives the one size that no manifest has."""
    tokens, offsets = manifest.corpus.tokens, manifest.corpus.sequences + 1
    return {
        "tokens": ArraySpec((tokens,), "uint32"),
        "completion": ArraySpec((tokens,), "uint8"),
        "token_offsets": ArraySpec((offsets,), "int64"),
        "position_offsets": ArraySpec((offsets,), "int64"),
        "sample_ids": ArraySpec((_length(found, "sample_ids"),), "uint8"),
        "sample_id_offsets": ArraySpec((offsets,), "int64"),
    }


def probe_schema(manifest: Manifest, probe: ProbeGroup, found: Specs) -> Specs:
    """Return what the arrays of `probe` must be."""
    rows = min(_length(found, "rows"), manifest.probe.sequences, manifest.corpus.sequences)
    planes = found["ids"].shape[0] if "ids" in found else 1
    planes = max(1, min(planes, manifest.probe.top_k, manifest.tokenizer.size))
    return {"rows": ArraySpec((rows,), "int64"), "ids": ArraySpec((planes, probe.positions), "uint32")}


def checkpoint_schema(manifest: Manifest, probe_ids: ArraySpec) -> Specs:
    """Return what the arrays of a checkpoint must be, by those of the probe."""
    return {
        "records": records_spec(manifest),
        "loss": ArraySpec((manifest.corpus.sequences,), "float64"),
        "probe_logp": ArraySpec(probe_ids.shape, "uint16"),
        "probe_log_tail": ArraySpec(probe_ids.shape[1:], "float32"),
    }


def largest_values(manifest: Manifest) -> dict[str, int]:
    """Return the largest entry that arrays of the corpus and the probe may have, of those that have a limit."""
    last_id = manifest.tokenizer.size - 1
    return {"tokens": last_id, "completion": 1, "ids": last_id}


def check_arrays(files: Ledger, found: Specs, expected: Specs, where: Callable[[str], str]) -> None:
    """Refuse a group whose arrays, or whose ledger, are not those that are expected.

    Raises:
        CacheDamagedError: the message names the array or file, with what is expected and what is there.
    """
    for name in sorted(found.keys() ^ expected.keys()):
        state = "is missing" if name in expected else "is no array of this format"
        raise CacheDamagedError(f"{where(METADATA)} is damaged: the array {name!r} {state}")
    for name, spec in expected.items():
        if spec.chunk_bytes > MAX_CHUNK_BYTES:
            raise CacheDamagedError(f"{where(METADATA)} is damaged: a chunk of {name!r} has {spec.chunk_bytes:,} bytes")
        if found[name] != spec:
            raise CacheDamagedError(
                f"{where(f'{name}/{METADATA}')} is damaged: the manifest asks for {_say(spec)}, it has "
                f"{_say(found[name])}"
            )
    known = {f"{name}/{METADATA}" for name in expected}
    for name, spec in expected.items():
        for shard in range(spec.n_shards):  # ends at the first that is missing, whatever the manifest claims
            start, end = spec.span(shard)
            file = f"{name}/{spec.shard_key(shard)}"
            if file not in files or len(files[file].chunk_crc32c or ()) != -(-(end - start) // spec.chunk):
                raise CacheDamagedError(
                    f"{where(METADATA)} is damaged: its ledger lacks shard {shard} of {name!r}, or its chunks"
                )
            known.add(file)
    if foreign := files.keys() - known:
        raise CacheDamagedError(f"{where(METADATA)} is damaged: it names the file {min(foreign)!r}")


def _length(found: Specs, name: str) -> int:
    return found[name].length if name in found else 0


def _say(spec: ArraySpec) -> str:
    shape = " × ".join(f"{size:,}" for size in spec.shape)
    return f"{spec.dtype} [{shape}], {spec.shard:,} a shard and {spec.chunk:,} a chunk at level {spec.level}"


def check_chunk_sizes(manifest: Manifest) -> None:
    """Refuse, before anything is built, a layout that no reader would open.

    Raises:
        ConfigError: a chunk would be larger in memory than the format allows.
    """
    probe_ids = ArraySpec((min(manifest.probe.top_k, manifest.tokenizer.size), 1), "uint32")
    for setting, spec in (("chunk_positions", records_spec(manifest)), ("probe_top_k", probe_ids)):
        if spec.chunk_bytes > MAX_CHUNK_BYTES:
            raise ConfigError(
                f"cache.{setting} makes chunks of {spec.chunk_bytes:,} bytes, the format allows {MAX_CHUNK_BYTES:,}; "
                "choose a smaller one"
            )

"""Make a cache of one checkpoint from another program's rows; killed, it continues, to the same bytes.

    checking.py   every row is checked ─▶ CACHE.import/ (tokens, completion, ids)    nothing of the cache exists yet
    here          targets ─▶ shards of the cache, as a build commits them ─▶ CACHE.import/ removed

The manifest is of version 2: it says where the targets came from and what they lack. The probe has no positions.
"""

import numpy as np
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from cache_builder.cache.reader import open_cache
from cache_builder.cache.writer import CheckpointWriter, create_cache, write_order, write_probe
from cache_builder.config import CacheConfig
from cache_builder.data.corpus import Corpus
from cache_builder.data.tokenizer import tokenizer_fingerprint
from cache_builder.errors import CacheMismatchError, ConfigError
from cache_builder.format.manifest import (
    FORMAT_NAME,
    IMPORTED_VERSION,
    PROBE,
    CheckpointIdentity,
    CorpusIdentity,
    Imported,
    Layout,
    Manifest,
    ProbeOptions,
    TargetOptions,
    TokenizerIdentity,
    check_name,
    read_order,
)
from cache_builder.interchange.check import UNKNOWN, Reading, Source, first_pass, scratch_folder
from cache_builder.interchange.rows import Tail
from cache_builder.interchange.tables import digest
from cache_builder.storage.base import Store
from cache_builder.storage.open import open_store
from cache_builder.targets.sparse import Targets


def import_cache(
    source: Source,
    url: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "imported",
    tail: Tail | None = None,
    temperature: float = 1.0,
) -> Reading:
    """Read a source into the cache at `url`; return what was seen. A finished import is kept.

    Args:
        name: the checkpoint's.
        tail: what the rows know of the mass outside their support; the source's default unless given, and "none"
            where the temperature is not 1.
        temperature: at which the source's probabilities were taken; it is undone.

    Raises:
        ConfigError: a tail at another temperature than 1.
        DataError: a row is malformed, two share an id, or none has a target.
        CacheMismatchError: the place holds something else.
        CacheBusyError: it is being built or imported.
    """
    check_name(name)
    if temperature != 1.0 and tail == "complement":
        raise ConfigError(
            f"--tail complement needs --temperature 1, got {temperature:g}: what the tail would hold at temperature 1 "
            "cannot be known"
        )
    tail = tail or (source.default_tail if temperature == 1.0 else "none")
    reading = Reading(len(tokenizer), tail, temperature, source.roundoff)
    store = open_store(url)
    with scratch_folder(store) as scratch:
        source_sha256 = digest(source.files)
        corpus = first_pass(source, source_sha256, scratch, tokenizer, reading)
        imported = Imported(
            format=source.format,
            source_sha256=source_sha256,
            settings={**source.settings, "temperature": temperature},
            tail=tail,
            left_out=reading.left_out,
        )
        with store.lock_part((0, 1)):
            _write(source, store, _manifest(imported, corpus, tokenizer, reading.top_k), name, corpus, reading)
        open_cache(url)
    return reading


def _manifest(imported: Imported, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, top_k: int) -> Manifest:
    defaults = CacheConfig()
    return Manifest(
        format=FORMAT_NAME,
        version=IMPORTED_VERSION,
        tokenizer=TokenizerIdentity(fingerprint=tokenizer_fingerprint(tokenizer), size=len(tokenizer)),
        chat_template_fingerprint=UNKNOWN,
        corpus=CorpusIdentity(
            fingerprint=corpus.fingerprint,
            sequences=len(corpus),
            tokens=int(corpus.token_offsets[-1]),
            positions=corpus.n_positions,
        ),
        held_out=None,
        targets=TargetOptions(
            top_k=top_k, top_p=1.0, tail_samples=0, logp_steps_per_nat=defaults.logp_steps_per_nat, seed=0
        ),
        probe=ProbeOptions(sequences=1, top_k=1),
        layout=Layout(shard_positions=defaults.shard_positions, chunk_positions=defaults.chunk_positions),
        imported=imported,
    )


def _write(source: Source, store: Store, manifest: Manifest, name: str, corpus: Corpus, reading: Reading) -> None:
    assert manifest.imported is not None
    identity = CheckpointIdentity(
        name=name,
        weights_fingerprint=f"imported:{manifest.imported.source_sha256}",
        dtype=UNKNOWN,
        attn_implementation=UNKNOWN,
    )
    writer = CheckpointWriter(store, manifest, name)
    with store.exclusive():
        create_cache(store, manifest, corpus)
        _refuse_another(store, name)
        write_order(store, [name])
        if not store.exists(f"{PROBE}/zarr.json"):
            write_probe(store, identity, np.empty(0, np.int64), np.empty((0, 1), np.uint32))
    if not writer.is_complete():
        with store.exclusive():
            writer.begin(identity)
        _write_shards(source, writer, corpus, reading)
        writer.write_probe_pass(None, np.empty((0, 1), np.uint16), np.empty(0, np.float32))
    with store.exclusive():
        complete = writer.finish(corpus.position_offsets)
    assert complete


def _refuse_another(store: Store, name: str) -> None:
    order = read_order(store)
    if order and order != [name]:
        raise CacheMismatchError(
            f"cache {store.where('')} already holds these rows as checkpoint {order[0]!r}, and an imported cache has "
            f"one; give `--name {order[0]}`, or another place"
        )


def _write_shards(source: Source, writer: CheckpointWriter, corpus: Corpus, reading: Reading) -> None:
    """Write every shard that is not there yet, holding one at a time."""
    done = writer.shards_done()
    position, shard, parts = 0, 0, []
    _, end = writer.spec.span(shard)
    rows = (row for row in source.rows() if len(row.positions))
    console = Console(stderr=True)
    for row in track(
        rows, writer.name, total=len(corpus), console=console, transient=True, disable=not console.is_terminal
    ):
        targets, taken = _padded(reading.targets(row), reading.top_k), 0
        while taken < len(targets):
            part = targets[taken : taken + end - position]
            parts.append(part)
            position, taken = position + len(part), taken + len(part)
            if position == end:
                if shard not in done:
                    writer.write_shard(shard, Targets.concatenate(parts))
                shard, parts = shard + 1, []
                _, end = writer.spec.span(shard)
    if position != corpus.n_positions or parts:
        raise CacheMismatchError(f"{source.files[0]} has changed while it was imported; import it again")


def _padded(targets: Targets, top_k: int) -> Targets:
    missing = top_k - targets.ids.shape[1]
    if missing:
        targets.ids = np.concatenate([targets.ids, np.repeat(targets.ids[:, :1], missing, axis=1)], axis=1)
        targets.logp = np.pad(targets.logp, ((0, 0), (0, missing)), constant_values=-np.inf)
    return targets

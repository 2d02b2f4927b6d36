"""The commit protocol of a cache, step by durable step; every function here may be killed and called again.

create      zarr.json ─▶ corpus/…, corpus/zarr.json                            zarr.json of a group is written last:
probe       probe/rows, probe/ids, probe/zarr.json                             its existence means complete
begin       checkpoints/<name>/records/zarr.json  (with the identity)
begin       ledger/batches.json  (tokens of a batch)
shard       records/c/0/<s> ─▶ ledger/<s>.json                                 one per shard, any order, any process
probe pass  probe_logp/…, probe_log_tail/… ─▶ ledger/extras.json
finish      loss/… ─▶ checkpoints/<name>/zarr.json (with the whole ledger) ─▶ ledger/ removed
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import ValidationError

from cache_builder.atomic import PART_SUFFIX
from cache_builder.errors import CacheDamagedError, CacheMismatchError
from cache_builder.format.differences import compare
from cache_builder.format.manifest import (
    CHECKPOINTS,
    CORPUS,
    PROBE,
    ROOT,
    BatchNote,
    CheckpointGroup,
    CheckpointIdentity,
    CheckpointOrder,
    CorpusGroup,
    Group,
    Ledger,
    LedgerEntry,
    Manifest,
    ProbeGroup,
    ProbePass,
    check_name,
    checkpoint_key,
    entry_of,
    group_key,
    read_group,
    read_order,
    seal,
    unseal,
)
from cache_builder.format.records import RecordLayout, decode_scalars, encode_records, records_spec
from cache_builder.format.schema import check_chunk_sizes
from cache_builder.format.zarr_shards import ArrayReader, ArraySpec, array_metadata, encode_shard, parse_array_metadata
from cache_builder.positions import sum_rows
from cache_builder.sequences import FlatSequences
from cache_builder.storage.base import Store
from cache_builder.targets.sparse import Targets

RECORDS = "records"
LEDGER = "ledger"
PROBE_PASS = "extras"
"""The probe pass's ledger, `extras.json`: the name that format 1 gives it."""
BATCHES = "batches"


def write_array(
    store: Store, group: str, name: str, spec: ArraySpec, fetch: Callable[[int, int], np.ndarray]
) -> Ledger:
    """Write a whole array shard by shard; `fetch(start, end)` gives entries of its last axis."""
    metadata = array_metadata(spec)
    files = {f"{name}/zarr.json": entry_of(metadata)}
    for shard in range(spec.n_shards):
        encoded = encode_shard(spec, fetch(*spec.span(shard)))
        store.commit(f"{group}/{name}/{spec.shard_key(shard)}", encoded.data)
        files[f"{name}/{spec.shard_key(shard)}"] = entry_of(encoded.data, encoded.chunk_crcs)
    store.commit(f"{group}/{name}/zarr.json", metadata)
    return files


def write_vector(store: Store, group: str, name: str, values: np.ndarray, dtype: str) -> Ledger:
    """Write a whole array that is at hand."""
    spec = ArraySpec(values.shape, dtype)
    return write_array(store, group, name, spec, lambda start, end: values[..., start:end])


def create_cache(store: Store, manifest: Manifest, corpus: FlatSequences) -> None:
    """Write manifest and corpus where they are not there yet.

    Raises:
        CacheMismatchError: the place holds something else, a cache made from something else, or the corpus has an id
            outside the vocabulary.
    """
    check_chunk_sizes(manifest)
    if store.exists(ROOT):
        root = read_group(store, Manifest, "")
        if root.imported is not None and manifest.imported is None:
            raise CacheMismatchError(
                f"cache {store.where('')} was imported from {root.imported.format} rows and nothing can be built into "
                "it; train from it with `footsteps distill`, or choose another cache.path"
            )
        compare(root, manifest, f"cache {store.where('')}")
    else:
        foreign = [key for key in store.sizes("") if key != ROOT + PART_SUFFIX]
        if foreign:
            raise CacheMismatchError(
                f"{store.where('')} is not a cache and not empty (it holds {foreign[0]!r}); choose another cache.path"
            )
        # First, so that of two builds into one place the second compares its options with the first's.
        store.commit(ROOT, seal(manifest))
    if not store.exists(group_key(CORPUS)):
        files = _write_corpus(store, corpus, manifest.tokenizer.size)
        store.commit(group_key(CORPUS), seal(CorpusGroup(files=files)))


def _write_corpus(store: Store, corpus: FlatSequences, vocab_size: int) -> Ledger:
    def tokens(start: int, end: int) -> np.ndarray:
        block = corpus.tokens[start:end]
        if block.max(initial=0) >= vocab_size:
            raise CacheMismatchError(
                f"the corpus has the token id {block.max()}, the tokenizer only {vocab_size} tokens; "
                "remove the corpus folder and tokenise with the same tokenizer"
            )
        return block

    group = CORPUS
    completion = corpus.completion
    ids = corpus.sample_ids
    files = write_array(store, group, "tokens", ArraySpec(corpus.tokens.shape, "uint32"), tokens)
    files |= write_array(
        store, group, "completion", ArraySpec(completion.shape, "uint8"), lambda a, b: completion[a:b].astype(np.uint8)
    )
    files |= write_vector(store, group, "token_offsets", corpus.token_offsets, "int64")
    files |= write_vector(store, group, "position_offsets", corpus.position_offsets, "int64")
    files |= write_vector(store, group, "sample_ids", ids.text, "uint8")
    files |= write_vector(store, group, "sample_id_offsets", ids.offsets, "int64")
    return files


def write_probe(store: Store, anchor: CheckpointIdentity, rows: np.ndarray, ids_MR: np.ndarray) -> None:
    """Fix the probe: rows i64 [P], and the ids u32 [M, R] on which its M positions are compared."""
    files = write_vector(store, PROBE, "rows", rows, "int64")
    files |= write_vector(store, PROBE, "ids", np.ascontiguousarray(ids_MR.T), "uint32")
    body = ProbeGroup(anchor=anchor, positions=len(ids_MR), files=files)
    store.commit(group_key(PROBE), seal(body))


def write_order(store: Store, checkpoints: list[str]) -> None:
    """Add checkpoints to the list of those begun: in the order given where it names all, else at the end."""
    key = group_key(CHECKPOINTS)
    known = read_order(store)
    order = checkpoints if set(known) <= set(checkpoints) else [*known, *(c for c in checkpoints if c not in known)]
    if order != known:
        store.commit(key, seal(CheckpointOrder(order=order)))


class CheckpointWriter:
    """Writes one checkpoint's group, by any number of processes that hold different parts."""

    def __init__(self, store: Store, manifest: Manifest, name: str) -> None:
        check_name(name)
        self.store, self.manifest, self.name = store, manifest, name
        self.spec = records_spec(manifest)
        self.layout = RecordLayout.of(manifest.targets)
        self.group = checkpoint_key(name)

    @property
    def n_shards(self) -> int:
        return self.spec.n_shards

    def is_complete(self) -> bool:
        """Say whether the group is finished."""
        return self.store.exists(group_key(self.group))

    def begin(self, identity: CheckpointIdentity) -> None:
        """Record which weights these are, or compare them with those that were recorded.

        Raises:
            CacheMismatchError: the checkpoint was begun, or finished, with others.
        """
        key = f"{self.group}/{RECORDS}/zarr.json"
        if self.store.exists(key):
            _, attributes = parse_array_metadata(self.store.read(key), self.store.where(key))
            recorded = _identity(attributes, self.store.where(key))
            compare(recorded, identity, f"checkpoint {self.name!r} of {self.store.where('')}")
        else:
            self.store.commit(key, array_metadata(self.spec, identity.model_dump()))

    def agree_on_batches(self, agree: Callable[[int | None], int | None]) -> None:
        """Let `agree` say how many tokens a batch takes, told what was said before, and keep its answer."""
        noted = self._ledger_entry(BatchNote, BATCHES, self.store.sizes(f"{self.group}/{LEDGER}"))
        begun_with = None if noted is None else noted.batch_tokens
        batch_tokens = agree(begun_with)
        if batch_tokens is not None and batch_tokens != begun_with:
            self.store.commit(f"{self.group}/{LEDGER}/{BATCHES}.json", seal(BatchNote(batch_tokens=batch_tokens)))

    def shards_done(self) -> dict[int, LedgerEntry]:
        """Return the ledger's entries of shards whose files are there in their full size."""
        # Sizes alone: a committed file was read back whole, and a copy or disk that lost its end shows here. Flipped
        # bytes show when `finish` reads every chunk.
        sizes = self.store.sizes(self.group)
        done: dict[int, LedgerEntry] = {}
        for shard in range(self.n_shards):
            entry = self._ledger_entry(LedgerEntry, str(shard), sizes)
            if entry and sizes.get(f"{self.group}/{RECORDS}/{self.spec.shard_key(shard)}") == entry.bytes:
                done[shard] = entry
        return done

    def is_shard_done(self, shard: int) -> bool:
        """Say whether one shard is committed; quick where it is not."""
        return self.store.exists(f"{self.group}/{LEDGER}/{shard}.json") and shard in self.shards_done()

    def probe_pass_done(self) -> ProbePass | None:
        """Return the held-out loss and the probe's ledger, if they are there."""
        sizes = self.store.sizes(self.group)
        probe_pass = self._ledger_entry(ProbePass, PROBE_PASS, sizes)
        if probe_pass is None:
            return None
        whole = all(sizes.get(f"{self.group}/{key}") == entry.bytes for key, entry in probe_pass.files.items())
        return probe_pass if whole else None

    def write_shard(self, shard: int, targets: Targets) -> None:
        """Commit one shard's positions, then enter it in the ledger."""
        encoded = encode_shard(self.spec, encode_records(self.layout, targets))
        # The ledger after the shard: an entry never stands for bytes that are not there, and a shard without an entry
        # is written again with the same bytes. The entry repeats each chunk's crc32c, because the one beside the chunk
        # fits any intact chunk, also that of another shard or checkpoint which has come to lie here.
        self.store.commit(f"{self.group}/{RECORDS}/{self.spec.shard_key(shard)}", encoded.data)
        self.store.commit(f"{self.group}/{LEDGER}/{shard}.json", seal(entry_of(encoded.data, encoded.chunk_crcs)))

    def write_probe_pass(
        self, held_out_loss: float | None, probe_code_MR: np.ndarray, probe_log_tail_M: np.ndarray
    ) -> None:
        """Commit the probe's log-probabilities (quantised, u16 [M, R]) and log tails, and the held-out loss."""
        files = write_vector(self.store, self.group, "probe_logp", np.ascontiguousarray(probe_code_MR.T), "uint16")
        files |= write_vector(self.store, self.group, "probe_log_tail", probe_log_tail_M, "float32")
        body = ProbePass(held_out_loss=held_out_loss, files=files)
        self.store.commit(f"{self.group}/{LEDGER}/{PROBE_PASS}.json", seal(body))

    def finish(self, position_offsets: np.ndarray) -> bool:
        """Complete the group if every unit is there; say whether it is complete now.

        The losses are summed from the stored records, which checks every chunk once more on the way.
        """
        if not self.is_complete():
            done, probe_pass = self.shards_done(), self.probe_pass_done()
            if len(done) < self.n_shards or probe_pass is None:
                return False
            key = f"{self.group}/{RECORDS}/zarr.json"
            metadata = self.store.read(key)
            where = self.store.where(key)
            identity = _identity(parse_array_metadata(metadata, where)[1], where)
            files = {f"{RECORDS}/zarr.json": entry_of(metadata)}
            files |= {f"{RECORDS}/{self.spec.shard_key(shard)}": entry for shard, entry in sorted(done.items())}
            files |= probe_pass.files
            loss = self._losses(done, position_offsets)
            files |= write_vector(self.store, self.group, "loss", loss, "float64")
            body = CheckpointGroup(identity=identity, held_out_loss=probe_pass.held_out_loss, files=files)
            self.store.commit(group_key(self.group), seal(body))
        # Also where another builder has completed the group: it may have been killed before this.
        self.store.remove_tree(f"{self.group}/{LEDGER}")
        return True

    def reopen(self, damaged: set[str]) -> None:
        """Turn a complete checkpoint back to one that lacks the units of its damaged files.

        `damaged` holds keys below the store. The deletion of the group's zarr.json is the last step.
        """
        body = read_group(self.store, CheckpointGroup, self.group)
        # What is intact gets its entries back while the group still counts as complete: killed before the deletion, the
        # group is still one that lacks nothing but its damaged files, and this begins again.
        for shard in range(self.n_shards):
            file = f"{RECORDS}/{self.spec.shard_key(shard)}"
            if f"{self.group}/{file}" not in damaged:
                self.store.commit(f"{self.group}/{LEDGER}/{shard}.json", seal(body.files[file]))
        files = {file: entry for file, entry in body.files.items() if file.startswith("probe_")}
        if not any(f"{self.group}/{file}" in damaged for file in files):
            probe_pass = ProbePass(held_out_loss=body.held_out_loss, files=files)
            self.store.commit(f"{self.group}/{LEDGER}/{PROBE_PASS}.json", seal(probe_pass))
        metadata = f"{self.group}/{RECORDS}/zarr.json"
        if metadata in damaged:
            self.store.commit(metadata, array_metadata(self.spec, body.identity.model_dump()))
        self.store.remove(group_key(self.group))

    def _losses(self, ledger: dict[int, LedgerEntry], position_offsets: np.ndarray) -> np.ndarray:
        reader = ArrayReader(
            self.store, f"{self.group}/{RECORDS}", self.spec, lambda shard: ledger[shard].chunk_crc32c or []
        )
        loss = np.zeros(len(position_offsets) - 1)
        start = 0
        for planes in reader.chunks():
            _, gold, _ = decode_scalars(self.layout, planes)
            rows, sums = sum_rows(position_offsets, start, -gold)  # NaN where an imported cache does not know gold
            loss[rows] += sums
            start += len(gold)
        return loss

    def _ledger_entry(self, schema: type[Group], unit: str, sizes: dict[str, int]) -> Group | None:
        """Return a unit's entry; one that cannot be read counts as not there, so that its unit is done again."""
        key = f"{self.group}/{LEDGER}/{unit}.json"
        if key not in sizes:
            return None
        try:
            return unseal(schema, self.store.read(key), self.store.where(key))
        except CacheDamagedError:
            return None


def _identity(attributes: dict[str, Any], where: str) -> CheckpointIdentity:
    """Read what a checkpoint's records say of whose they are."""
    try:
        return CheckpointIdentity.model_validate(attributes)
    except ValidationError:
        raise CacheDamagedError(f"{where} is damaged: it does not say of which weights it is") from None

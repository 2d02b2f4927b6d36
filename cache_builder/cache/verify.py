"""Read every byte of a cache and compare it with what was committed; name every file that differs, or undo it.

verify_cache        Verdict: damaged, incomplete, foreign
    take_back_damage    the units of damaged files count as not done: building is deterministic, their bytes come back
"""

import hashlib
import re
from dataclasses import dataclass, field

import numpy as np

from cache_builder.atomic import PART_SUFFIX
from cache_builder.cache.opening import IN_A_RUN, check_json_size, no_cache, size_problem
from cache_builder.cache.reader import Cache
from cache_builder.cache.writer import CheckpointWriter
from cache_builder.errors import CacheDamagedError, CacheMismatchError
from cache_builder.format.manifest import (
    BESIDE,
    CHECKPOINTS,
    CORPUS,
    PROBE,
    ROOT,
    CheckpointGroup,
    CheckpointOrder,
    CorpusGroup,
    Group,
    Ledger,
    LedgerEntry,
    Manifest,
    ProbeGroup,
    checkpoint_key,
    group_key,
    read_group,
)
from cache_builder.positions import sum_rows
from cache_builder.sequences import fingerprint_of
from cache_builder.storage.base import Store

VERIFY_BYTES = 16 << 20
"""What of a file is read at once, and of decoded chunks held."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass
class Verdict:
    """What a verification found."""

    damaged: dict[str, str] = field(default_factory=dict)
    """What is wrong with each damaged file, by its key."""
    incomplete: list[str] = field(default_factory=list)
    """Checkpoints that have begun and not finished."""
    foreign: list[str] = field(default_factory=list)
    """Files that no ledger names; harmless."""
    files: int = 0
    bytes: int = 0


def verify_cache(store: Store) -> Verdict:
    """Check every file of a cache against the ledgers, whole, and then what they hold against the manifest.

    Raises:
        MissingError: there is nothing at this place.
        CacheMismatchError: the format is newer than this program.
    """
    files = _Files(store)
    verdict = files.verdict
    files.check_group(Manifest, "")
    files.check_group(CorpusGroup, CORPUS)
    order = files.check_group(CheckpointOrder, CHECKPOINTS)
    complete = False
    for name in sorted({*files.checkpoints, *(order.order if order else [])}):
        group, there = checkpoint_key(name), files.checkpoints.get(name, [])
        building = any(key.startswith(f"{group}/ledger/") for key in there)
        if group_key(group) not in files.sizes and (building or f"{group}/loss/{ROOT}" not in files.sizes):
            verdict.incomplete.append(name)
            files.known.update(there)
            continue
        complete = True
        body = files.check_group(CheckpointGroup, group)
        if body is not None and body.identity.name != name:
            verdict.damaged[group_key(group)] = f"it is that of {body.identity.name!r}"
    if complete or any(key.startswith(f"{PROBE}/") for key in files.sizes):
        files.check_group(ProbeGroup, PROBE)
    foreign = (key for key in files.sizes.keys() - files.known if not key.endswith(PART_SUFFIX) and key not in BESIDE)
    verdict.foreign = sorted(foreign)
    if complete and not verdict.damaged:
        _check_content(store, verdict)
    return verdict


def check_corpus(cache: Cache) -> None:
    """Read all sequences of a cache and compare them with the fingerprint that its manifest gives them.

    The digests of a cache say that it is as its maker left it; this says that it was made from the corpus that it
    names, so that whoever compares fingerprints has compared tokens.

    Raises:
        CacheMismatchError: they are other sequences.
        CacheDamagedError: bytes are not those that were committed.
    """
    corpus = cache.corpus
    found = fingerprint_of((corpus.sample_ids.read(row), *corpus.sequence(row)) for row in range(len(corpus)))
    if found != corpus.fingerprint:
        raise CacheMismatchError(
            f"cache {cache.url} says that its corpus is {corpus.fingerprint[:12]}…, but its sequences are "
            f"{found[:12]}…: it is not the cache of the corpus that it names; build it again, or get it from whom you "
            "trust"
        )


def check_targets(cache: Cache, name: str) -> None:
    """Decode everything that a checkpoint says, and compare its losses with its records.

    Raises:
        CacheDamagedError: an array holds what its kind cannot.
    """
    offsets = cache.corpus.position_offsets
    losses, start = np.zeros(len(cache.corpus)), 0
    for targets in cache.shard_targets(name):
        rows, sums = sum_rows(offsets, start, -targets.gold)
        losses[rows] += sums
        start += len(targets)
    # Not equal to the bit: a program that sums in another order writes the same cache.
    if not np.allclose(losses, cache.losses(name), rtol=1e-6, atol=1e-6, equal_nan=True):
        raise CacheDamagedError("its losses are not the sums of its records' log-probabilities")
    cache.probe_logp(name)


def take_back_damage(store: Store, manifest: Manifest) -> None:
    """Verify a cache and undo whatever is damaged, so that a build does it again; what is intact stays as it is.

    Raises:
        CacheDamagedError: the manifest, or a ledger, is damaged itself; the message says what to remove.
    """
    damaged = set(verify_cache(store).damaged)
    complete = {key.split("/")[1] for key in store.sizes(CHECKPOINTS) if key.endswith("/loss/zarr.json")}
    if any(key.startswith(f"{PROBE}/") for key in damaged):
        # New ids may differ, so every checkpoint is compared on them again.
        damaged |= {f"{checkpoint_key(name)}/probe_logp/zarr.json" for name in complete}
    for name in sorted(complete):
        if group_key(checkpoint_key(name)) in damaged:
            where = store.where(checkpoint_key(name))
            raise CacheDamagedError(f"the ledger of checkpoint {name!r} is damaged: remove {where} and build it again")
        if any(key.startswith(f"{checkpoint_key(name)}/") for key in damaged):
            CheckpointWriter(store, manifest, name).reopen(damaged)
    for group in (CORPUS, PROBE):
        if any(key.startswith(f"{group}/") for key in damaged):
            store.remove(group_key(group))
    if group_key(CHECKPOINTS) in damaged:
        store.remove(group_key(CHECKPOINTS))
    if ROOT in damaged:
        raise CacheDamagedError(f"{store.where(ROOT)} is damaged; restore it from a copy, or build another cache")


class _Files:
    """The files of one cache: which there are, which a ledger names, and what is wrong with those."""

    def __init__(self, store: Store) -> None:
        self.store, self.sizes = store, store.sizes("")
        if not self.sizes or (ROOT not in self.sizes and f"{IN_A_RUN}/{ROOT}" in self.sizes):
            raise no_cache(store)
        self.verdict, self.known = Verdict(), set[str]()
        self.checkpoints: dict[str, list[str]] = {}
        """The files of each checkpoint's folder."""
        for key in self.sizes:
            if key.startswith(f"{CHECKPOINTS}/") and key.count("/") > 1:
                self.checkpoints.setdefault(key.split("/")[1], []).append(key)
        self._all_bytes = sum(self.sizes.values())

    def check_group(self, schema: type[Group], group: str) -> Group | None:
        """Check a group's zarr.json and every file that its ledger names; None where it cannot be read."""
        key, damaged = group_key(group), self.verdict.damaged
        self.known.add(key)
        self.verdict.files += 1
        self.verdict.bytes += self.sizes.get(key, 0)
        if key not in self.sizes:
            damaged[key] = "the file is missing"
            return None
        try:
            check_json_size(self.store, key, self.sizes[key], self._all_bytes - self.sizes[key] if group else 0)
            body = read_group(self.store, schema, group)
        except CacheDamagedError:
            below = self._below(group) - {key}
            unchecked = f"; the {len(below)} files below it cannot be checked" if below else ""
            damaged[key] = f"its content is not what was committed{unchecked}"
            self.known |= below
            return None
        files: Ledger = getattr(body, "files", {})
        for file, entry in files.items():
            reason = self._problem(f"{group}/{file}", entry)
            if reason is not None:
                damaged[f"{group}/{file}"] = reason
        return body

    def _problem(self, key: str, entry: LedgerEntry) -> str | None:
        self.known.add(key)
        self.verdict.files += 1
        self.verdict.bytes += entry.bytes
        problem = size_problem(self.sizes.get(key), entry)
        if problem is not None:
            return problem
        if self._sha256(key, entry.bytes) != entry.sha256:
            return "its bytes are not those that were committed"
        return None

    def _sha256(self, key: str, size: int) -> str:
        """Read a file in blocks, as a file may have any size."""
        digest = hashlib.sha256()
        for start in range(0, size, VERIFY_BYTES):
            digest.update(self.store.read_range(key, start, min(VERIFY_BYTES, size - start)))
        return digest.hexdigest()

    def _below(self, group: str) -> set[str]:
        """Return the files below a group that is not the cache itself."""
        folder, _, name = group.partition("/")
        if name:
            return set(self.checkpoints.get(name, []))
        return {key for key in self.sizes if folder and key.startswith(f"{folder}/")}


def _check_content(store: Store, verdict: Verdict) -> None:
    """Note what is as it was committed and still is nothing that a build writes."""
    group = ROOT
    try:
        cache = Cache(store, VERIFY_BYTES)
        group = group_key(CORPUS)
        if _DIGEST.fullmatch(cache.corpus.fingerprint):  # as those of all corpora that this program makes
            check_corpus(cache)
        group = group_key(PROBE)
        cache.check_probe()
        for name in cache.checkpoints:
            group = group_key(checkpoint_key(name))
            check_targets(cache, name)
    except (CacheDamagedError, CacheMismatchError) as error:
        verdict.damaged[group] = f"as it was committed, but not what it should be: {error}"

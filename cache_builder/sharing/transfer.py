"""Bring a cache to another place, file by file; it may be killed at any instant and given again.

    arriving.part            which cache is on its way; gone at the end
    <group>/<array>/…        data, several files at once: checked against the ledger, and skipped where they are there
    <group>/zarr.json        corpus, probe, checkpoints
    checkpoints/zarr.json    which checkpoints there are: before it, a new one is not seen
    README.md                the card
    zarr.json                the cache: before it, there is none to open

The place may hold other checkpoints of the same cache, which stay. Whatever else it holds is refused.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from cache_builder.cache.writer import LEDGER
from cache_builder.errors import CacheDamagedError
from cache_builder.format.manifest import (
    ARRIVING,
    CHECKPOINTS,
    ROOT,
    CheckpointGroup,
    CheckpointOrder,
    LedgerEntry,
    check_name,
    checkpoint_key,
    group_key,
    read_group,
    read_order,
    seal,
    sha256,
)
from cache_builder.sharing.card import CARD, is_ours, write_card
from cache_builder.sharing.copy_plan import CopyPlan, check_place
from cache_builder.storage.base import Store
from cache_builder.storage.hub import HubStore

T = TypeVar("T")


@dataclass
class CopyStats:
    """What a transfer did."""

    sent_files: int = 0
    sent_bytes: int = 0
    present_files: int = 0
    card_kept: bool = False
    """The place has a card that is not ours, or was edited, and keeps it."""


def copy_cache(plan: CopyPlan, place: Store, *, jobs: int, card: bool, done: Callable[[int], None]) -> CopyStats:
    """Copy what is planned to `place`; `done(bytes)` is told of each file.

    Raises:
        CacheDamagedError: a file's bytes are not those that were committed; nothing new can be opened then.
        CacheMismatchError: as `check_place`.
        CacheBusyError: another command writes there.
        CacheWriteError, CacheUnreachableError: a store failed; what has arrived is kept.
    """
    if isinstance(place, HubStore):
        place.make_repository()
    with place.lock_part((0, 1)):
        sizes = check_place(plan, place)
        stats = CopyStats()
        arriving = [(ARRIVING, seal(plan.manifest))] if not {ROOT, ARRIVING} & sizes.keys() else []
        if isinstance(place, HubStore):
            place.finish(arriving, removed=[], message="Begin to add a cache of teacher targets")
            _copy_to_hub(plan, place, sizes, jobs, stats, done)
        else:
            for key, data in arriving:
                place.commit(key, data)
            _copy_files(plan, place, sizes, jobs, stats, done)
        _complete(plan, place, sizes, card, stats)
    return stats


def _copy_files(
    plan: CopyPlan, place: Store, sizes: dict[str, int], jobs: int, stats: CopyStats, done: Callable[[int], None]
) -> None:
    def copy(file: tuple[str, LedgerEntry]) -> tuple[LedgerEntry, bool]:
        key, entry = file
        if sizes.get(key) == entry.bytes and sha256(place.read(key)) == entry.sha256:
            return entry, False
        place.commit(key, read_checked(plan.source, key, entry))
        return entry, True

    for entry, sent in _in_parallel(copy, plan.files, jobs):
        _count(stats, entry, sent)
        done(entry.bytes)


def _copy_to_hub(
    plan: CopyPlan, hub: HubStore, sizes: dict[str, int], jobs: int, stats: CopyStats, done: Callable[[int], None]
) -> None:
    digests = hub.digests()
    missing: dict[str, LedgerEntry] = {}
    for key, entry in plan.files:
        digest = digests.get(key) or (sha256(hub.read(key)) if sizes.get(key) == entry.bytes else None)
        if digest == entry.sha256:
            _count(stats, entry, False)
            done(entry.bytes)
        else:
            missing[key] = entry
    for batch in hub.batches([(key, entry.bytes) for key, entry in missing.items()]):
        files = [(key, missing[key]) for key in batch]
        data = _in_parallel(lambda file: (file[0], read_checked(plan.source, *file)), files, jobs)
        hub.upload(list(data), jobs)
        for _, entry in files:
            _count(stats, entry, True)
            done(entry.bytes)


def read_checked(source: Store, key: str, entry: LedgerEntry) -> bytes:
    """Return a file's bytes if they are those that the ledger has."""
    data = source.read(key)
    if sha256(data) != entry.sha256:
        raise CacheDamagedError(
            f"{source.where(key)} is damaged: its bytes are not those that were committed; `footsteps cache verify` "
            "names every such file. Restore it from a copy, or build it again with `footsteps cache build --repair`"
        )
    return data


def _complete(plan: CopyPlan, place: Store, sizes: dict[str, int], card: bool, stats: CopyStats) -> None:
    """Write what makes the copy a cache, in the order in which it may be seen."""
    order = _merged_order(plan, place)
    last: list[tuple[str, bytes]] = [(group.metadata, seal(group.body)) for group in plan.groups]
    last.append((group_key(CHECKPOINTS), seal(CheckpointOrder(order=order))))
    if card:
        theirs = place.read(CARD) if CARD in sizes else None
        if theirs is None or is_ours(theirs):
            last.append((CARD, write_card(place.where(""), plan.manifest, _checkpoints_there(plan, place, order))))
        else:
            stats.card_kept = True
    last.append((ROOT, seal(plan.manifest)))
    last = [(key, data) for key, data in last if key not in sizes or place.read(key) != data]
    left_over = [f"{group.key}/{LEDGER}" for group in plan.groups]
    left_over = [prefix for prefix in left_over if any(key.startswith(f"{prefix}/") for key in sizes)]
    if isinstance(place, HubStore):
        place.finish(last, removed=[ARRIVING])
        return
    for key, data in last:
        place.commit(key, data)
    for prefix in left_over:
        place.remove_tree(prefix)
    if place.exists(ARRIVING):
        place.remove(ARRIVING)


def _merged_order(plan: CopyPlan, place: Store) -> list[str]:
    """Return the checkpoints that the place will list: in the source's order where it knows all, else at the end."""
    known = read_order(place)
    there = {*known, *plan.chosen}
    if there <= set(plan.begun):
        return [name for name in plan.begun if name in there]
    return [*known, *(name for name in plan.chosen if name not in known)]


def _checkpoints_there(plan: CopyPlan, place: Store, order: list[str]) -> list[CheckpointGroup]:
    ours = {group.body.identity.name: group.body for group in plan.groups if isinstance(group.body, CheckpointGroup)}
    found: list[CheckpointGroup] = []
    for name in order:
        check_name(name)
        if name in ours:
            found.append(ours[name])
        elif place.exists(group_key(checkpoint_key(name))):
            found.append(read_group(place, CheckpointGroup, checkpoint_key(name)))
    return found


def _count(stats: CopyStats, entry: LedgerEntry, sent: bool) -> None:
    if sent:
        stats.sent_files += 1
        stats.sent_bytes += entry.bytes
    else:
        stats.present_files += 1


def _in_parallel(
    work: Callable[[tuple[str, LedgerEntry]], T], files: list[tuple[str, LedgerEntry]], jobs: int
) -> Iterator[T]:
    """Yield results as they come; the first failure ends all that has not begun."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, file) for file in files]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

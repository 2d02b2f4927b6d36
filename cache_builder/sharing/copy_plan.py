"""What of a cache is to be copied to another place, and whether that place may have it.

source ─▶ CopyPlan: manifest, corpus, probe, checkpoints  complete, of the ledgers' sizes, with names that are safe
place: nothing │ this cache │ an unfinished copy of it    anything else is refused by name
"""

from dataclasses import dataclass

from cache_builder.atomic import PART_SUFFIX
from cache_builder.cache.reader import Cache
from cache_builder.errors import CacheDamagedError, CacheIncompleteError, CacheMismatchError
from cache_builder.format.differences import compare
from cache_builder.format.manifest import (
    ARRIVING,
    BESIDE,
    CORPUS,
    PROBE,
    ROOT,
    CheckpointGroup,
    CorpusGroup,
    Entry,
    Ledger,
    LedgerEntry,
    Manifest,
    ProbeGroup,
    check_name,
    checkpoint_key,
    group_key,
    read_group,
    unseal,
)
from cache_builder.storage.base import Store

CHECK_BYTES = 64 << 20


@dataclass(frozen=True)
class Group:
    """One group of a cache: what its zarr.json says, and the ledger of what lies below."""

    key: str
    body: CorpusGroup | ProbeGroup | CheckpointGroup

    @property
    def files(self) -> Ledger:
        return self.body.files

    @property
    def metadata(self) -> str:
        return group_key(self.key)


@dataclass(frozen=True)
class CopyPlan:
    """What of a cache is to be brought."""

    source: Store
    manifest: Manifest
    groups: list[Group]
    chosen: tuple[str, ...]
    begun: tuple[str, ...]

    @property
    def files(self) -> list[tuple[str, LedgerEntry]]:
        return [(f"{group.key}/{file}", entry) for group in self.groups for file, entry in group.files.items()]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for _, entry in self.files)


def plan_copy(source: Store, checkpoints: tuple[str, ...]) -> CopyPlan:
    """Return what is to be brought: these checkpoints, or all of them, with corpus and probe.

    Raises:
        CacheIncompleteError: a checkpoint that is asked for is not complete, or of none given, not all are.
        CacheDamagedError: a file is missing or of another size than was committed, or a ledger names what it cannot.
    """
    cache = Cache(source, CHECK_BYTES)
    unfinished = cache.unfinished
    if not checkpoints and (unfinished or not cache.checkpoints):
        complete = " ".join(f"--checkpoint {name}" for name in cache.checkpoints)
        raise CacheIncompleteError(
            f"cache {cache.url}: unfinished are {', '.join(unfinished) or 'all checkpoints'}; build it to its end"
            + (f", or bring only what is complete: {complete}" if complete else "")
        )
    chosen = tuple(name for name in cache.checkpoints if name in checkpoints) if checkpoints else cache.checkpoints
    groups = [Group(CORPUS, read_group(source, CorpusGroup, CORPUS))]
    if source.exists(group_key(PROBE)):
        groups.append(Group(PROBE, read_group(source, ProbeGroup, PROBE)))
    for name in checkpoints or chosen:
        check_name(name)
        groups.append(Group(checkpoint_key(name), cache.checkpoint(name)))
    return CopyPlan(source, cache.manifest, groups, chosen, cache.begun)


def check_place(plan: CopyPlan, place: Store) -> dict[str, int]:
    """Refuse a place that holds anything else, and return the sizes of the files there.

    Raises:
        CacheMismatchError: another cache, another checkpoint of the same name, or files that are no cache.
    """
    where, sizes = place.where(""), place.sizes("")
    if ROOT in sizes:
        theirs = read_group(place, Manifest, "")
        _refuse_other(theirs, plan.manifest, f"{where} holds another cache")
    elif ARRIVING in sizes:
        theirs = unseal(Manifest, place.read(ARRIVING), place.where(ARRIVING))
        _refuse_other(theirs, plan.manifest, f"{where} holds an unfinished copy of another cache")
    else:
        foreign = [key for key in sizes if key not in BESIDE and not key.endswith(PART_SUFFIX)]
        if foreign:
            raise CacheMismatchError(
                f"{where} is not a cache and not empty (it holds {foreign[0]!r}); choose another place"
            )
    for group in plan.groups:
        if group.metadata in sizes:
            _refuse_other_group(group, place)
    return sizes


def _refuse_other(theirs: Entry, ours: Entry, what: str) -> None:
    try:
        compare(theirs, ours, "")
    except CacheMismatchError as error:
        differing = str(error).partition("\n")[2]
        raise CacheMismatchError(f"{what}; choose another place, or remove what is there:\n{differing}") from None


def _refuse_other_group(group: Group, place: Store) -> None:
    where = place.where(group.metadata)
    try:
        theirs = read_group(place, type(group.body), group.key)
    except CacheDamagedError:
        return  # it is written again
    if theirs == group.body:
        return
    if isinstance(theirs, CheckpointGroup) and isinstance(group.body, CheckpointGroup):
        name = group.body.identity.name
        _refuse_other(theirs.identity, group.body.identity, f"{place.where('')} has another checkpoint {name!r}")
    raise CacheMismatchError(
        f"{where} is of a cache that was built apart from this one, from the same inputs: its files have other bytes, "
        "and checkpoints of the two must not be mixed; choose another place, or remove what is there"
    )

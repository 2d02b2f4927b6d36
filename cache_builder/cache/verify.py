"""Read every byte of a cache and compare it with what was committed; name every file that differs, or undo it.

verify_cache        Verdict: damaged, incomplete, foreign
    take_back_damage    the units of damaged files count as not done: building is deterministic, their bytes come back
"""

from dataclasses import dataclass, field

from cache_builder.atomic import PART_SUFFIX
from cache_builder.cache.writer import CheckpointWriter
from cache_builder.errors import CacheDamagedError, MissingError
from cache_builder.format.manifest import (
    BESIDE,
    CHECKPOINTS,
    CORPUS,
    PROBE,
    ROOT,
    CheckpointGroup,
    CheckpointOrder,
    CorpusGroup,
    Entry,
    Ledger,
    Manifest,
    ProbeGroup,
    checkpoint_key,
    group_key,
    read_group,
    sha256,
)
from cache_builder.storage.base import Store


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
    """Check every file of a cache against the ledgers, whole.

    Raises:
        MissingError: there is nothing at this place.
        CacheMismatchError: the format is newer than this program.
    """
    verdict = Verdict()
    sizes = store.sizes("")
    if not sizes:
        raise MissingError(f"no cache at {store.where('')}")
    known: set[str] = set()
    _check_group(store, Manifest, "", sizes, known, verdict)
    _check_group(store, CorpusGroup, CORPUS, sizes, known, verdict)
    order = _check_group(store, CheckpointOrder, CHECKPOINTS, sizes, known, verdict)
    folders = {key.split("/")[1] for key in sizes if key.startswith(f"{CHECKPOINTS}/") and key.count("/") > 1}
    complete = False
    for name in sorted(folders | set(order.order if isinstance(order, CheckpointOrder) else [])):
        group = checkpoint_key(name)
        building = [key for key in sizes if key.startswith(f"{group}/ledger/")]
        if f"{group}/zarr.json" not in sizes and (building or f"{group}/loss/zarr.json" not in sizes):
            verdict.incomplete.append(name)
            known |= {key for key in sizes if key.startswith(f"{group}/")}
            continue
        complete = True
        body = _check_group(store, CheckpointGroup, group, sizes, known, verdict)
        if isinstance(body, CheckpointGroup) and body.identity.name != name:
            verdict.damaged[f"{group}/zarr.json"] = f"it is that of {body.identity.name!r}"
    if complete or any(key.startswith(f"{PROBE}/") for key in sizes):
        _check_group(store, ProbeGroup, PROBE, sizes, known, verdict)
    verdict.foreign = sorted(key for key in set(sizes) - known if not key.endswith(PART_SUFFIX) and key not in BESIDE)
    return verdict


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


def _check_group(
    store: Store, schema: type[Entry], group: str, sizes: dict[str, int], known: set[str], verdict: Verdict
) -> Entry | None:
    key = group_key(group)
    known.add(key)
    verdict.files += 1
    verdict.bytes += sizes.get(key, 0)
    if key not in sizes:
        verdict.damaged[key] = "the file is missing"
        return None
    try:
        body = read_group(store, schema, group)
    except CacheDamagedError:
        below = {other for other in sizes if group and other.startswith(f"{group}/")} - {key}
        unchecked = f"; the {len(below)} files below it cannot be checked" if below else ""
        verdict.damaged[key] = f"its content is not what was committed{unchecked}"
        known |= below
        return None
    files: Ledger = getattr(body, "files", {})
    for file, entry in files.items():
        file_key = f"{group}/{file}"
        known.add(file_key)
        verdict.files += 1
        verdict.bytes += entry.bytes
        if file_key not in sizes:
            verdict.damaged[file_key] = "the file is missing"
        elif sizes[file_key] != entry.bytes:
            verdict.damaged[file_key] = f"{sizes[file_key]:,} bytes, {entry.bytes:,} were committed"
        elif sha256(store.read(file_key)) != entry.sha256:
            verdict.damaged[file_key] = "its bytes are not those that were committed"
    return body

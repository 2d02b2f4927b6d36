"""Format versions 1 to 3: the manifest, the ledger and where everything lies; docs/format.md is their specification.

    zarr.json                               the manifest: what the cache was made from and how
    corpus/      zarr.json + 6 arrays       tokens, completion, token_offsets, position_offsets, sample_ids, …_offsets
    probe/       zarr.json + rows, ids      which sequences are compared, on which ids
    checkpoints/ zarr.json                  the checkpoints' names, oldest first
      <name>/    zarr.json                  identity, held-out loss, ledger; written last: complete when it is there
        records/ loss/ probe_logp/ probe_log_tail/

Every group's zarr.json is sealed: its attributes carry their own SHA-256. No torch here.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from cache_builder.errors import CacheDamagedError, CacheMismatchError
from cache_builder.format.indented import indented
from cache_builder.format.options import MAX_COUNT, Entry, Layout, ProbeOptions, TargetOptions, without_absent
from cache_builder.storage.base import Reads
from cache_builder.targets.blocks import check_edges

FORMAT_NAME: Literal["footsteps-cache"] = "footsteps-cache"
FORMAT_VERSION: Literal[1] = 1
"""What a build writes that keeps no blocks of the tail."""
IMPORTED_VERSION: Literal[2] = 2
"""What an import writes: version 1 with `imported` in its manifest."""
BLOCKS_VERSION: Literal[3] = 3
"""What a build writes that keeps the tail's mass by blocks: version 1 with `targets.blocks` in its manifest."""
ROOT = "zarr.json"
CORPUS, PROBE, CHECKPOINTS = "corpus", "probe", "checkpoints"
ARRIVING = "arriving.part"
"""The manifest of a cache that `footsteps cache push` or `pull` is bringing to a place."""
BESIDE = ("README.md", ".gitattributes")
"""What may lie beside a cache: the card of a shared one, and what the Hub adds."""
ATTRIBUTE, SEAL = "footsteps", "footsteps_sha256"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,126}")


Loss = Annotated[float, Field(ge=-0.01)]
"""Nats per position; below zero by rounding at most."""


class TokenizerIdentity(Entry):
    """The vocabulary that every id refers to."""

    fingerprint: str
    size: int = Field(ge=1, lt=2**24)


class CorpusIdentity(Entry):
    """Which sequences: a fingerprint of their content, and how many there are."""

    fingerprint: str
    sequences: int = Field(ge=1, lt=MAX_COUNT)
    tokens: int = Field(ge=1, lt=MAX_COUNT)
    positions: int = Field(ge=1, lt=MAX_COUNT)


class Imported(Entry):
    """What another program's targets were, where the cache holds those, and so what it cannot say."""

    format: Literal["distillkit", "axolotl"]
    source_sha256: str
    """Of the source's files, one after another."""
    settings: dict[str, Any]
    """How they were read."""
    tail: Literal["complement", "none"]
    """complement: one minus the support's mass. none: nothing is known outside the support, which is normalised."""
    left_out: int = Field(ge=0)
    """Tokens to be learned for which the source has no target; no completion has them."""


class Manifest(Entry):
    """What a cache was made from and how; immutable from its creation on."""

    format: Literal["footsteps-cache"]
    version: Literal[1, 2, 3]
    tokenizer: TokenizerIdentity
    chat_template_fingerprint: str
    corpus: CorpusIdentity
    held_out: CorpusIdentity | None
    targets: TargetOptions
    probe: ProbeOptions
    layout: Layout
    imported: Imported | None = None
    """Absent from a manifest of version 1 or 3."""

    @model_validator(mode="after")
    def _version_says_what_there_is(self) -> Self:
        if (self.version == IMPORTED_VERSION) != (self.imported is not None):
            raise ValueError("version 2, and only it, has `imported`")
        if (self.version == BLOCKS_VERSION) != (self.targets.blocks is not None):
            raise ValueError("version 3, and only it, has `targets.blocks`")
        if self.targets.blocks is not None:
            check_edges(self.targets.edges, self.tokenizer.size)
        return self

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_absent(handler(self), "imported")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all the above; files about a cache quote it."""
        return hashlib.sha256(_canonical(self.model_dump(mode="json"))).hexdigest()


class LedgerEntry(Entry):
    """What was committed under one file's name."""

    bytes: int = Field(ge=0, lt=MAX_COUNT)
    sha256: str
    chunk_crc32c: list[int] | None = None
    """crc32c of each chunk of a shard; None where the file is not one."""


Ledger = dict[str, LedgerEntry]


class CheckpointIdentity(Entry):
    """Which weights, and how they were run; fixed when the first shard is begun."""

    name: str
    weights_fingerprint: str
    dtype: str
    attn_implementation: str

    @field_validator("name")
    @classmethod
    def _safe(cls, name: str) -> str:
        check_name(name)  # it becomes a folder's
        return name


class CorpusGroup(Entry):
    """Attributes of corpus/zarr.json."""

    files: Ledger


class ProbeGroup(Entry):
    """Attributes of probe/zarr.json."""

    anchor: CheckpointIdentity
    positions: int = Field(ge=0, lt=MAX_COUNT)
    files: Ledger


class CheckpointOrder(Entry):
    """Attributes of checkpoints/zarr.json: every checkpoint that was ever begun, oldest first."""

    order: list[str]

    @field_validator("order")
    @classmethod
    def _each_once(cls, order: list[str]) -> list[str]:
        if len(set(order)) < len(order):
            raise ValueError("a name stands twice")
        for name in order:
            check_name(name)
        return order


class ProbePass(Entry):
    """What a checkpoint's second pass gives: its held-out loss, and the ledger of its probe arrays."""

    held_out_loss: Loss | None
    files: Ledger


class BatchNote(Entry):
    """How the batches of a checkpoint that is being built are cut, which moves the last digit of what it says."""

    batch_tokens: int = Field(ge=1, lt=MAX_COUNT)


class CheckpointGroup(Entry):
    """Attributes of checkpoints/<name>/zarr.json."""

    identity: CheckpointIdentity
    held_out_loss: Loss | None
    """Mean negative log-likelihood per position on the held-out corpus, in nats."""
    files: Ledger


Group = TypeVar("Group", bound=Entry)


def entry_of(data: bytes, chunk_crc32c: list[int] | None = None) -> LedgerEntry:
    """Return what the ledger says of a file; of a shard, the crc32c of each of its chunks too."""
    return LedgerEntry(bytes=len(data), sha256=sha256(data), chunk_crc32c=chunk_crc32c)


def checkpoint_key(name: str) -> str:
    """Folder of a checkpoint's group."""
    return f"{CHECKPOINTS}/{name}"


def check_name(name: str) -> None:
    """Refuse a checkpoint's name that cannot be a folder's everywhere.

    Raises:
        CacheMismatchError: it has other characters than letters, digits, `.`, `_` and `-`, or begins with `.` or `-`.
    """
    if not _NAME.fullmatch(name):
        raise CacheMismatchError(f"checkpoint name {name!r}: use letters, digits, `_`, `-` and `.`, not first")


def seal(body: Entry) -> bytes:
    """Return the zarr.json of a group whose attributes are `body`, with their digest."""
    attributes: dict[str, Any] = {ATTRIBUTE: body.model_dump(mode="json", exclude_none=False)}
    attributes[SEAL] = hashlib.sha256(_canonical(attributes[ATTRIBUTE])).hexdigest()
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return (indented(document, ensure_ascii=False) + "\n").encode()


def unseal(schema: type[Group], data: bytes, where: str) -> Group:
    """Read a group's zarr.json.

    Raises:
        CacheMismatchError: it is of another format, or of a version newer than this program.
        CacheDamagedError: anything in it is not as written.
    """
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
        body, digest = document["attributes"][ATTRIBUTE], document["attributes"][SEAL]
        intact = digest == hashlib.sha256(_canonical(body)).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else repr(error)
        raise CacheDamagedError(f"{where} is damaged: not the description of a group ({reason})") from None
    if schema is Manifest:
        _check_version(body, where)
    if not intact:
        raise CacheDamagedError(f"{where} is damaged: its content does not fit its own digest")
    try:
        group = schema.model_validate(body)
        written = seal(group)
    except (ValidationError, RecursionError, UnicodeError) as error:
        raise CacheDamagedError(f"{where} is damaged: {_first_problem(error)}") from None
    if written != data:
        raise CacheDamagedError(f"{where} is damaged: it is not in the form in which this format writes it")
    return group


def group_key(group: str) -> str:
    """Return where a group's attributes are; "" is the cache itself."""
    return f"{group}/{ROOT}".lstrip("/")


def read_group(store: Reads, schema: type[Group], group: str) -> Group:
    """Read a group's attributes from a store.

    Raises:
        CacheMismatchError, CacheDamagedError: as `unseal`; and where the file is missing.
    """
    key = group_key(group)
    return unseal(schema, store.read(key), store.where(key))


def read_order(store: Reads) -> list[str]:
    """Return the names of all checkpoints that were ever begun, oldest first."""
    return read_group(store, CheckpointOrder, CHECKPOINTS).order if store.exists(group_key(CHECKPOINTS)) else []


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _first_problem(error: Exception) -> str:
    """Say what does not fit a group's schema, and where."""
    if not isinstance(error, ValidationError):
        return "nested too deep" if isinstance(error, RecursionError) else "it has text that is not Unicode"
    details = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, details['loc']))}: {details['msg']}"[:300]


def _check_version(body: Any, where: str) -> None:
    if not isinstance(body, dict) or body.get("format") != FORMAT_NAME:
        raise CacheDamagedError(f"{where} is damaged: not the manifest of a cache")
    version = body.get("version")
    if isinstance(version, int) and version > BLOCKS_VERSION:
        raise CacheMismatchError(
            f"{where} is of format version {version}, this program reads versions up to "
            f"{BLOCKS_VERSION}; update footsteps"
        )


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()

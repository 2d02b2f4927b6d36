"""Caches made to deceive: something in them is wrong, and every digest, checksum and ledger agrees with it.

Crafted(folder)          a copy of an honest cache
  .array(…), .records()  change an array's values, description or compressed bytes, and its ledger with them
  .json(…)               change a group's attributes as a plain dictionary, and seal it again
"""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from cache_builder.cache.info import describe
from cache_builder.cache.reader import Cache
from cache_builder.format.manifest import ATTRIBUTE, SEAL
from cache_builder.format.zarr_shards import (
    ABSENT,
    ArrayReader,
    ArraySpec,
    array_metadata,
    crc32c,
    encode_shard,
    parse_array_metadata,
)
from cache_builder.sequences import fingerprint_of
from cache_builder.storage.local import LocalStore
from tools.synthetic_cache import Synthetic, write_synthetic_cache


class Honest(Synthetic):
    """A made-up cache whose corpus has the fingerprint that its sequences have."""

    def corpus(self) -> Any:
        corpus = super().corpus()
        offsets, ids = corpus.token_offsets, corpus.sample_ids
        corpus.fingerprint = fingerprint_of(
            (
                ids.text[ids.offsets[row] : ids.offsets[row + 1]].tobytes(),
                corpus.tokens[offsets[row] : offsets[row + 1]],
                corpus.completion[offsets[row] : offsets[row + 1]],
            )
            for row in range(self.sequences)
        )
        return corpus


def write_honest(folder: Path, tail_blocks: int = 0) -> None:
    """Write a small cache of two checkpoints, with several shards and chunks."""
    honest = Honest(
        12,
        vocabulary=300,
        top_k=4,
        tail_samples=2,
        checkpoints=("step-1", "step-2"),
        shard_positions=64,
        chunk_positions=16,
        mean_positions=10,
        probe_sequences=3,
        tail_blocks=tail_blocks,
    )
    write_synthetic_cache(LocalStore(folder), honest)


class Crafted:
    """A cache to be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def json(self, group: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a group's attributes in place, or give others; its seal is made anew, whatever they are."""
        path = self.folder / group / "zarr.json"
        document = json.loads(path.read_bytes())
        attributes = document["attributes"]
        changed = change(attributes[ATTRIBUTE])
        attributes[ATTRIBUTE] = attributes[ATTRIBUTE] if changed is None else changed
        canonical = json.dumps(attributes[ATTRIBUTE], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        attributes[SEAL] = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
        text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))

    def file(self, group: str, file: str, data: bytes | None, crcs: list[int] | None = None) -> None:
        """Write a file of a group, or none, and enter it in the group's ledger."""
        path = self.folder / group / file
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "chunk_crc32c": crcs}

        def change(body: dict[str, Any]) -> None:
            if data is None:
                del body["files"][file]
                path.unlink()
            else:
                body["files"][file] = entry

        self.json(group, change)

    def spec(self, group: str, name: str) -> ArraySpec:
        return parse_array_metadata((self.folder / group / name / "zarr.json").read_bytes(), "")[0]

    def values(self, group: str, name: str) -> np.ndarray:
        """Return a whole array, changeable."""
        files = json.loads((self.folder / group / "zarr.json").read_bytes())["attributes"][ATTRIBUTE]["files"]
        spec = self.spec(group, name)
        crcs = [files[f"{name}/{spec.shard_key(shard)}"]["chunk_crc32c"] for shard in range(spec.n_shards)]
        return ArrayReader(LocalStore(self.folder), f"{group}/{name}", spec, crcs.__getitem__).all().copy()

    def array(self, group: str, name: str, values: np.ndarray, spec: ArraySpec | None = None) -> None:
        """Put other values there; `spec` describes them, or whatever it claims."""
        old = self.spec(group, name)
        for shard in range(old.n_shards):
            self.file(group, f"{name}/{old.shard_key(shard)}", None)
        real = ArraySpec(values.shape, str(values.dtype), old.shard, old.chunk, old.level)
        for shard in range(real.n_shards):
            start, end = real.span(shard)
            encoded = encode_shard(real, values[..., start:end])
            self.file(group, f"{name}/{real.shard_key(shard)}", encoded.data, encoded.chunk_crcs)
        self.describe(group, name, array_metadata(spec or real, self._attributes(group, name)))

    def describe(self, group: str, name: str, metadata: bytes) -> None:
        """Put another zarr.json there."""
        self.file(group, f"{name}/zarr.json", metadata)

    def chunks(self, group: str, name: str, payloads: list[bytes], index: list[tuple[int, int]] | None = None) -> None:
        """Put a first shard there of these compressed chunks, with an index that may say anything."""
        spec = self.spec(group, name)
        table = np.full((spec.shard // spec.chunk, 2), ABSENT, "<u8")
        data, crcs = b"", []
        for number, payload in enumerate(payloads):
            crcs.append(crc32c(payload))
            table[number] = len(data), len(payload) + 4
            data += payload + crcs[-1].to_bytes(4, "little")
        for number, (offset, size) in enumerate(index or []):
            table[number] = offset, size
        data += table.tobytes() + crc32c(table.tobytes()).to_bytes(4, "little")
        self.file(group, f"{name}/{spec.shard_key(0)}", data, crcs)

    def first_payloads(self, group: str, name: str) -> list[bytes]:
        """Return the compressed chunks of an array's first shard."""
        spec, values = self.spec(group, name), self.values(group, name)
        start, end = spec.span(0)
        payloads = []
        for at in range(start, end, spec.chunk):
            block = np.full((*spec.shape[:-1], spec.chunk), spec.fill, spec.numpy_dtype)
            part = values[..., at : at + spec.chunk]
            block[..., : part.shape[-1]] = part
            payloads.append(bytes(Zstd(level=spec.level).encode(block)))
        return payloads

    def _attributes(self, group: str, name: str) -> dict[str, Any]:
        return json.loads((self.folder / group / name / "zarr.json").read_bytes())["attributes"]


def bomb(n_bytes: int, *, says_so: bool) -> bytes:
    """Return a zstd frame of zeros that takes four bytes per 128 KiB; its header tells its size, or does not."""
    head = struct.pack("<I", 0xFD2FB528)
    head += bytes([0xC0 | 0x20]) + struct.pack("<Q", n_bytes) if says_so else bytes([0x00, 0x50])
    blocks = -(-n_bytes // 131072)
    sizes = [131072] * (blocks - 1) + [n_bytes - 131072 * (blocks - 1)]
    return head + b"".join(
        (size << 3 | 2 | (number == blocks - 1)).to_bytes(3, "little") + b"\0" for number, size in enumerate(sizes)
    )


def everything(cache: Cache) -> list[Any]:
    """Return all that the public interface gives."""
    rows = range(len(cache.corpus))
    said: list[Any] = [cache.corpus.sequences(rows), list(cache.corpus.sample_ids), cache.probe_rows, cache.probe_ids]
    for name in cache.checkpoints:
        said += [vars(cache.read(name, rows)), cache.losses(name), cache.probe_logp(name), cache.probe_log_tail(name)]
        said += [cache.held_out(name), [len(targets) for targets in cache.shard_targets(name)]]
    return [said, describe(cache)["checkpoints"], cache.begun]


Craft = Callable[[Crafted], Any]


def in_group(group: str, change: Callable[[dict[str, Any]], Any]) -> Craft:
    return lambda crafted: crafted.json(group, change)


def setting(group: str, path: str, value: Any) -> Craft:
    """Return what sets one value of a group."""

    def change(body: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            body = body[key]
        body[last] = value

    return in_group(group, change)

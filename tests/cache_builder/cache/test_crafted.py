"""Caches made to deceive, whose digests agree, are refused by name: no traceback, no hang, no memory for a claim."""

import json
import os
import shutil
import signal
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_builder.cache.info import describe
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.cache.verify import check_corpus, verify_cache
from cache_builder.errors import CacheMismatchError, UserError
from cache_builder.format.zarr_shards import ArraySpec, array_metadata
from cache_builder.sharing.copy_plan import plan_copy
from cache_builder.storage.local import LocalStore
from tests.support.crafted import Crafted, bomb, write_honest

Craft = Callable[[Crafted], Any]
CHECKPOINT = "checkpoints/step-2"
ARRAYS = {
    "corpus": ["tokens", "completion", "token_offsets", "position_offsets", "sample_ids", "sample_id_offsets"],
    "probe": ["rows", "ids"],
    CHECKPOINT: ["records", "loss", "probe_logp", "probe_log_tail"],
}
EVERY_ARRAY = [(group, name) for group, names in ARRAYS.items() for name in names]
MAX_BYTES = 48 << 20
"""An honest cache of this size needs 11 MiB, most of it imports' and decoded chunks'."""
HUGE = 10**12


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "cache"
    write_honest(folder)
    return folder


@pytest.fixture
def crafted(honest: Path, tmp_path: Path) -> Crafted:
    return Crafted(Path(shutil.copytree(honest, tmp_path / "cache")))


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End a test that waits: for a pipe, say."""
    signal.alarm(30)
    yield
    signal.alarm(0)


def everything(cache: Cache) -> list[Any]:
    """Return all that the public interface gives."""
    rows = range(len(cache.corpus))
    said: list[Any] = [cache.corpus.sequences(rows), list(cache.corpus.sample_ids), cache.probe_rows, cache.probe_ids]
    for name in cache.checkpoints:
        said += [vars(cache.read(name, rows)), cache.losses(name), cache.probe_logp(name), cache.probe_log_tail(name)]
        said += [cache.held_out(name), [len(targets) for targets in cache.shard_targets(name)]]
    return [said, describe(cache)["checkpoints"], cache.begun]


def refusals(folder: Path) -> list[str]:
    """Read, verify and plan to copy a cache; return each one's refusal. Anything but a user's error is raised."""
    found = []
    for use in (
        lambda: everything(open_cache(str(folder))),
        lambda: plan_copy(LocalStore(folder), ()),
        lambda: found.extend(verify_cache(LocalStore(folder)).damaged.values()),
    ):
        try:
            use()
        except UserError as error:
            found.append(str(error))
    return found


def refusals_in_little_memory(folder: Path) -> list[str]:
    """Return `refusals` that took no more memory than those of an honest cache may."""
    tracemalloc.start()
    try:
        found = refusals(folder)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    return found


def test_an_honest_cache_is_read_and_verified(crafted: Crafted) -> None:
    assert refusals_in_little_memory(crafted.folder) == []
    (crafted.folder / "notes.txt").write_text("of the owner")
    assert refusals(crafted.folder) == []


def test_crafting_alone_changes_nothing(crafted: Crafted, honest: Path) -> None:
    for group, name in EVERY_ARRAY:
        crafted.array(group, name, crafted.values(group, name))
        crafted.chunks(group, name, crafted.first_payloads(group, name))
    assert refusals(crafted.folder) == []
    assert str(everything(open_cache(str(crafted.folder)))) == str(everything(open_cache(str(honest))))


DESCRIPTIONS: dict[str, Callable[[ArraySpec], ArraySpec]] = {
    "one entry less": lambda spec: replace(spec, shape=(*spec.shape[:-1], spec.length - 1)),
    "one entry more": lambda spec: replace(spec, shape=(*spec.shape[:-1], spec.length + 1)),
    "no entries": lambda spec: replace(spec, shape=(*spec.shape[:-1], 0)),
    "10¹² entries": lambda spec: replace(spec, shape=(*spec.shape[:-1], HUGE)),
    "2⁷⁰ entries": lambda spec: replace(spec, shape=(*spec.shape[:-1], 2**70)),
    "negative": lambda spec: replace(spec, shape=(*spec.shape[:-1], -1)),
    "10¹² planes": lambda spec: replace(spec, shape=(HUGE, spec.length)),
    "three axes": lambda spec: replace(spec, shape=(1, 1, *spec.shape)),
    "another type": lambda spec: replace(spec, dtype="int64" if spec.dtype != "int64" else "float64"),
    "wide chunks": lambda spec: replace(spec, chunk=2**40, shard=2**40),
    "wide shards": lambda spec: replace(spec, shard=spec.shard * 2**30),
    "another level": lambda spec: replace(spec, level=9),
}
TAKES_MEMORY = ("10¹² entries", "10¹² planes", "wide chunks")


@pytest.mark.parametrize("change", DESCRIPTIONS, ids=str)
@pytest.mark.parametrize(("group", "name"), EVERY_ARRAY)
def test_an_array_is_what_the_manifest_makes_it(group: str, name: str, change: str, crafted: Crafted) -> None:
    spec = DESCRIPTIONS[change](crafted.spec(group, name))
    attributes = json.loads((crafted.folder / group / name / "zarr.json").read_bytes())["attributes"]
    crafted.describe(group, name, array_metadata(spec, attributes))
    check = refusals_in_little_memory if change in TAKES_MEMORY else refusals
    assert f"{group}/" in check(crafted.folder)[0]


VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "of another length": lambda values: values[..., :-1],
    "doubled": lambda values: np.concatenate([values, values], axis=-1),
    "all bits set": lambda values: np.full(values.shape, 255, np.uint8).repeat(values.itemsize, -1).view(values.dtype),
    "zeros": np.zeros_like,
    "backwards": lambda values: values[..., ::-1],
    "the first entry the largest": lambda values: _with(values, 0, np.iinfo),
    "the last entry the largest": lambda values: _with(values, -1, np.iinfo),
    "a NaN": lambda values: _with(values, 0, np.nan),
    "infinite": lambda values: _with(values, -1, np.inf),
    "minus infinity": lambda values: _with(values, -1, -np.inf),
    "as floats": lambda values: values.astype(np.float64 if values.dtype != np.float64 else np.float32),
}
PLAUSIBLE = {("ids", "zeros"), ("ids", "backwards"), ("ids", "minus infinity")}
"""Tokens of the vocabulary: on which ones checkpoints are compared was the anchor's choice, and nobody can check it."""


def _with(values: np.ndarray, at: int, value: Any) -> np.ndarray:
    """Return values with another at one place of the last axis; the largest of an integer type."""
    if value is np.iinfo and not np.issubdtype(values.dtype, np.integer):
        value = np.finfo(values.dtype).max
    elif not np.issubdtype(values.dtype, np.integer) or value is np.iinfo:
        value = np.iinfo(values.dtype).max if value is np.iinfo else value
    elif np.issubdtype(values.dtype, np.integer):
        value = np.iinfo(values.dtype).min if value == -np.inf else np.iinfo(values.dtype).max
    values[..., at] = value
    return values


@pytest.mark.parametrize("change", VALUES, ids=str)
@pytest.mark.parametrize(("group", "name"), EVERY_ARRAY)
def test_values_that_no_build_writes_are_refused(group: str, name: str, change: str, crafted: Crafted) -> None:
    values = crafted.values(group, name)
    changed = VALUES[change](values.copy())
    if changed.tobytes() == values.tobytes():
        pytest.skip("these are the honest values")
    crafted.array(group, name, np.ascontiguousarray(changed))
    assert refusals(crafted.folder) or (name, change) in PLAUSIBLE


@pytest.mark.parametrize("says_so", [True, False])
@pytest.mark.parametrize(("group", "name"), EVERY_ARRAY)
def test_a_chunk_takes_no_more_memory_than_its_array_gives_it(
    group: str, name: str, says_so: bool, crafted: Crafted
) -> None:
    payloads = crafted.first_payloads(group, name)
    payloads[0] = bomb(3 << 30, says_so=says_so)
    assert len(payloads[0]) < 100_000
    crafted.chunks(group, name, payloads)
    assert f"{name}/c" in refusals_in_little_memory(crafted.folder)[0]


@pytest.mark.parametrize("n_bytes", [0, 1, 1 << 40])
def test_a_frame_that_lies_about_its_size_is_damage(n_bytes: int, crafted: Crafted) -> None:
    payloads = crafted.first_payloads("corpus", "tokens")
    short = bytearray(bomb(16, says_so=True))
    short[5:13] = n_bytes.to_bytes(8, "little")
    for payload in (bytes(short), b"", b"\x28", payloads[0] + payloads[0], payloads[0][:-1], b"no zstd at all"):
        crafted.chunks("corpus", "tokens", [payload, *payloads[1:]])
        assert refusals(crafted.folder)


@pytest.mark.parametrize(
    "span", [(0, 2**63), (0, 2**64 - 2), (2**63, 20), (2**64 - 2, 20), (10**6, 20), (0, 0), (0, 3), (0, 4), (1, 20)]
)
def test_an_index_points_into_its_shard(span: tuple[int, int], crafted: Crafted) -> None:
    crafted.chunks(CHECKPOINT, "records", crafted.first_payloads(CHECKPOINT, "records"), [span])
    assert "records/c/0/0" in refusals(crafted.folder)[0]


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


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


NUMBERS = [0, -1, HUGE, 2**63, 2**70, 10**400, 1.0, True, None, "1", [], {}]
SIZES = [
    *["tokenizer.size", "corpus.sequences", "corpus.tokens", "corpus.positions", "targets.top_k"],
    *["targets.tail_samples", "targets.logp_steps_per_nat", "probe.top_k", "layout.shard_positions"],
    *["layout.chunk_positions", "version"],
]
HARMLESS = {
    # Less than the vocabulary's limit or the ledger's bound is all that these are: a larger one lies about no array.
    ("probe.top_k", HUGE),
    ("probe.sequences", HUGE),
}


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("path", SIZES)
def test_a_size_in_the_manifest_is_held_to_the_arrays(path: str, value: Any, crafted: Crafted) -> None:
    if path == "version":
        setting("", path, value)(crafted)
        assert refusals(crafted.folder)
        return
    setting("", path, value)(crafted)
    found = refusals(crafted.folder)
    assert found or (path, value) in HARMLESS


@pytest.fixture(scope="module")
def honest_with_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "cache"
    write_honest(folder, tail_blocks=12)
    return folder


@pytest.fixture
def with_blocks(honest_with_blocks: Path, tmp_path: Path) -> Crafted:
    return Crafted(Path(shutil.copytree(honest_with_blocks, tmp_path / "cache")))


def test_an_honest_cache_with_blocks_is_read_and_verified(with_blocks: Crafted) -> None:
    assert refusals_in_little_memory(with_blocks.folder) == []
    targets = open_cache(str(with_blocks.folder)).read("step-2", [3])
    np.testing.assert_allclose(np.exp(targets.log_blocks).sum(1), np.exp(targets.log_tail), rtol=1e-5)


BLOCKS: dict[str, Craft] = {
    "edges that fall": setting("", "targets.blocks.edges", [0, 200, 100, 300]),
    "edges beyond the vocabulary": setting("", "targets.blocks.edges", [0, 100, 301]),
    "edges short of the vocabulary": setting("", "targets.blocks.edges", [0, 100, 299]),
    "a block less": setting("", "targets.blocks.edges", [0, *range(200, 210), 300]),
    "as many edges as there are ids": setting("", "targets.blocks.edges", list(range(301))),
    "a million edges": setting("", "targets.blocks.edges", list(range(10**5))),
    "edges of text": setting("", "targets.blocks.edges", ["0", "300"]),
    "no edges": setting("", "targets.blocks.edges", []),
    "no steps": setting("", "targets.blocks.steps_per_nat", 0),
    "steps below zero": setting("", "targets.blocks.steps_per_nat", -4),
    "fractional steps": setting("", "targets.blocks.steps_per_nat", 4.5),
    "no blocks": setting("", "targets.blocks", None),
    "no blocks, and version 1": in_group("", lambda body: body.update(version=1, targets=_without_blocks(body))),
    "an older version": setting("", "version", 1),
    "a newer version": setting("", "version", 4),
    "every block empty": lambda crafted: _set_shares(crafted, slice(None), 255),
    "a narrow block that the support fills": lambda crafted: _with_edges_at_the_support(crafted),
}


def _without_blocks(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body["targets"].items() if key != "blocks"}


def _set_shares(crafted: Crafted, blocks: slice, code: int) -> None:
    planes = crafted.values(CHECKPOINT, "records")
    planes[5 * 4 + 3 * 2 : 5 * 4 + 3 * 2 + 12][blocks] = code
    crafted.array(CHECKPOINT, "records", planes)


def _with_edges_at_the_support(crafted: Crafted) -> None:
    """Cut a block of one token for the first position's first id, and give every block mass."""
    first = int(open_cache(str(crafted.folder)).read("step-2", [0]).ids[0, 0])
    inner = sorted({first or 1, first + 1, *range(40, 300, 20)} - {0, 300})[:11]
    setting("", "targets.blocks.edges", [0, *inner, 300])(crafted)
    _set_shares(crafted, slice(None), 8)


@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_what_a_cache_says_of_the_tail_s_blocks_is_held_to_the_vocabulary_and_the_support(
    case: str, with_blocks: Crafted
) -> None:
    BLOCKS[case](with_blocks)
    assert refusals_in_little_memory(with_blocks.folder)


LEDGERS: dict[str, Craft] = {
    "a path out of the folder": in_group("corpus", lambda body: body["files"].update(_moved(body, "../../x"))),
    "an absolute path": in_group("corpus", lambda body: body["files"].update(_moved(body, "/etc/passwd"))),
    "an empty path": in_group("corpus", lambda body: body["files"].update(_moved(body, ""))),
    "the group itself": in_group("corpus", lambda body: body["files"].update(_moved(body, "zarr.json"))),
    "a NUL": in_group("corpus", lambda body: body["files"].update(_moved(body, "a\0b"))),
    "no files": in_group("corpus", lambda body: body.update(files={})),
    "a shard less": in_group(CHECKPOINT, lambda body: body["files"].pop("records/c/0/0")),
    "an array less": in_group(CHECKPOINT, lambda body: _drop(body["files"], "loss/")),
    "a chunk less": in_group(CHECKPOINT, lambda body: body["files"]["records/c/0/0"]["chunk_crc32c"].pop()),
    "a chunk more": in_group(CHECKPOINT, lambda body: body["files"]["records/c/0/0"]["chunk_crc32c"].append(1)),
    "no chunks": in_group(CHECKPOINT, lambda body: body["files"]["records/c/0/0"].update(chunk_crc32c=None)),
    "a huge checksum": in_group(CHECKPOINT, lambda body: body["files"]["records/c/0/0"].update(chunk_crc32c=[2**70])),
    "negative bytes": in_group(CHECKPOINT, lambda body: body["files"]["records/c/0/0"].update(bytes=-1)),
    "files as a list": in_group(CHECKPOINT, lambda body: body.update(files=[])),
    "a NaN as held-out loss": setting(CHECKPOINT, "held_out_loss", float("nan")),
    "an infinite held-out loss": setting(CHECKPOINT, "held_out_loss", float("inf")),
    "a held-out loss below all others": setting(CHECKPOINT, "held_out_loss", -5.0),
    "a held-out loss of text": setting(CHECKPOINT, "held_out_loss", "1"),
    "another's name": setting(CHECKPOINT, "identity.name", "step-1"),
    "a name that is a path": setting(CHECKPOINT, "identity.name", "../step-1"),
    "text that is no Unicode": setting(CHECKPOINT, "identity.dtype", "\ud800"),
    "a name that is no Unicode": setting("checkpoints", "order", ["step-1", "\ud800"]),
    "an unknown field": setting(CHECKPOINT, "extra", 1),
    "deep": setting(CHECKPOINT, "identity", deep(100)),
    "deeper": setting(CHECKPOINT, "identity", deep(900)),
    "not an object": in_group(CHECKPOINT, lambda body: []),
    "null": in_group("corpus", lambda body: "null"),
    "order of none": setting("checkpoints", "order", None),
    "a name twice": setting("checkpoints", "order", ["step-1", "step-1", "step-2"]),
    "an unsafe name": setting("checkpoints", "order", ["step-1", "step-2", "../../etc"]),
    "a name with a slash": setting("checkpoints", "order", ["step-1", "step-2", "a/b"]),
    "an empty name": setting("checkpoints", "order", ["step-1", "step-2", ""]),
    "a hidden name": setting("checkpoints", "order", ["step-1", "step-2", ".locks"]),
    "a long name": setting("checkpoints", "order", ["step-1", "step-2", "x" * 128]),
    "200,000 names": setting("checkpoints", "order", ["step-1", "step-2", *(f"n{i}" for i in range(200_000))]),
    "an anchor that is a path": setting("probe", "anchor.name", "/"),
    "more probe positions": setting("probe", "positions", HUGE),
    "no probe positions": setting("probe", "positions", 0),
    "another corpus's fingerprint": setting("", "corpus.fingerprint", "0" * 64),
    "a smaller vocabulary": setting("", "tokenizer.size", 100),
    "another step": setting("", "targets.logp_steps_per_nat", 8),
    "more sequences for the probe": setting("", "probe.sequences", 1),
    "a chunk that does not divide its shard": setting("", "layout.shard_positions", 65),
    "infinite top_p": setting("", "targets.top_p", float("inf")),
    "settings of an import": setting("", "imported", {"settings": deep(500)}),
}


def _moved(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: next(iter(body["files"].values()))}


def _drop(files: dict[str, Any], prefix: str) -> None:
    for file in [file for file in files if file.startswith(prefix)]:
        del files[file]


@pytest.mark.parametrize("case", LEDGERS, ids=str)
def test_what_a_group_says_is_checked_before_it_is_used(case: str, crafted: Crafted) -> None:
    LEDGERS[case](crafted)
    assert refusals(crafted.folder)


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "nested 100,000 deep": lambda data: b"[" * 100_000,
    "objects nested 100,000 deep": lambda data: b'{"a":' * 100_000,
    "attributes nested deep": lambda data: data.replace(b'"attributes": {', b'"attributes": {"a":' + b"[" * 50_000, 1),
    "empty": lambda data: b"",
    "NUL": lambda data: b"\0" * 100,
    "a list": lambda data: b"[]",
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "a long number": lambda data: data.replace(b'"zarr_format": 3', b'"zarr_format": ' + b"9" * 10_000),
    "no UTF-8": lambda data: data.replace(b"group", b"gr\xffup").replace(b"array", b"arr\xffy"),
    "64 MiB of space": lambda data: data + b" " * (64 << 20),
    "a key twice": lambda data: data.replace(b'"zarr_format": 3', b'"zarr_format": 3, "zarr_format": 3'),
}


@pytest.mark.parametrize("text", TEXTS, ids=str)
@pytest.mark.parametrize("group", ["", "corpus", "probe", "checkpoints", CHECKPOINT])
def test_a_groups_json_is_bounded_and_of_one_form(group: str, text: str, crafted: Crafted) -> None:
    path = crafted.folder / group / "zarr.json"
    path.write_bytes(TEXTS[text](path.read_bytes()))
    check = refusals_in_little_memory if "MiB" in text else refusals
    assert "zarr.json" in check(crafted.folder)[0]


@pytest.mark.parametrize("text", TEXTS, ids=str)
@pytest.mark.parametrize(("group", "name"), [("corpus", "tokens"), ("probe", "ids"), (CHECKPOINT, "records")])
def test_so_is_that_of_an_array(group: str, name: str, text: str, crafted: Crafted) -> None:
    data = (crafted.folder / group / name / "zarr.json").read_bytes()
    crafted.describe(group, name, TEXTS[text](data))
    check = refusals_in_little_memory if "MiB" in text else refusals
    assert f"{name}/zarr.json" in check(crafted.folder)[0]


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


IRREGULAR: dict[str, Callable[[Path], Any]] = {
    "a pipe": _pipe,
    "a socket": _socket,
    "a folder": lambda path: path.mkdir(),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link out of the folder": lambda path: path.symlink_to("/etc/hostname"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to the folder above": lambda path: path.symlink_to(".."),
}


@pytest.mark.parametrize("kind", IRREGULAR, ids=str)
@pytest.mark.parametrize(
    "key", ["zarr.json", "corpus/zarr.json", "corpus/tokens/zarr.json", "corpus/tokens/c/0", "checkpoints/step-3"]
)
def test_only_regular_files_of_the_folder_are_read(key: str, kind: str, crafted: Crafted) -> None:
    path = crafted.folder / key
    path.unlink(missing_ok=True)
    IRREGULAR[kind](path)
    if key == "checkpoints/step-3" and kind == "a folder":
        assert refusals(crafted.folder) == []
    else:
        assert refusals(crafted.folder)


def test_a_link_within_the_folder_is_read(crafted: Crafted) -> None:
    path = crafted.folder / "corpus" / "tokens" / "c" / "0"
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    assert refusals(crafted.folder) == []


def test_tokens_other_than_those_of_the_corpus_that_is_claimed_are_noticed(crafted: Crafted) -> None:
    tokens = crafted.values("corpus", "tokens")
    tokens[3] = (tokens[3] + 1) % 300
    crafted.array("corpus", "tokens", tokens)
    cache = open_cache(str(crafted.folder))
    with pytest.raises(CacheMismatchError, match="not the cache of the corpus that it names"):
        check_corpus(cache)
    assert "not the cache of the corpus" in verify_cache(LocalStore(crafted.folder)).damaged["corpus/zarr.json"]


def test_losses_other_than_those_of_the_records_are_noticed(crafted: Crafted) -> None:
    losses = crafted.values(CHECKPOINT, "loss")
    losses[0] += 0.5
    crafted.array(CHECKPOINT, "loss", losses)
    assert "not the sums of its records" in verify_cache(LocalStore(crafted.folder)).damaged[f"{CHECKPOINT}/zarr.json"]

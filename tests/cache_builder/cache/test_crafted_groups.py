"""Groups made to deceive, whose seals agree: sizes, names and JSON are checked before they are used."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.crafted import Craft, Crafted, in_group, setting
from tests.support.refusals import CHECKPOINT, HUGE, refusals, refusals_in_little_memory


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

"""Caches brought to folders, to a real S3 server and back: killed, damaged, in conflict; the card; no secrets."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.cli.cache import cache as cache_command
from cache_builder.errors import (
    CacheBusyError,
    CacheDamagedError,
    CacheIncompleteError,
    CacheMismatchError,
    ConfigError,
    MissingError,
)
from cache_builder.format.manifest import (
    ARRIVING,
    ROOT,
    CheckpointGroup,
    CheckpointOrder,
    LedgerEntry,
    seal,
    unseal,
)
from cache_builder.sharing.card import is_ours, write_card
from cache_builder.sharing.copy_plan import plan_copy
from cache_builder.sharing.transfer import copy_cache
from cache_builder.storage import retries
from cache_builder.storage.base import Store
from cache_builder.storage.local import LocalStore
from cache_builder.storage.object_store import RemoteStore
from cache_builder.storage.open import open_store
from tests.support import paths
from tests.support.builders import die_at_fsync
from tests.support.caches import files_of, make_teaching
from tests.support.foreign_rows import EXACT
from tests.support.foreign_teacher import SEQUENCES, Teacher
from tools.synthetic_cache import Synthetic, write_synthetic_cache

SMALL = Synthetic(
    sequences=40,
    vocabulary=500,
    top_k=4,
    tail_samples=2,
    checkpoints=("a", "b", "c"),
    shard_positions=32,
    chunk_positions=8,
    mean_positions=5,
    probe_sequences=3,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three checkpoints in some 50 files."""
    return write(tmp_path_factory.mktemp("source") / "cache")


def write(folder: Path, **options: object) -> Path:
    write_synthetic_cache(LocalStore(folder), Synthetic(**{**vars(SMALL), **options}))  # type: ignore[arg-type]
    return folder


def call(*arguments: object) -> str:
    """Run a command of `footsteps cache` and return what it prints; what it raises is raised here."""
    result = CliRunner().invoke(cache_command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def counts(said: str) -> tuple[int, int]:
    """Return how many files were sent, and how many were there."""
    words = said.partition(";")[2].split()
    return int(words[0]), int(words[5])


def files_at(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.sizes("") if key != "README.md"}


def data_files(folder: Path) -> int:
    """Files that a ledger names: all but the groups' own."""
    return len(plan_copy(LocalStore(folder), ()).files)


@pytest.mark.parametrize("scheme", ["folder", pytest.param("s3", marks=pytest.mark.s3), "memory"])
def test_a_cache_pushed_and_pulled_again_has_the_same_bytes(
    scheme: str, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    places = {"folder": str(tmp_path / "place"), "memory": "memory://share/place"}
    place = places[scheme] if scheme != "s3" else f"{request.getfixturevalue('bucket')}/place"
    n = data_files(source)
    assert counts(call("push", source, place)) == (n, 0)
    assert files_at(open_store(place)) == files_of(source)
    assert verify_cache(open_store(place)).foreign == []
    assert counts(call("push", source, place)) == (0, n)
    assert counts(call("pull", place, tmp_path / "back", "--jobs", "1")) == (n, 0)
    assert files_of(tmp_path / "back") == files_of(source)
    assert "all as committed" in call("verify", tmp_path / "back")


@pytest.mark.s3
def test_a_copy_into_the_cache_itself_is_refused_and_leaves_it_as_it_is(source: Path) -> None:
    before = sorted(source.rglob("*"))
    for place in (source / "inside", source / "checkpoints" / ".." / "copy"):
        with pytest.raises(ConfigError, match="lies inside the cache"):
            call("push", source, place)
    assert sorted(source.rglob("*")) == before


def test_a_push_to_s3_whose_process_is_killed_goes_on_where_it_was(source: Path, bucket: str, tmp_path: Path) -> None:
    place, store, n = f"{bucket}/killed", RemoteStore(f"{bucket}/killed"), data_files(source)
    program = "import sys; from cache_builder.cli.cache import cache; cache(sys.argv[1:])"
    command = [sys.executable, "-c", program, "push", str(source), place, "--jobs", "1"]
    pushing = subprocess.Popen(command, cwd=paths.ROOT)
    while len(store.sizes("")) < 12:
        assert pushing.poll() is None
        time.sleep(0.02)
    pushing.send_signal(signal.SIGKILL)
    assert pushing.wait() == -signal.SIGKILL
    arrived = set(store.sizes("")) - {ARRIVING}
    assert ROOT not in arrived and len(arrived) < n
    with pytest.raises(CacheIncompleteError, match="holds part of a copy"):
        open_cache(place)
    assert counts(call("push", source, place)) == (n - len(arrived), len(arrived))
    assert files_at(store) == files_of(source)


def test_a_pull_killed_at_random_instants_and_half_way_through_files_ends_with_the_same_bytes(
    source: Path, tmp_path: Path
) -> None:
    place, killed = tmp_path / "place", 0
    rng = random.Random(5)
    while (status := _fork_pull(source, place, rng.randrange(1, 60))) != 0:
        assert os.WIFSIGNALED(status)
        killed += 1
        with pytest.raises((MissingError, CacheIncompleteError)):
            open_cache(str(place))
    assert killed >= 5
    assert open_cache(str(place)).checkpoints == ("a", "b", "c")
    assert counts(call("pull", source, place))[0] == 0
    assert {k: v for k, v in files_of(place).items() if not k.endswith(".part")} == files_of(source)


def _fork_pull(source: Path, place: Path, die_at: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            die_at_fsync(die_at)
            copy_cache(
                plan_copy(LocalStore(source), ()), LocalStore(place), jobs=1, card=False, done=lambda count: None
            )
        finally:
            os._exit(0 if (place / ROOT).exists() else 1)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_damaged_source_is_refused_by_the_files_name_and_nothing_can_be_opened(
    direction: str, source: Path, tmp_path: Path
) -> None:
    damaged, place = Path(shutil.copytree(source, tmp_path / "damaged")), tmp_path / "place"
    key = "checkpoints/b/records/c/0/1"
    data = bytearray((damaged / key).read_bytes())
    data[7] ^= 1
    (damaged / key).write_bytes(data)
    with pytest.raises(CacheDamagedError, match=f"{key} is damaged: its bytes are not"):
        call(direction, damaged, place)
    with pytest.raises(CacheIncompleteError, match="holds part of a copy"):
        open_cache(str(place))
    (damaged / key).write_bytes(data[:-1])
    with pytest.raises(CacheDamagedError, match=f"{key} is damaged: .* were committed"):
        call(direction, damaged, place)
    shutil.copy(source / key, damaged / key)
    sent, present = counts(call(direction, damaged, place))
    assert 0 < sent < data_files(source) and sent + present == data_files(source)
    assert "all as committed" in call("verify", place)


def test_what_was_damaged_on_arrival_is_brought_again(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    call("pull", source, place)
    for key, data in (("corpus/tokens/c/0", b"x"), ("probe/zarr.json", b"{}")):
        (place / key).write_bytes(data)
    data = bytearray((place / "checkpoints/a/records/c/0/0").read_bytes())
    data[3] ^= 4
    (place / "checkpoints/a/records/c/0/0").write_bytes(data)
    (place / "checkpoints/c/loss/c/0").unlink()
    assert counts(call("pull", source, place))[0] == 3
    assert files_of(place) == files_of(source)


def test_a_place_that_holds_anything_else_is_refused(source: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", vocabulary=700)
    call("push", other, tmp_path / "taken")
    with pytest.raises(
        CacheMismatchError, match=r"(?s)taken holds another cache; .*\n  tokenizer.size: it has 700, now 500"
    ):
        call("push", source, tmp_path / "taken")
    LocalStore(tmp_path / "begun").commit(ARRIVING, (other / ROOT).read_bytes())
    with pytest.raises(CacheMismatchError, match="begun holds an unfinished copy of another cache"):
        call("pull", source, tmp_path / "begun")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(CacheMismatchError, match=r"full is not a cache and not empty \(it holds 'notes.txt'\)"):
        call("pull", source, tmp_path / "full")
    assert files_of(tmp_path / "full") == {"notes.txt": b"mine"}
    with LocalStore(tmp_path / "busy").lock_part((0, 1)), pytest.raises(CacheBusyError, match=f"process {os.getpid()}"):
        call("pull", source, tmp_path / "busy")


def test_a_checkpoint_of_other_weights_or_built_apart_is_refused(source: Path, tmp_path: Path) -> None:
    def exchanged(place: Path, **change: object) -> None:
        call("pull", source, place)
        key = place / "checkpoints/b/zarr.json"
        body = unseal(CheckpointGroup, key.read_bytes(), "")
        key.write_bytes(seal(body.model_copy(update=change)))

    identity = unseal(CheckpointGroup, (source / "checkpoints/b/zarr.json").read_bytes(), "").identity
    exchanged(tmp_path / "weights", identity=identity.model_copy(update={"weights_fingerprint": "others"}))
    with pytest.raises(CacheMismatchError, match=r"another checkpoint 'b'; .*\n  weights_fingerprint: it has 'others'"):
        call("pull", source, tmp_path / "weights")
    exchanged(tmp_path / "apart", held_out_loss=3.5)
    with pytest.raises(CacheMismatchError, match="built apart from this one"):
        call("pull", source, tmp_path / "apart")
    assert counts(call("pull", source, tmp_path / "apart", "--checkpoint", "a"))[0] == 0


def test_checkpoints_are_brought_by_name_and_added_on_another_day(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    call("pull", source, place, "--checkpoint", "c")
    assert open_cache(str(place)).checkpoints == ("c",)
    assert "all as committed" in call("verify", place)
    seen: list[tuple[str, ...]] = []
    plan = plan_copy(LocalStore(source), ("a", "b"))
    LocalStore(place).commit("checkpoints/b/ledger/0.json", b"of a build that was begun here")
    copy_cache(
        plan, LocalStore(place), jobs=1, card=False, done=lambda _: seen.append(open_cache(str(place)).checkpoints)
    )
    assert set(seen) == {("c",)}
    assert open_cache(str(place)).checkpoints == ("a", "b", "c")
    assert files_of(place) == files_of(source)
    with pytest.raises(CacheIncompleteError, match="does not know checkpoint 'd'; complete are: a, b, c"):
        call("pull", source, tmp_path / "x", "--checkpoint", "d")


def test_an_unfinished_checkpoint_stays_behind_only_when_that_is_said(source: Path, tmp_path: Path) -> None:
    unfinished = Path(shutil.copytree(source, tmp_path / "unfinished"))
    (unfinished / "checkpoints/b/zarr.json").unlink()
    with pytest.raises(CacheIncompleteError, match=r"unfinished are b; .* --checkpoint a --checkpoint c"):
        call("push", unfinished, tmp_path / "place")
    assert not (tmp_path / "place").exists()
    call("push", unfinished, tmp_path / "place", "--checkpoint", "a", "--checkpoint", "c")
    assert open_cache(str(tmp_path / "place")).begun == ("a", "c")


def test_no_file_is_written_outside_the_place_whatever_a_ledger_says(source: Path, tmp_path: Path) -> None:
    evil = RemoteStore("memory://evil")  # object stores have keys like these; folders have not
    for key, data in files_of(source).items():
        evil.commit(key, data)
    group = "checkpoints/b/zarr.json"
    body = unseal(CheckpointGroup, evil.read(group), "")
    outside = {"../../../escaped": LedgerEntry(bytes=1, sha256=hashlib.sha256(b"x").hexdigest())}
    evil.commit("checkpoints/b/../../../escaped", b"x")
    evil.commit(group, seal(body.model_copy(update={"files": body.files | outside})))
    with pytest.raises(CacheDamagedError, match=r"it names the file '\.\./\.\./\.\./escaped'"):
        call("pull", evil.url, tmp_path / "deep" / "place")
    name = "../../b"
    for key, data in files_of(source / "checkpoints/b").items():
        evil.commit(f"checkpoints/{name}/{key}", data)
    identity = body.identity.model_copy(update={"name": name})
    evil.commit(f"checkpoints/{name}/zarr.json", seal(body.model_copy(update={"identity": identity})))
    evil.commit("checkpoints/zarr.json", seal(CheckpointOrder.model_construct(order=[name])))
    with pytest.raises(CacheDamagedError, match=r"checkpoint name '\.\./\.\./b'"):
        call("pull", evil.url, tmp_path / "deep" / "place")
    assert not (tmp_path / "deep").exists()


def test_the_card_says_what_it_is_and_an_edited_one_is_kept(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    call("push", source, place, "--checkpoint", "a")
    card = (place / "README.md").read_text()
    manifest = open_cache(str(source)).manifest
    assert card.startswith("---\n# license:") and "It contains the corpus itself" in card
    for fact in (manifest.fingerprint, f"{manifest.corpus.positions:,} positions", "| a |", "float32"):
        assert fact in card
    assert str(tmp_path) not in card and "| b |" not in card
    call("push", source, place)
    assert "| b |" in (place / "README.md").read_text()
    edited = (place / "README.md").read_text().replace("# license:", "license: mit #")
    (place / "README.md").write_text(edited)
    call("push", source, place)
    assert (place / "README.md").read_text() == edited
    assert is_ours(card.encode()) and not is_ours(edited.encode())


def test_an_imported_cache_without_a_probe_is_shared_and_its_card_says_what_it_is(
    tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., LlamaForCausalLM], tmp_path: Path
) -> None:
    teacher = Teacher(
        make_teaching(tmp_path / "teaching", tokenizer, make_model, sequences=SEQUENCES), make_model(seed=3)
    )
    teacher.import_distillkit(teacher.distillkit(tmp_path / "rows", EXACT), tmp_path / "cache")
    call("push", tmp_path / "cache", tmp_path / "place")
    call("pull", tmp_path / "place", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "cache")
    assert "imported from | distillkit; mass outside the support:" in (tmp_path / "place" / "README.md").read_text()


def test_nothing_in_a_card_comes_out_of_a_cache_as_markup(source: Path) -> None:
    cache = open_cache(str(source))
    hostile = "<script>alert(1)</script> | [x](http://x) `a`\n---\n# b"
    corpus = cache.manifest.corpus.model_copy(update={"fingerprint": hostile})
    identity = cache.checkpoint("a").identity.model_copy(update={"dtype": hostile, "weights_fingerprint": "<img>[x]|"})
    group = cache.checkpoint("a").model_copy(update={"identity": identity})
    card = write_card("hf://datasets/me/x_y", cache.manifest.model_copy(update={"corpus": corpus}), [group]).decode()
    assert "<script" not in card and "<img" not in card and "[x]" not in card and "\n# b" not in card
    assert "pull hf://datasets/me/x_y cache" in card
    assert "```\n# x" not in write_card("s3://b/`\n```\n# x", cache.manifest, [group]).decode()


def test_passwords_in_an_address_are_in_no_file_and_no_message(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", (0.0, 0.0))
    place = "ftp://me:pass-word@127.0.0.1:9/cache"
    with pytest.raises(Exception) as error:
        call("push", source, place)
    assert "pass-word" not in str(error.value)
    card = write_card(RemoteStore("s3://key:pass-word@bucket/x").where(""), open_cache(str(source)).manifest, [])
    assert b"pass-word" not in card


def test_pull_wants_a_folder(source: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder of this machine"):
        call("pull", source, "s3://somewhere/else")

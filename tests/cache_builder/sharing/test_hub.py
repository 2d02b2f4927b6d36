"""Caches in a dataset repository, through huggingface_hub itself; the server is a stand-in, not the Hub."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.cache.reader import open_cache
from cache_builder.errors import (
    CacheBusyError,
    CacheDamagedError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheUnreachableError,
    ConfigError,
    MissingError,
)
from cache_builder.format.manifest import (
    ARRIVING,
    ROOT,
)
from cache_builder.sharing.card import CARD
from cache_builder.sharing.copy_plan import plan_copy
from cache_builder.sharing.transfer import copy_cache
from cache_builder.storage import hub as hub_store
from cache_builder.storage.hub import HubStore
from cache_builder.storage.local import LocalStore
from cache_builder.storage.open import open_store
from tests.cache_builder.sharing.test_transfer import call, counts, data_files, write
from tests.support import paths
from tests.support.caches import files_of, make_teaching
from tests.support.hub_server import TOKEN, Hub

# huggingface_hub's own upload of a file, which httpx2 would rather have in another argument.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPOSITORY = "me/what_a_teacher-says"
PLACE = f"hf://datasets/{REPOSITORY}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "cache")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
        huggingface_hub.close_session()


def cache_files(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    tree = hub.repositories[REPOSITORY].tree(branch)
    return {path: data for path, data in tree.items() if path not in (CARD, ".gitattributes")}


def test_a_cache_on_the_hub_is_private_whole_in_one_commit_and_read_alike(
    hub: Hub, source: Path, tmp_path: Path
) -> None:
    n = data_files(source)
    assert counts(call("push", source, PLACE)) == (n, 0)
    repository = hub.repositories[REPOSITORY]
    assert repository.visibility == "private"
    assert [sum(ROOT in tree for tree in repository.trees.values()), len(repository.messages)] == [1, 2]
    assert cache_files(hub) == files_of(source)
    assert repository.tree("main")[CARD].startswith(b"---\n")
    assert counts(call("push", source, PLACE)) == (0, n) and len(repository.messages) == 2
    assert "all as committed" in call("verify", PLACE)
    call("pull", PLACE, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(source)
    there, here = open_cache(PLACE), open_cache(str(source))
    assert (there.read("b", [7, 3]).ids == here.read("b", [7, 3]).ids).all()
    assert (there.zarr("b")["records"][:] == here.zarr("b")["records"][:]).all()


def test_a_build_finds_a_complete_cache_there_and_adds_nothing(
    hub: Hub, tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., LlamaForCausalLM], tmp_path: Path
) -> None:
    teaching = make_teaching(tmp_path / "teaching", tokenizer, make_model, sequences=20)
    teaching.build(tmp_path / "cache", only="step-1")
    call("push", tmp_path / "cache", PLACE, "--checkpoint", "step-1")
    commits = len(hub.repositories[REPOSITORY].messages)
    assert teaching.build(PLACE, only="step-1")
    with pytest.raises(ConfigError, match="no cache is built in a Hub repository"):
        teaching.build(PLACE)
    assert len(hub.repositories[REPOSITORY].messages) == commits


def test_a_push_killed_between_uploads_sends_none_of_them_again(hub: Hub, source: Path) -> None:
    program = "import sys; from cache_builder.storage import hub; hub.BATCH_FILES = hub.COMMIT_FILES = 4\n"
    program += "from cache_builder.cli.cache import cache; cache(sys.argv[1:])"
    command = [sys.executable, "-c", program, "push", str(source), PLACE]
    pushing: list[subprocess.Popen[bytes]] = []
    hub.on_put = lambda count: pushing[0].send_signal(signal.SIGKILL) if count == 13 else None
    pushing.append(subprocess.Popen(command, cwd=paths.ROOT))
    assert pushing[0].wait() == -signal.SIGKILL
    assert ARRIVING in cache_files(hub) and ROOT not in cache_files(hub)
    with pytest.raises(CacheIncompleteError, match="holds part of a copy"):
        open_cache(PLACE)
    sent, present = counts(call("push", source, PLACE))
    assert present > 0 and sent + present == data_files(source)
    assert len(hub.puts) == len(set(hub.puts))
    assert cache_files(hub) == files_of(source)


def test_a_branch_a_folder_and_a_commit_may_be_named(hub: Hub, source: Path, tmp_path: Path) -> None:
    call("push", source, f"{PLACE}@v2/some/folder", "--checkpoint", "a")
    assert set(cache_files(hub)) == set()
    first = hub.repositories[REPOSITORY].branches["v2"]
    call("push", source, f"{PLACE}@v2/some/folder")
    call("pull", f"{PLACE}@{first}/some/folder", tmp_path / "first")
    assert open_cache(str(tmp_path / "first")).checkpoints == ("a",)
    assert open_cache(f"{PLACE}@v2/some/folder").checkpoints == ("a", "b", "c")


def test_an_open_cache_stays_at_the_commit_it_was_opened_at(hub: Hub, source: Path) -> None:
    call("push", source, PLACE, "--checkpoint", "a")
    cache = open_cache(PLACE)
    call("push", source, PLACE)
    tree = hub.repositories[REPOSITORY].tree("main")
    tree["checkpoints/a/records/c/0/0"] = b"\0" * len(tree["checkpoints/a/records/c/0/0"])
    assert cache.checkpoints == ("a",) and len(cache.read("a", [0]).ids)
    with pytest.raises(CacheDamagedError, match=f"{PLACE}/checkpoints/a/records/c/0/0 is damaged"):
        open_cache(PLACE).read("a", [0])


def test_a_place_with_another_cache_or_another_writer_is_refused(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("push", source, PLACE)
    with pytest.raises(CacheMismatchError, match=f"{PLACE} holds another cache"):
        call("push", write(tmp_path / "other", vocabulary=700), PLACE)
    monkeypatch.setattr(hub_store, "BATCH_FILES", 2)
    repository = f"{PLACE}-2"
    other = HubStore(repository)
    other.make_repository()

    def meanwhile(count: int) -> None:
        if count == 3:
            HubStore(repository).finish([("notes.md", b"of somebody else")], removed=[])

    hub.on_put = meanwhile
    hub.puts.clear()
    hub.blobs.clear()
    with pytest.raises(CacheBusyError, match="another one writes there"):
        copy_cache(plan_copy(LocalStore(source), ()), other, jobs=2, card=True, done=lambda count: None)


def test_what_the_hub_refuses_is_one_message_without_a_secret(
    hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match="there is no such dataset repository"):
        open_cache(f"{PLACE}-nowhere")
    with pytest.raises(ConfigError, match="is a model; expected hf://datasets"):
        open_store("hf://me/model")
    call("push", source, PLACE)
    with open_store(PLACE).lock_part((0, 1)), pytest.raises(ConfigError, match="then `footsteps cache push`"):
        open_store(PLACE).commit("checkpoints/d/records/c/0/0", b"")
    missing = next(iter(hub.blobs))
    for path, data in hub.repositories[REPOSITORY].tree("main").items():
        if data == hub.blobs[missing]:
            del hub.repositories[REPOSITORY].tree("main")[path]
            break
    with pytest.raises(CacheDamagedError, match="is damaged: the file is missing"):
        open_cache(PLACE)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(MissingError, match="hf auth login"):
        open_cache(PLACE)
    with pytest.raises(CacheUnreachableError, match="log in with `hf auth login`") as error:
        call("push", source, f"{PLACE}-new")
    assert "hf_another" not in str(error.value) and "sig=" not in str(error.value)


def test_the_token_is_in_no_file(hub: Hub, source: Path, tmp_path: Path) -> None:
    call("push", source, PLACE)
    call("pull", PLACE, tmp_path / "back")
    written = [*hub.repositories[REPOSITORY].tree("main").values(), *files_of(tmp_path).values()]
    assert not any(TOKEN.encode() in data for data in written)
    assert TOKEN not in repr(vars(HubStore(PLACE))) and os.environ["HF_TOKEN"] == TOKEN

"""Files that are none, links, and content that is not what the manifest claims."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import check_corpus, verify_cache
from cache_builder.errors import CacheMismatchError
from cache_builder.storage.local import LocalStore
from tests.support.crafted import Crafted
from tests.support.refusals import CHECKPOINT, refusals


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
    "a link to a file of the kernel": lambda path: path.symlink_to("/proc/self/environ"),
    "a link to one of a size": lambda path: path.symlink_to("/sys/kernel/mm/transparent_hugepage/enabled"),
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


@pytest.mark.parametrize("place", ["corpus/tokens/c", "blobs", "../blobs"])
def test_a_link_to_a_file_is_read_as_in_the_hubs_snapshots(place: str, crafted: Crafted) -> None:
    for number, path in enumerate(sorted(path for path in crafted.folder.rglob("*") if path.is_file())):
        blob = crafted.folder / place / f"blob-{number}"
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    assert refusals(crafted.folder) == []


def test_a_link_to_another_file_is_damage_like_any_other(crafted: Crafted, tmp_path: Path) -> None:
    path = crafted.folder / "corpus" / "tokens" / "c" / "0"
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(len(path.read_bytes())))
    path.unlink()
    path.symlink_to(secret)
    assert refusals(crafted.folder)


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

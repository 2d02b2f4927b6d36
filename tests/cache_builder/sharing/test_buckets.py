"""Caches in a bucket of the Hub, through huggingface_hub's own file system; the server is a stand-in.

What is sent to a bucket goes by the Xet protocol to the Hub's storage, of which there is none here: `sent` stands for
it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from cache_builder.cache.reader import open_cache
from cache_builder.errors import CacheBusyError, MissingError
from cache_builder.sharing.copy_plan import plan_copy
from cache_builder.sharing.transfer import copy_cache
from cache_builder.storage.open import open_store
from tests.cache_builder.sharing.test_transfer import write
from tests.support.caches import Teaching, files_of
from tests.support.hub_server import TOKEN, Hub

NAME = "me/caches"
PLACE = f"hf://buckets/{NAME}/cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)

        def sent(_: HfApi, bucket_id: str, *, add: Any = (), delete: Any = (), **__: Any) -> None:
            files = hub.buckets[bucket_id]
            files.update({path: Path(source).read_bytes() for source, path in add})
            for path in delete:
                del files[path]

        monkeypatch.setattr(HfApi, "batch_bucket_files", sent)
        hub.buckets[NAME] = {}
        yield hub


def in_bucket(hub: Hub) -> dict[str, bytes]:
    return {path.removeprefix("cache/"): data for path, data in hub.buckets[NAME].items()}


def test_a_cache_in_a_bucket_is_read_as_one_on_disk(hub: Hub, tmp_path: Path) -> None:
    folder = write(tmp_path / "cache")
    hub.buckets[NAME] = {f"cache/{key}": data for key, data in files_of(folder).items()}
    ours, theirs = open_cache(PLACE), open_cache(str(folder))
    assert ours.fingerprint == theirs.fingerprint and ours.checkpoints == theirs.checkpoints
    for name in ours.checkpoints:
        one, other = (cache.read(name, [3, 0]) for cache in (ours, theirs))
        assert (one.ids == other.ids).all() and (one.logp == other.logp).all()
        assert (ours.losses(name) == theirs.losses(name)).all()


def test_what_is_pushed_into_a_bucket_comes_back_byte_by_byte(hub: Hub, tmp_path: Path) -> None:
    folder = write(tmp_path / "cache")
    for source, place in ((str(folder), PLACE), (PLACE, str(tmp_path / "back"))):
        plan = plan_copy(open_store(source), ())
        copy_cache(plan, open_store(place), jobs=2, card=False, done=lambda count: None)
    assert files_of(tmp_path / "back") == files_of(folder)


def test_a_cache_built_in_a_bucket_has_the_bytes_of_one_built_here(hub: Hub, teaching: Teaching, built: Path) -> None:
    assert teaching.build(PLACE)
    assert in_bucket(hub) == files_of(built)


def test_a_second_builder_is_told_who_is_at_it(hub: Hub) -> None:
    store: Any = open_store(PLACE)
    with store.lock_part((0, 1)), pytest.raises(CacheBusyError), open_store(PLACE).lock_part((0, 1)):  # type: ignore[attr-defined]
        pytest.fail("both hold it")
    with open_store(PLACE).lock_part((0, 1)):  # type: ignore[attr-defined]
        assert any("/.locks/" in path for path in hub.buckets[NAME])


def test_a_bucket_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(MissingError, match="hf://buckets/me/none/cache"):
        open_cache("hf://buckets/me/none/cache")

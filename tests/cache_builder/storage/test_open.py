"""Which store a folder or an address opens; nothing is asked of any server."""

import pytest

from cache_builder.storage.hub import HubStore
from cache_builder.storage.local import LocalStore
from cache_builder.storage.object_store import RemoteStore
from cache_builder.storage.open import open_store


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("runs/demo/cache", LocalStore),
        ("file:///data/cache", LocalStore),
        ("hf://datasets/owner/name@v1", HubStore),
        ("hf://buckets/owner/name/cache", RemoteStore),
        ("memory://bucket/cache", RemoteStore),
    ],
)
def test_each_kind_of_address_opens_its_store(url: str, kind: type) -> None:
    store = open_store(url)
    assert type(store) is kind
    assert url.removeprefix("file://") in store.where("")

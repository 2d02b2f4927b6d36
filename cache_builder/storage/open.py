"""Open the store that a folder or URL names; what a kind of store needs is imported only when one is opened.

runs/demo/cache, file://…                local.py
hf://datasets/owner/name[@revision]      hub.py, huggingface_hub
s3://, gs://, hf://buckets/, …           object_store.py, fsspec
"""

from pathlib import Path

from cache_builder.storage.base import Store
from cache_builder.storage.local import LocalStore


def open_store(url: str) -> Store:
    """Return the store that a folder or fsspec URL names; nothing is created or checked."""
    protocol, separator, path = url.partition("://")
    if not separator:
        return LocalStore(Path(url))
    if protocol in ("file", "local"):
        return LocalStore(Path(path))
    if protocol == "hf" and not path.startswith("buckets/"):
        from cache_builder.storage.hub import HubStore

        return HubStore(url)
    from cache_builder.storage.object_store import RemoteStore

    return RemoteStore(url)

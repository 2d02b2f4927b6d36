"""A group of a cache opened in plain zarr-python, for whoever wants arrays without this package's reader.

    LocalStore                  zarr.storage.LocalStore
    RemoteStore, HubStore       zarr.storage.FsspecStore, at the same URL

Plain zarr checks each chunk's own crc32c and nothing else: a missing file reads as its fill value, every bit set.
"""

import os
from typing import TYPE_CHECKING, Any

from cache_builder.errors import ConfigError
from cache_builder.storage.base import Reads
from cache_builder.storage.local import LocalStore
from cache_builder.storage.retries import reason_of

if TYPE_CHECKING:
    import zarr


def open_plain(store: Reads, group: str) -> "zarr.Group":
    """Open a group, read-only.

    Raises:
        ConfigError: zarr, or what it needs for this URL, is not installed or cannot open it.
    """
    try:
        import zarr

        return zarr.open_group(_zarr_store(store, group), mode="r", use_consolidated=False)
    except (ImportError, ValueError, OSError) as error:
        raise ConfigError(
            f"{store.where(group)} cannot be opened in zarr ({reason_of(error)}); `cache.read` reads it, and "
            "`footsteps cache pull` copies it to a folder that zarr opens"
        ) from error


def _zarr_store(store: Reads, group: str) -> Any:
    from zarr.storage import FsspecStore
    from zarr.storage import LocalStore as ZarrFolder

    if isinstance(store, LocalStore):
        return ZarrFolder(store.folder / group, read_only=True)
    url: str = getattr(store, "url")  # noqa: B009
    endpoint = os.environ.get("HF_ENDPOINT")  # as `hub.py` asks for it; huggingface_hub has what it was when imported
    options = {"endpoint": endpoint} if url.startswith("hf://") and endpoint else {}
    return FsspecStore.from_url(f"{url}/{group}", storage_options=options, read_only=True)

"""A cache in a dataset repository of the Hugging Face Hub: `hf://datasets/owner/name[@revision][/folder]`.

    read      GET …/resolve/<commit>/<key>, a range where a chunk is asked for; one commit for as long as it is open
    upload    contents first, as large files by their SHA-256, which a repetition finds there and does not send again
    commit    then one git commit for many files: all of them appear at once

Nothing can be built here, as every shard would be a commit of its own: a cache is built elsewhere, then pushed.
The token is huggingface_hub's own (`hf auth login`, or HF_TOKEN); this program neither sees nor stores it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url, parse_hf_uri
from huggingface_hub.errors import (
    HfHubHTTPError,
    HfUriError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, hf_raise_for_status, http_backoff

from cache_builder.errors import (
    CacheBusyError,
    CacheDamagedError,
    CacheUnreachableError,
    ConfigError,
    MissingError,
    UserError,
)
from cache_builder.storage.retries import reason_of

BATCH_FILES, BATCH_BYTES = 128, 256 << 20
"""What is read, held in memory and uploaded together."""
COMMIT_FILES, COMMIT_SECONDS = 1000, 300.0
"""A git commit is made after so many files or seconds: the Hub counts them."""
TIMEOUT_SECONDS = 60.0

T = TypeVar("T")


class HubStore:
    """A folder of a dataset repository, at the commit that its revision had when it was first asked."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            place = parse_hf_uri(self.url)
        except (HfUriError, HFValidationError) as error:
            raise ConfigError(f"cache {self.url}: {reason_of(error)}") from None
        if place.type != "dataset":
            raise ConfigError(f"cache {self.url} is a {place.type}; expected hf://datasets/owner/name[@revision]")
        self.repository, self.revision, self.folder = place.id, place.revision or "main", place.path_in_repo
        self._commit: str | None = None
        self._pending: list[CommitOperationAdd] = []
        self._committed_at = time.monotonic()

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="footsteps")

    @property
    def commit_id(self) -> str:
        """The commit that is read."""
        if self._commit is None:
            found = self._call(
                lambda: self.api.repo_info(self.repository, repo_type="dataset", revision=self.revision), "read"
            )
            self._commit = found.sha
        assert self._commit is not None
        return self._commit

    def where(self, key: str) -> str:
        return f"{self.url}/{key}" if key else self.url

    def path(self, key: str) -> str:
        """Return a key's path in the repository."""
        return f"{self.folder}/{key}".strip("/")

    def read(self, key: str) -> bytes:
        return self._get(key, None)

    def read_range(self, key: str, start: int, size: int) -> bytes:
        return self._get(key, f"bytes={start}-{start + size - 1}", size)

    def read_tail(self, key: str, size: int) -> bytes:
        return self._get(key, f"bytes=-{size}", size)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {key: file.size for key, file in self._files(prefix).items()}

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every large file; the Hub keeps those of small ones in another form."""
        return {key: file.lfs.sha256 for key, file in self._files("").items() if file.lfs is not None}

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        found = self._call(
            lambda: self.api.get_paths_info(
                self.repository, [self.path(key)], repo_type="dataset", revision=self.commit_id
            ),
            "read",
        )
        return next((entry.size for entry in found if isinstance(entry, RepoFile)), None)

    def make_repository(self) -> None:
        """Make the repository, private, and its branch, where they are not there."""
        disable_progress_bars()
        try:
            self.commit_id  # noqa: B018
        except MissingError:
            self._call(
                lambda: self.api.create_repo(self.repository, repo_type="dataset", private=True, exist_ok=True), "make"
            )
            if self.revision != "main":
                self._call(
                    lambda: self.api.create_branch(
                        self.repository, repo_type="dataset", branch=self.revision, exist_ok=True
                    ),
                    "make a branch in",
                )

    @staticmethod
    def batches(files: list[tuple[str, int]]) -> Iterator[list[str]]:
        """Cut a list of (key, bytes) into the keys of what is uploaded together."""
        batch: list[str] = []
        batch_bytes = 0
        for key, size in files:
            if batch and (len(batch) == BATCH_FILES or batch_bytes + size > BATCH_BYTES):
                yield batch
                batch, batch_bytes = [], 0
            batch.append(key)
            batch_bytes += size
        if batch:
            yield batch

    def upload(self, files: list[tuple[str, bytes]], jobs: int) -> None:
        """Send contents, and commit them with others when there are enough."""
        operations = [CommitOperationAdd(self.path(key), data) for key, data in files]
        self._call(
            lambda: self.api.preupload_lfs_files(
                self.repository, operations, repo_type="dataset", revision=self.revision, num_threads=jobs
            ),
            "upload to",
        )
        self._pending += operations
        if len(self._pending) >= COMMIT_FILES or time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self.finish([], removed=[], message="Add a part of a cache")

    def finish(
        self, files: list[tuple[str, bytes]], removed: list[str], message: str = "Add a cache of teacher targets"
    ) -> None:
        """Make one commit of everything uploaded, of `files`, and of the removal of those of `removed` that are there.

        Raises:
            CacheBusyError: the branch has changed since it was read.
        """
        there = self._files("") if removed else {}
        operations: list[Any] = [*self._pending, *(CommitOperationAdd(self.path(key), data) for key, data in files)]
        operations += [CommitOperationDelete(self.path(key)) for key in removed if key in there]
        if not operations:
            return
        made = self._call(
            lambda: self.api.create_commit(
                self.repository,
                operations,
                commit_message=message,
                repo_type="dataset",
                revision=self.revision,
                parent_commit=self.commit_id,
            ),
            "commit to",
        )
        self._commit, self._pending, self._committed_at = made.oid, [], time.monotonic()

    def commit(self, key: str, data: bytes) -> None:
        """Refuse: a builder commits every shard by itself. What pushes a cache calls `upload` and `finish`."""
        raise ConfigError(
            f"cache {self.url}: no cache is built in a Hub repository, where each shard would be a git commit; build "
            "it in a folder or a bucket, then `footsteps cache push` it"
        )

    def remove(self, key: str) -> None:
        self.commit(key, b"")

    def remove_tree(self, prefix: str) -> None:
        if self._files(prefix):
            self.commit(prefix, b"")

    def lock_part(self, part: tuple[int, int]) -> AbstractContextManager[None]:
        """Hold nothing: what writes names the commit before its own, and is refused where that has changed."""
        return nullcontext()

    def join_as_worker(self) -> AbstractContextManager[None]:
        return nullcontext()

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _files(self, prefix: str) -> dict[str, RepoFile]:
        """Return every file below a prefix by its key."""
        root = len(f"{self.folder}/") if self.folder else 0
        try:
            tree = self._call(
                lambda: list(
                    self.api.list_repo_tree(
                        self.repository,
                        self.path(prefix) or None,
                        recursive=True,
                        repo_type="dataset",
                        revision=self.commit_id,
                    )
                ),
                "list",
            )
        except FileNotFoundError as error:
            if isinstance(error, MissingError):
                raise
            return {}
        return {file.path[root:]: file for file in tree if isinstance(file, RepoFile)}

    def _get(self, key: str, span: str | None, size: int | None = None) -> bytes:
        url = hf_hub_url(
            self.repository, self.path(key), repo_type="dataset", revision=self.commit_id, endpoint=self.api.endpoint
        )
        headers = {**build_hf_headers(library_name="footsteps"), **({"Range": span} if span else {})}

        def get() -> bytes:
            response = http_backoff("GET", url, headers=headers, timeout=TIMEOUT_SECONDS)
            hf_raise_for_status(response)
            return response.content

        try:
            data = self._call(get, f"read {key} of")
        except FileNotFoundError as error:
            if isinstance(error, MissingError):
                raise
            raise CacheDamagedError(f"{self.where(key)} is damaged: the file is missing") from None
        if size is not None and len(data) != size:
            raise CacheDamagedError(f"{self.where(key)} is damaged: {len(data):,} bytes where {size:,} are expected")
        return data

    def _call(self, action: Callable[[], T], what: str) -> T:
        """Ask the Hub for something; huggingface_hub repeats what may pass.

        Raises:
            MissingError: there is no such repository or revision, or it is not for this user.
            FileNotFoundError: there is no such file.
        """
        try:
            return action()
        except UserError:
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise MissingError(
                f"{self.url}: there is no such dataset repository or revision, or you may not see it; check the name, "
                "and log in with `hf auth login` if it is private"
            ) from None
        except RemoteEntryNotFoundError:
            raise FileNotFoundError(self.url) from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (409, 412):
                raise CacheBusyError(
                    f"{self.url} has changed while this command was at work: another one writes there; when that is "
                    "done, give the same command again"
                ) from None
            rights = "; log in with `hf auth login` as someone who may" if status in (401, 403) else ""
            raise CacheUnreachableError(f"cannot {what} {self.url}: {reason_of(error)}{rights}") from None
        except (OSError, RuntimeError, ValueError) as error:
            raise self._failed(error, what) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore")):
                raise self._failed(error, what) from None
            raise

    def _failed(self, error: Exception, what: str) -> CacheUnreachableError:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return CacheUnreachableError(
            f"cannot {what} {self.url}: {reason_of(cause)}; what has arrived is kept: give the same command again"
        )

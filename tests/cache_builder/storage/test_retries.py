"""Connections to a real S3 server that break: repeated a few times, then one message; and what is never repeated."""

import errno
import os
from collections.abc import Iterator

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from cache_builder.errors import CacheUnreachableError, CacheWriteError
from cache_builder.storage import retries
from cache_builder.storage.leases import Leases
from cache_builder.storage.object_store import RemoteStore
from cache_builder.storage.retries import attempt, may_pass, reason_of, without_secrets
from tests.support.object_store import BreakingProxy, s3_environment

CLIENT_ATTEMPTS = 5
"""How often s3fs itself connects for one request, where botocore connects once."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", (0.01,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def proxy(bucket: str) -> Iterator[BreakingProxy]:
    with BreakingProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy, s3_environment(proxy.endpoint):
        yield proxy


@pytest.mark.s3
def test_connections_that_break_a_few_times_are_not_noticed(
    quick: None, proxy: BreakingProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", (0.01,) * (CLIENT_ATTEMPTS + 1))  # s3fs does not repeat every error
    store = RemoteStore(f"{bucket}/broken")
    proxy.broken = CLIENT_ATTEMPTS + 1
    store.commit("a/b", b"bytes")
    for read in (lambda store: store.read("a/b"), lambda store: store.read_range("a/b", 0, 5)):
        proxy.broken = CLIENT_ATTEMPTS + 1
        assert read(RemoteStore(store.url)) == b"bytes"
        assert proxy.broken == 0


@pytest.mark.s3
def test_a_store_that_stays_away_is_one_message_and_never_reads_as_an_empty_one(
    quick: None, proxy: BreakingProxy, bucket: str
) -> None:
    RemoteStore(f"{bucket}/away").commit("a", b"bytes")
    store, proxy.broken = RemoteStore(f"{bucket}/away"), 10**9
    with pytest.raises(CacheUnreachableError, match=r"cannot read s3://caches/away/a, 2 times: "):
        store.exists("a")
    with pytest.raises(CacheWriteError, match=r"cannot write .*/a \(3 bytes\), 2 times: .* the same command again"):
        store.commit("a", b"new")
    proxy.broken = 0
    assert store.read("a") == b"bytes"


def test_a_lease_whose_creation_was_answered_by_silence_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteStore("memory://silence")
    create = store.create
    answers = iter([False, True])
    monkeypatch.setattr(store, "create", lambda key, data: create(key, data) and next(answers))
    with store.lock_part((0, 1)):
        assert len(Leases(store).all()) == 1


def test_only_what_may_pass_is_tried_again(quick: None) -> None:
    passing = [
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.EIO, "x"),
        EndpointConnectionError(endpoint_url="u"),
    ]
    lasting = [PermissionError(), OSError(errno.ENOSPC, "full"), NoCredentialsError()]
    assert [may_pass(error) for error in passing + lasting] == [True] * 4 + [False] * 3
    for error, expected, times in (
        (TimeoutError(), CacheUnreachableError, 2),
        (PermissionError(), CacheUnreachableError, 1),
        (FileNotFoundError(), FileNotFoundError, 1),
        (TypeError("a bug"), TypeError, 1),
    ):
        calls = []

        def action(error: Exception = error, calls: list[int] = calls) -> None:
            calls.append(1)
            raise error

        with pytest.raises(expected):
            attempt(action, "read x")
        assert len(calls) == times


def test_no_message_has_a_secret() -> None:
    text = "403 for https://host/a?X-Amz-Signature=abc&X=1 and ftp://me:password@host/b, hf://datasets/me/name@main/c"
    assert without_secrets(text) == "403 for https://host/a?… and ftp://…@host/b, hf://datasets/me/name@main/c"
    assert reason_of(OSError("https://h/x?token=abc\nmore")) == "OSError: https://h/x?…"
    assert "password" not in RemoteStore("ftp://me:password@host/b").where("zarr.json")

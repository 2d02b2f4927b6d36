"""What lies where builders leave their leases: it holds nobody up for longer than a lease lasts."""

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_builder.storage import leases
from cache_builder.storage.holders import machine
from cache_builder.storage.object_store import RemoteStore
from tests.support.fuzz import Tally, cases, damaged, text_of, twisted

NAMES = (
    *("part-0-of-1", "part-0-of-2", "part-1-of-2", "part-2-of-1", "part-0-of-0", "part-x-of-y", "part-", "part-1"),
    *("part-1-of-2-of-3", "part--1-of-²", "exclusive", "part-9" + "9" * 40 + "-of-1", "[x]"),
)

FAST = time.time() + 3600.0
"""By a clock that is fast: such a lease is over by the waiter's own clock alone."""


def test_a_lease_of_any_content_under_any_name(monkeypatch: pytest.MonkeyPatch, tally: dict[str, Tally]) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.05)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.01)

    @cases(100, 2000)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        store = RemoteStore("memory://fuzzed-leases")
        store.fs.rm("/fuzzed-leases", recursive=True) if store.fs.exists("/fuzzed-leases") else None
        host = data.draw(st.sampled_from([machine(), "elsewhere"]))
        lease = {"holder": "x", "host": host, "process": os.getpid(), "token": "y", "renewed": FAST}
        for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
            content = text_of(data.draw(twisted(lease))).encode()
            store.create(f".locks/{name}.json", data.draw(damaged(content)) if data.draw(st.booleans()) else content)

        def hold() -> None:
            with store.lock_part((0, 1)), store.exclusive():
                assert json.loads(store.read(".locks/part-0-of-1.json"))["process"] == os.getpid()

        tally["leases"].end(hold)

    check()

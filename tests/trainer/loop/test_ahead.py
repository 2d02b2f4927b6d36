"""Batches made ahead of the step: the same ones in the same order, no further than asked, and no thread that stays."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cache_builder.errors import CacheDamagedError
from tests.support.interruption import stops_at
from tests.support.students import assert_same_bits
from trainer.loop import trainer as loop
from trainer.loop.ahead import read_ahead
from trainer.loop.dataset import CachedRows
from trainer.stages.distill import distill


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "batches-ahead" in thread.name]


def counted(made: list[int], count: int) -> Iterator[int]:
    for number in range(count):
        made.append(number)
        yield number


def in_time(condition: Any) -> bool:
    """Say whether something comes true within seconds."""
    ends = time.monotonic() + 10
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_are_made_ahead_as_asked_for_and_none_more(count: int) -> None:
    made: list[int] = []
    batches = read_ahead(counted(made, 8), count, lambda: None)
    taken = []
    for batch in batches:
        taken.append(batch)
        expected = min(8, len(taken) + count)
        assert in_time(lambda expected=expected: len(made) == expected)
        time.sleep(0.02)
        assert len(made) == expected
    assert taken == made == list(range(8))
    assert not threads()


def test_the_thread_begins_as_told_and_makes_every_batch() -> None:
    seen: list[str] = []

    def note() -> None:
        seen.append(threading.current_thread().name)

    def noting() -> Iterator[int]:
        for number in range(3):
            note()
            yield number

    assert list(read_ahead(noting(), 1, note)) == [0, 1, 2]
    assert len(seen) == 4 and len(set(seen)) == 1 and "batches-ahead" in seen[0]


def test_an_error_at_the_threads_beginning_is_its_own() -> None:
    def failing() -> None:
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match="no such device"):
        next(read_ahead(counted([], 3), 1, failing))
    assert not threads()


def test_an_error_comes_in_its_place_and_ends_the_thread() -> None:
    def failing() -> Iterator[int]:
        yield from (0, 1)
        raise CacheDamagedError("chunk 3 is damaged")

    batches = read_ahead(failing(), 2, lambda: None)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(CacheDamagedError, match="chunk 3 is damaged"):
        next(batches)
    assert not threads()


def test_closing_before_the_end_ends_the_thread_and_makes_no_more() -> None:
    made: list[int] = []
    batches = read_ahead(counted(made, 100), 2, lambda: None)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    at_close = len(made)
    assert at_close <= 3 and not threads()


def test_a_run_has_the_bits_of_one_without_the_thread_killed_within_a_stage_or_not(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = "distill.save_steps=5", "distill.per_device_train_batch_size=4", "distill.gradient_accumulation_steps=2"
    plain, ahead, stopped = toy(*settings), toy(*settings), toy(*settings)
    made_in: set[str] = set()
    getitems = CachedRows.__getitems__

    def noting(self: CachedRows, items: Any) -> Any:
        made_in.add(threading.current_thread().name)
        return getitems(self, items)

    monkeypatch.setattr(CachedRows, "__getitems__", noting)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "read_ahead", lambda batches, count, begin: iter_of(batches))
        expected = distill(plain[0], "cd+aw", 0, *plain[1:])
    assert made_in == {"MainThread"}
    made_in.clear()
    assert_same_bits(expected, distill(ahead[0], "cd+aw", 0, *ahead[1:]))
    assert all("batches-ahead" in name for name in made_in)
    with stops_at(12):
        distill(stopped[0], "cd+aw", 0, *stopped[1:])
    assert not threads()
    assert_same_bits(expected, distill(stopped[0], "cd+aw", 0, *stopped[1:]))
    assert not threads()


def iter_of(batches: Iterator[Any]) -> Iterator[Any]:
    yield from batches


def test_what_is_damaged_stops_training_with_its_own_message(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cache, prepared = toy()
    getitems, calls = CachedRows.__getitems__, []

    def failing(self: CachedRows, items: Any) -> Any:
        calls.append(items)
        if len(calls) == 7:
            raise CacheDamagedError("records/c/0/0 is damaged: chunk 3")
        return getitems(self, items)

    monkeypatch.setattr(CachedRows, "__getitems__", failing)
    with pytest.raises(CacheDamagedError, match="chunk 3"):
        distill(experiment, "td", 0, cache, prepared)
    assert len(calls) == 7 and not threads()

"""The division of a build's work: whatever the sizes, every unit is done once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_builder.build.work_units import Work, choose_next, divide, parse_part, probe_rows, units_of


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 12))
def test_parts_cover_every_unit_once(checkpoints: int, shards: int, parts: int) -> None:
    works = [work for part in range(parts) for work in divide(checkpoints, shards, (part, parts))]
    units = [unit for work in works for unit in units_of(work)]
    whole = [unit for checkpoint in range(checkpoints) for unit in units_of(Work(checkpoint, range(shards), True))]
    assert units == whole


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 12))
def test_parts_differ_by_one_unit_at_most(checkpoints: int, shards: int, parts: int) -> None:
    sizes = [sum(work.units for work in divide(checkpoints, shards, (part, parts))) for part in range(parts)]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 40), st.sets(st.integers(0, 50)), st.booleans())
def test_what_is_left_of_a_work_is_what_was_not_done(shards: int, done: set[int], probed: bool) -> None:
    left = Work(0, range(shards), True).without(done, probe_pass=probed)
    assert list(left.shards) == [shard for shard in range(shards) if shard not in done]
    assert left.probe_pass == (not probed)


def test_probe_rows_are_distinct_and_depend_on_the_seed_only() -> None:
    assert probe_rows(3, 10, 0).tolist() == [0, 1, 2]
    assert len(set(probe_rows(1000, 50, 0))) == 50
    assert (probe_rows(1000, 50, 0) == probe_rows(1000, 50, 0)).all()
    assert (probe_rows(1000, 50, 0) != probe_rows(1000, 50, 1)).any()


def test_a_part_comes_from_the_option_or_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_part("2/4") == (2, 4)
    assert parse_part(None) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert parse_part(None) == (3, 8)
    assert parse_part(None, group=4) == (0, 2)
    assert parse_part(None, group=2) == (1, 4)
    for wrong in ("4/4", "x/2", "1", "-1/2", ""):
        with pytest.raises(ValueError, match="expected i/n"):
            parse_part(wrong)


def test_a_worker_stays_with_its_checkpoint_and_then_goes_where_most_is_left_for_each() -> None:
    units = ["a", "b", "b", "b", "b", "c", "c"]
    assert choose_next(units, None, []) == 1
    assert choose_next(units, "c", ["b"]) == 5
    assert choose_next(units, None, ["b"]) == 1
    assert choose_next(units, "gone", ["b", "b"]) == 5
    assert choose_next(units, None, ["b", "c", None, "b", "b"]) == 0


def test_the_units_of_a_work_are_its_shards_and_its_probe_pass() -> None:
    assert units_of(Work(1, range(2, 4), True)) == [Work(1, (2,), False), Work(1, (3,), False), Work(1, (), True)]
    assert units_of(Work(0, (5,), False)) == [Work(0, (5,), False)]
    assert Work(1, range(2, 6), True).without({3, 4}, probe_pass=True) == Work(1, (2, 5), False)

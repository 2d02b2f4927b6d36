"""The row order: every row once an epoch, whole chunks together, the same however it is cut."""

import numpy as np

from trainer.loop.order import GROUPED_STEPS, RowStream, epoch_order, group_lengths

OFFSETS = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(1, 30, 1000))])


def test_an_epoch_holds_every_row_once() -> None:
    assert sorted(epoch_order(OFFSETS, 64, 8, seed=1, epoch=0).tolist()) == list(range(1000))


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    again = epoch_order(OFFSETS, 64, 8, seed=1, epoch=3)
    np.testing.assert_array_equal(again, epoch_order(OFFSETS, 64, 8, seed=1, epoch=3))
    assert (again != epoch_order(OFFSETS, 64, 8, seed=1, epoch=4)).any()
    assert (again != epoch_order(OFFSETS, 64, 8, seed=2, epoch=3)).any()


def test_a_window_reads_only_its_own_chunks() -> None:
    chunk_of_row = OFFSETS[:-1] // 64
    order = epoch_order(OFFSETS, 64, 8, seed=1, epoch=0)
    first_seen = {}
    last_seen = {}
    for place, chunk in enumerate(chunk_of_row[order]):
        first_seen.setdefault(chunk, place)
        last_seen[chunk] = place
    open_at_once = max(
        sum(first_seen[chunk] <= place <= last_seen[chunk] for chunk in first_seen) for place in range(0, 1000, 7)
    )
    assert open_at_once <= 8


def test_the_stream_is_the_same_however_it_is_cut() -> None:
    stream = RowStream(OFFSETS, 64, 8, seed=5)
    whole = list(stream.rows(0, 2500))
    parts = [row for start in range(0, 2500, 37) for row in stream.rows(start, min(start + 37, 2500))]
    assert whole == parts
    assert sorted(whole[1000:2000]) == list(range(1000))


def test_a_window_of_the_whole_corpus_shuffles_like_a_full_shuffle() -> None:
    places = np.concatenate([np.argsort(epoch_order(OFFSETS, 64, 10**6, seed, 0))[:50] for seed in range(40)])
    counts = np.histogram(places, bins=10, range=(0, 1000))[0]
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 27.9  # the 99.9 % point of 9 degrees of freedom


def test_grouped_lengths_are_the_same_rows_in_steps_of_like_length() -> None:
    lengths = np.random.default_rng(1).integers(5, 200, 1000)
    stage = list(RowStream(OFFSETS, 64, 8, seed=5).rows(960, 960 + 75 * 32))
    grouped = list(group_lengths(iter(stage), lengths, 32, seed=5, start=960))
    window = GROUPED_STEPS * 32
    assert sorted(grouped[:window]) == sorted(stage[:window])
    assert sorted(grouped[window:]) == sorted(stage[window:])
    assert grouped == list(group_lengths(iter(stage), lengths, 32, seed=5, start=960))
    assert grouped != list(group_lengths(iter(stage), lengths, 32, seed=6, start=960))

    def padded_tokens(rows: list[int]) -> int:
        return int(lengths[rows].reshape(-1, 32).max(axis=1).sum()) * 32

    assert padded_tokens(grouped) < 1.08 * lengths[stage].sum() < 0.6 * padded_tokens(stage)
    longest = lengths[grouped[:window]].reshape(-1, 32).max(axis=1)
    assert (np.diff(longest) < 0).mean() > 0.3, "long steps are spread over the window"

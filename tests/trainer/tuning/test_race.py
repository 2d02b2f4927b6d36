"""Which cells of a grid are stopped, by hand."""

from trainer.tuning.race import History, is_hopeless, still_falling

LEADER = History((10, 20, 30, 40), (0.8, 0.5, 0.4, 0.38), 40)


def after(*losses: float, total_steps: int = 80) -> History:
    """Losses at every eighth of the steps."""
    return History(tuple(total_steps // 8 * (index + 1) for index in range(len(losses))), losses, total_steps)


def test_a_cell_is_compared_with_the_leader_at_half_of_its_share() -> None:
    """At ½ of its steps half of the share is ¼, at which the leader's best was .8: .81 is behind, .79 is not."""
    assert is_hopeless(after(3.0, 2.0, 0.9, 0.81), after(0.8, 0.8, 0.5, 0.4, 0.3))
    assert not is_hopeless(after(3.0, 2.0, 0.9, 0.79), after(0.8, 0.8, 0.5, 0.4, 0.3))


def test_a_rate_that_is_behind_until_it_has_decayed_is_trained_to_its_end() -> None:
    """Two of the demo's teachers, at 1.5e-3 and at 3e-3, of which neither is the better at the end."""
    slow = History((188, 376, 564, 752, 940, 1128, 1313), (0.774, 0.363, 0.230, 0.164, 0.136, 0.123, 0.126), 1313)
    fast = (0.765, 0.463, 0.305, 0.211, 0.141, 0.125, 0.125)
    for seen in range(2, 8):
        assert not is_hopeless(History(slow.steps[:seen], fast[:seen], 1313), slow)


def test_one_bad_loss_stops_nothing() -> None:
    assert not is_hopeless(after(3.0, 3.0, 0.7, 0.9), after(*(0.8, 0.8, 0.8, 0.5))), (
        "at ⅜ it is ahead of the leader's .8"
    )
    assert not is_hopeless(History((40,), (9.0,), 80), LEADER)


def test_nothing_is_stopped_in_its_first_quarter_or_before_there_is_a_leader() -> None:
    assert not is_hopeless(History((5, 10), (9.0, 9.0), 80), LEADER)
    assert not is_hopeless(after(9.0, 9.0, 9.0, 9.0), None)


def test_a_leader_without_a_loss_so_early_stops_nothing() -> None:
    late = History((40,), (0.1,), 40)
    assert not is_hopeless(after(9.0, 9.0, 9.0), late)


def test_a_loss_that_ends_on_its_lowest_is_still_falling() -> None:
    assert still_falling(after(0.5, 0.4, 0.3))
    assert (
        not still_falling(after(0.5, 0.3, 0.2995))
        and not still_falling(after(0.3, 0.4))
        and not still_falling(after(1.0))
    )

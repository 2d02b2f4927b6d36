"""Which cells of a grid are stopped, by hand."""

from trainer.tuning.race import History, is_hopeless, still_falling

LEADER = History((10, 20, 30, 40), (0.8, 0.5, 0.4, 0.38), 40)


def after(*losses: float, total_steps: int = 80) -> History:
    """Losses at every eighth of the steps."""
    return History(tuple(total_steps // 8 * (index + 1) for index in range(len(losses))), losses, total_steps)


def test_a_cell_is_compared_with_the_leader_at_the_same_share_of_its_own_steps() -> None:
    """At ½ of 80 steps the leader's ½ is step 20, at which its best was .5: .56 is 12 % behind, .54 is not."""
    assert is_hopeless(after(3.0, 2.0, 0.9, 0.56), LEADER)
    assert not is_hopeless(after(3.0, 2.0, 0.9, 0.54), LEADER)


def test_one_bad_loss_stops_nothing() -> None:
    assert not is_hopeless(after(3.0, 0.81, 0.81, 0.7), LEADER), "at ⅜ it is level with the leader's .8"
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

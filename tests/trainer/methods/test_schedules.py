"""The schedule's choice, its reasons, and what is best."""

import numpy as np
import pytest

from cache_builder.errors import ConfigError
from trainer.methods.schedules import TERM_NAMES, ProbeSums, StageChoice, best_checkpoint, choose, risk_terms

NAMES = ("early", "middle", "late")


def test_the_planted_checkpoint_is_chosen_with_its_margin() -> None:
    quality = {"early": 2.0, "middle": 0.5, "late": 0.0}
    distance = {"early": 0.1, "middle": 0.4, "late": 1.5}
    choice = choose(1, 20, quality, distance)
    assert choice.choice == "middle"
    assert choice.margin == pytest.approx(0.6)
    assert (choice.quality, choice.distance) == (quality, distance)


def test_of_equal_checkpoints_the_later_one_teaches() -> None:
    assert choose(0, 0, dict.fromkeys(NAMES, 1.0), dict.fromkeys(NAMES, 1.0)).choice == "late"


def test_a_single_checkpoint_has_no_margin() -> None:
    assert choose(0, 0, {"late": 0.0}, {"late": 3.0}).margin is None


def test_the_margin_s_error_is_that_of_paired_sequences_by_hand() -> None:
    """Differences 2, 0 and 4 nats over 1, 1 and 2 positions: a mean of 1.5, residuals .5, −1.5 and 1."""
    sums = ProbeSums({"early": np.array([3.0, 5.0, 1.0]), "late": np.array([1.0, 5.0, -3.0])}, np.array([1, 1, 2]))
    choice = choose(0, 0, {"early": 9 / 4, "late": 3 / 4}, {"early": 0.0, "late": 0.0}, sums)
    assert (choice.choice, choice.margin) == ("late", pytest.approx(1.5))
    assert choice.margin_error == pytest.approx((3 / 2 * (0.25 + 2.25 + 1)) ** 0.5 / 4)
    one = ProbeSums({name: sums_S[:1] for name, sums_S in sums.total_S.items()}, np.array([1]))
    assert choose(0, 0, choice.quality, choice.distance, one).margin_error is None


def test_the_margin_s_error_is_how_much_margins_of_drawn_probes_vary() -> None:
    generator = np.random.default_rng(0)
    margins, errors = [], []
    for _ in range(300):
        positions = generator.integers(1, 9, 60)
        shared = generator.normal(0, 3, 60)  # both checkpoints find the same sequences hard: paired, it cancels
        early = positions * (1.0 + shared + generator.normal(0, 0.5, 60))
        late = positions * (0.8 + shared)
        means = {"early": early.sum() / positions.sum(), "late": late.sum() / positions.sum()}
        choice = choose(0, 0, means, dict.fromkeys(means, 0.0), ProbeSums({"early": early, "late": late}, positions))
        assert choice.margin is not None and choice.margin_error is not None
        margins.append(choice.margin if choice.choice == "late" else -choice.margin)
        errors.append(choice.margin_error)
    assert np.mean(errors) == pytest.approx(np.std(margins), rel=0.15)


def test_risks_prefer_a_teacher_as_good_as_needed() -> None:
    quality, distance = risk_terms({"early": 3.0, "middle": 2.0, "late": 1.0}, student_risk=2.0)
    assert quality == {"early": 3.0, "middle": 2.0, "late": 1.0}
    assert distance == {"early": 1.0, "middle": 0.0, "late": 1.0}


def test_a_stage_survives_its_file() -> None:
    choice = choose(1, 20, {"early": 0.3, "late": 0.0}, {"early": 0.1, "late": 0.9})
    for metric in TERM_NAMES:
        assert StageChoice.from_json(choice.to_json(metric)) == choice
    old = {name: value for name, value in choice.to_json("kl").items() if name != "margin_error"}
    assert StageChoice.from_json(old) == choice, "plans written before have no error of the margin"
    unscheduled = StageChoice(0, 0, "late")
    assert StageChoice.from_json(unscheduled.to_json("kl")) == unscheduled


def test_the_best_checkpoint_has_the_lowest_held_out_loss_and_never_the_test_sets() -> None:
    assert best_checkpoint(NAMES, {"early": 0.9, "middle": 0.2, "late": 0.3}, "held_out") == "middle"
    assert best_checkpoint(NAMES, dict.fromkeys(NAMES), "last") == "late"
    assert best_checkpoint(NAMES, dict.fromkeys(NAMES), "early") == "early"
    losses: dict[str, float | None] = {"early": 0.2, "middle": 0.3, "late": None}
    assert best_checkpoint(NAMES, losses, "metric", {"early": 0.5, "middle": 0.7, "late": 0.6}) == "middle"
    assert best_checkpoint(NAMES, losses, "metric", dict.fromkeys(NAMES, 0.5)) == "early"
    assert best_checkpoint(NAMES, dict.fromkeys(NAMES), "metric", dict.fromkeys(NAMES, 0.5)) == "late"


def test_best_is_refused_where_nothing_was_held_out_or_the_name_is_unknown() -> None:
    with pytest.raises(ConfigError, match="early, middle, late"):
        best_checkpoint(NAMES, dict.fromkeys(NAMES), "held_out")
    with pytest.raises(ConfigError, match="'latest'"):
        best_checkpoint(NAMES, dict.fromkeys(NAMES), "latest")

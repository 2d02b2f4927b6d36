"""The schedule's choice, its reasons, and what is best."""

import pytest

from cache_builder.errors import ConfigError
from trainer.methods.schedules import StageChoice, best_checkpoint, choose, risk_terms

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


def test_risks_prefer_a_teacher_as_good_as_needed() -> None:
    quality, distance = risk_terms({"early": 3.0, "middle": 2.0, "late": 1.0}, student_risk=2.0)
    assert quality == {"early": 3.0, "middle": 2.0, "late": 1.0}
    assert distance == {"early": 1.0, "middle": 0.0, "late": 1.0}


def test_a_stage_survives_its_file() -> None:
    choice = choose(1, 20, {"early": 0.3, "late": 0.0}, {"early": 0.1, "late": 0.9})
    for metric in ("kl", "risk"):
        assert StageChoice.from_json(choice.to_json(metric)) == choice  # type: ignore[arg-type]
    unscheduled = StageChoice(0, 0, "late")
    assert StageChoice.from_json(unscheduled.to_json("kl")) == unscheduled


def test_the_best_checkpoint_has_the_lowest_held_out_loss_and_never_the_test_sets() -> None:
    assert best_checkpoint(NAMES, {"early": 0.9, "middle": 0.2, "late": 0.3}, "held_out") == "middle"
    assert best_checkpoint(NAMES, dict.fromkeys(NAMES), "last") == "late"
    assert best_checkpoint(NAMES, dict.fromkeys(NAMES), "early") == "early"


def test_best_is_refused_where_nothing_was_held_out_or_the_name_is_unknown() -> None:
    with pytest.raises(ConfigError, match="early, middle, late"):
        best_checkpoint(NAMES, dict.fromkeys(NAMES), "held_out")
    with pytest.raises(ConfigError, match="'latest'"):
        best_checkpoint(NAMES, dict.fromkeys(NAMES), "latest")

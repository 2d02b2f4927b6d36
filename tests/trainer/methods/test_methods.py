"""A method is a row, and each cell of it a key of a table."""

import pytest
from pydantic import ValidationError

from cache_builder.errors import ConfigError
from cache_builder.targets.divergences import DIVERGENCES
from trainer.config import DistillConfig
from trainer.methods import methods
from trainer.methods.methods import BASES, Method, get_method
from trainer.methods.schedules import SCHEDULES
from trainer.methods.weighting import WEIGHTINGS


@pytest.mark.parametrize("name", BASES)
def test_every_row_names_keys_that_are_there(name: str) -> None:
    method = get_method(name)
    assert method.divergence is None or method.divergence in DIVERGENCES
    assert method.schedule in SCHEDULES and method.weighting in WEIGHTINGS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Method("x", "hellinger", "best"), "method 'x' names the divergence 'hellinger'; known are forward_kl, "),
        (Method("x", "forward_kl", "random"), "names the schedule 'random'; known are none, best, in-order, scheduled"),
        (Method("x", "forward_kl", "best", "soft"), "names the weighting 'soft'; known are constant, aw, hard-aw"),
    ],
)
def test_a_row_with_an_unknown_key_fails_when_the_config_is_read(
    row: Method, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.BASES, "x", row)
    with pytest.raises(ValidationError, match=message):
        DistillConfig(methods=["x"])


@pytest.mark.parametrize("name", ["", "tdd", "td+", "td+AW", "sft+aw", "td+constant", "td+aw+aw", "+aw", "hard-aw+aw"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="expected one of sft, td, rkl, taid, jsd, cd, scd"):
        get_method(name)


def test_a_suffix_changes_the_weighting_alone() -> None:
    assert get_method("scd+aw") == Method("scd+aw", "forward_kl", "scheduled", "aw")
    assert get_method("hard-aw") == Method("hard-aw", "forward_kl", "best", "hard-aw")

"""What training says while it works."""

from typing import Any

import pytest

from trainer.loop import console
from trainer.stages.distill import distill


def test_without_a_terminal_a_line_says_how_far_training_is(
    toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", -1)
    experiment, cache, prepared = toy()
    distill(experiment, "td", 0, cache, prepared)
    assert "td seed-0: step 10 of 42, loss" in capsys.readouterr().out

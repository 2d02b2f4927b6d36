"""What training says while it works."""

from typing import Any

import pytest
import torch
from transformers.optimization import Adafactor

from trainer.loop import console
from trainer.loop.callbacks import _clear_optimizer
from trainer.stages.distill import distill


def test_without_a_terminal_a_line_says_how_far_training_is(
    toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", -1)
    experiment, cache, prepared = toy()
    distill(experiment, "td", 0, cache, prepared)
    assert "td seed-0: step 10 of 42, loss" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, Adafactor])
def test_a_cleared_optimizer_steps_like_a_new_one(kind: Any) -> None:
    """Whatever keeps moments in its state; the paged ones of bitsandbytes do, too, and need a GPU."""
    options: dict[str, Any] = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    options |= {"relative_step": False, "scale_parameter": False} if kind is Adafactor else {}
    ends = []
    for steps_before in (0, 3):
        weight = torch.nn.Parameter(torch.ones(4, 4))
        optimizer = kind([weight], lr=0.1, **options)
        for step in range(steps_before):
            weight.grad = torch.full_like(weight, float(step - 1))
            optimizer.step()
        _clear_optimizer(optimizer)
        with torch.no_grad():
            weight.fill_(1.0)
        weight.grad = torch.linspace(-1, 1, 16).reshape(4, 4)
        optimizer.step()
        ends.append(weight.detach().clone())
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)

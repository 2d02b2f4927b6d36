"""The log says how many tokens went by, how long they were waited for, and what memory it took."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.loop.dataset import CachedRows
from trainer.loop.pace import Pace
from trainer.loop.trainer import SequenceTrainer
from trainer.stages.distill import distill

SPEED = ("tokens_per_second", "waiting_for_data")


def entries(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "log.json").read_text())


def test_every_entry_has_speed_waiting_and_memory_and_so_has_tensorboard(toy: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experiment, cache, prepared = toy("distill.report_to=['tensorboard']", "distill.logging_steps=5")
    folder = distill(experiment, "td", 0, cache, prepared)
    log = entries(folder)
    training = [entry for entry in log if "loss" in entry]
    assert len(training) > 4
    for entry in training:
        assert entry["tokens_per_second"] > 0 and 0 <= entry["waiting_for_data"] <= 1
    assert all(entry["peak_rss_mib"] > 10 for entry in log)
    (events,) = folder.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events)).Reload()
    for name in SPEED:
        logged = [entry[name] for entry in training]
        assert [event.value for event in accumulator.Scalars(f"train/{name}")] == pytest.approx(logged)
    assert len(accumulator.Scalars("train/peak_rss_mib")) >= len(training)


@pytest.mark.parametrize("micro", [8, 2])
def test_tokens_are_those_of_the_sequences_and_no_padding(
    toy: Any, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    """With a clock that shows one second at every entry, tokens per second are the tokens since the last entry."""
    monkeypatch.setattr(Pace, "seconds", 1.0)
    seen: list[int] = []
    getitems = CachedRows.__getitems__

    def recording(self: CachedRows, items: Any) -> Any:
        seen.extend(row for _, row in items)
        return getitems(self, items)

    monkeypatch.setattr(CachedRows, "__getitems__", recording)
    sizes = f"distill.per_device_train_batch_size={micro}", f"distill.gradient_accumulation_steps={8 // micro}"
    experiment, cache, prepared = toy("distill.logging_steps=7", *sizes)
    log = [entry for entry in entries(distill(experiment, "td", 0, cache, prepared)) if "loss" in entry]
    tokens = np.diff(cache.corpus.token_offsets)[seen].reshape(-1, 7 * 8).sum(1)
    assert len(set(tokens)) > 1
    assert [entry["tokens_per_second"] for entry in log] == tokens.tolist()


@pytest.mark.slow
def test_waiting_is_seen_and_held_out_losses_are_no_part_of_the_pace(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    getitems, losses = CachedRows.__getitems__, SequenceTrainer.corpus_losses

    def slow(function: Any, seconds: float) -> Any:
        def slowed(*arguments: Any) -> Any:
            time.sleep(seconds)
            return function(*arguments)

        return slowed

    monkeypatch.setattr(CachedRows, "__getitems__", slow(getitems, 0.3))
    monkeypatch.setattr(SequenceTrainer, "corpus_losses", slow(losses, 4.0))
    experiment, cache, prepared = toy("distill.logging_steps=6")
    log = [entry for entry in entries(distill(experiment, "td", 0, cache, prepared)) if "loss" in entry]
    for entry in log:
        assert entry["waiting_for_data"] > 0.5
        tokens = 6 * 8 * np.diff(cache.corpus.token_offsets).mean()
        assert tokens / entry["tokens_per_second"] < 1.8 + 3.5

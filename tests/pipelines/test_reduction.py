"""The one reduction: a step's loss and gradient are means over sequences of means over positions, however they are cut.

SGD without clipping, because Adam and clipping hide a wrong scale.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cache_builder.cache.reader import Cache
from cache_builder.models.loading import load_model
from trainer.config import Experiment
from trainer.loop.callbacks import StageCallback
from trainer.loop.order import RowStream
from trainer.losses_file import read_losses
from trainer.methods.weighting import adaptive_weights
from trainer.stages.distill import distill

PLAIN_STEPS = (
    "distill.optim='sgd'",
    "distill.learning_rate=0.05",
    "distill.max_grad_norm=0.0",
    "distill.lr_scheduler_type='constant'",
    "distill.logging_steps=1",
    "distill.init='sft'",
)


def without_dropout(experiment: Experiment) -> None:
    """Judge the student SFT's folder as it is, but without its dropout."""
    folder = experiment.output_dir / "student"
    real = folder.resolve()
    folder.unlink()
    (folder / "best").mkdir(parents=True)
    for path in (real / "best").iterdir():
        (folder / "best" / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "best" / "config.json").read_text())
    (folder / "best" / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))


def plain_loss(experiment: Experiment, cache: Cache, rows: list[int], teacher: str, vocab_size: int) -> float:
    """Mean over sequences of w · mean KL(p̂‖q) + (1 − w) · mean CE, one sequence at a time in float64."""
    model = load_model(experiment.student, 0, str(experiment.output_dir / "student" / "best")).double()
    student_loss = read_losses(
        experiment.output_dir / "losses" / "student.safetensors", cache.fingerprint, len(cache.corpus)
    )
    weights = adaptive_weights(student_loss, cache.losses(teacher))
    total = 0.0
    for row in rows:
        tokens, completion = cache.corpus.sequence(row)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(tokens.astype(np.int64))[None]).logits[0, :, :vocab_size]
        logq = (logits - logits.logsumexp(-1, keepdim=True)).numpy()
        predicting = [index - 1 for index in range(1, len(tokens)) if completion[index]]
        targets = cache.read(teacher, [row])
        divergences, entropies = [], []
        for position, source in enumerate(predicting):
            used = np.isfinite(targets.logp[position])
            ids, p = targets.ids[position][used].astype(int), np.exp(targets.logp[position][used].astype(float))
            share = np.exp(float(targets.log_tail[position])) / targets.samples.shape[1]
            cross = -float(p @ logq[source, ids]) - share * logq[source, targets.samples[position].astype(int)].sum()
            divergences.append(cross - float(targets.entropy[position]))
            entropies.append(-logq[source, tokens[source + 1]])
        total += weights[row] * np.mean(divergences) + (1 - weights[row]) * np.mean(entropies)
    return total / len(rows)


def first_loss(folder: Path) -> float:
    return next(entry["loss"] for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry)


def test_the_first_steps_loss_is_the_plain_formulas(toy: Any) -> None:
    experiment, cache, prepared = toy(*PLAIN_STEPS)
    without_dropout(experiment)
    folder = distill(experiment, "td+aw", 0, cache, prepared)
    chunk = cache.manifest.layout.chunk_positions
    stream = RowStream(cache.corpus.position_offsets, chunk, experiment.distill.window_chunks, 0)
    teacher = json.loads((folder / "plan.json").read_text())["stages"][0]["choice"]
    rows = list(stream.rows(0, experiment.distill.per_device_train_batch_size))
    expected = plain_loss(experiment, cache, rows, teacher, len(prepared.tokenizer))
    assert first_loss(folder) == pytest.approx(expected, rel=2e-4)


def test_micro_batches_change_neither_the_loss_nor_the_step(toy: Any) -> None:
    losses, weights = [], []
    for micro in (8, 2):
        accumulated = (
            f"distill.per_device_train_batch_size={micro}",
            f"distill.gradient_accumulation_steps={8 // micro}",
        )
        experiment, cache, prepared = toy(*PLAIN_STEPS, *accumulated)
        without_dropout(experiment)
        folder = distill(experiment, "td+aw", 0, cache, prepared)
        losses.append(first_loss(folder))
        weights.append(load_file(folder / "last" / "model.safetensors"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    start = load_file(experiment.output_dir / "student" / "best" / "model.safetensors")
    for name, values in weights[0].items():
        np.testing.assert_allclose(weights[1][name], values, rtol=0, atol=2e-5, err_msg=name)
    assert max(np.abs(values - start[name]).max() for name, values in weights[0].items()) > 1e-3


def test_every_stage_begins_with_an_optimizer_that_remembers_nothing(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered: list[tuple[int, int]] = []

    def on_step_begin(
        self: StageCallback, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        plain = getattr(optimizer, "optimizer", optimizer)
        remembered.append((state.global_step % self.machine.steps_per_stage, len(plain.state)))

    monkeypatch.setattr(StageCallback, "on_step_begin", on_step_begin, raising=False)
    experiment, cache, prepared = toy()
    distill(experiment, "td", 0, cache, prepared)
    assert {parameters for step, parameters in remembered if step == 0} == {0}
    assert all(parameters > 0 for step, parameters in remembered if step > 0)
    assert sum(step == 0 for step, _ in remembered) == 3

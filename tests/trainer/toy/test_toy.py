"""The toy's models learn apart from each other, from what they are said to learn from."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cache_builder.errors import ConfigError
from trainer.toy.page import run_toy, toy_table
from trainer.toy.toy import MODELS, READINGS, label, mixed_targets, train_toy


def test_a_seed_gives_the_same_result_whichever_seeds_train_beside_it() -> None:
    few, more = train_toy(seeds=2, examples=60, steps=20), train_toy(seeds=5, examples=60, steps=20)
    for reading in READINGS:
        assert np.array_equal(few.teacher_steps[reading], more.teacher_steps[reading][:2])
        for name in MODELS:
            np.testing.assert_allclose(few.accuracy[reading][name], more.accuracy[reading][name][:2], atol=2e-3)


def test_the_mixed_target_has_the_gradient_of_weighted_kl_and_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    labels = (torch.rand(3, 5, generator=generator) > 0.5).double()
    weights = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    p, log_q = torch.stack([1 - teacher, teacher]), torch.nn.functional.logsigmoid(torch.stack([-logit, logit]))
    kl = (p * (p.log() - log_q)).sum(0)
    ce = -(labels * log_q[1] + (1 - labels) * log_q[0])
    (expected,) = torch.autograd.grad((weights * kl + (1 - weights) * ce).sum(), logit)
    targets = mixed_targets(weights.numpy(), teacher, labels)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, targets.double(), reduction="sum")
    (found,) = torch.autograd.grad(loss, logit)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_labels_are_the_sides_of_the_sine() -> None:
    points_2N = torch.tensor([[0.0, 0.0, 1.5708], [0.1, -0.1, 0.9]])
    assert label(points_2N).tolist() == [1.0, 0.0, 0.0]
    assert label(points_2N, torch.tensor([-0.2, 0.2, 0.2])).tolist() == [0.0, 1.0, 1.0]


def test_the_weak_teacher_drags_distillation_down_and_adaptive_weighting_protects() -> None:
    result = train_toy(seeds=6, examples=400, steps=600)
    for reading in READINGS:
        mean = {name: float(values.mean()) for name, values in result.accuracy[reading].items()}
        assert 0.85 < mean["teacher"] < 0.93
        assert abs(mean["distill"] - mean["teacher"]) < 0.02
        assert mean["distill"] + 0.02 < mean["td"] < mean["sft"]
        assert mean["aw"] > mean["td"] + 0.01 and mean["hard-aw"] > mean["td"] + 0.01
        assert abs(mean["aw"] - mean["sft"]) < 0.02


def test_one_seed_writes_a_line_per_reading_and_a_page(tmp_path: Path) -> None:
    result = run_toy(tmp_path / "toy", seeds=1, examples=40, steps=5)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(toy_table(result))
    assert "…" not in (text := console.export_text()) and text.count("±0.0") == 2 * len(MODELS)
    with (tmp_path / "toy" / "toy.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["labels"], line["seed"]) for line in lines] == [("clean", "0"), ("noisy", "0")]
    assert all(0 <= float(line[name]) <= 1 for line in lines for name in MODELS)
    page = (tmp_path / "toy" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 4
    assert (tmp_path / "toy" / "toy-regions.png").read_bytes()[:4] == b"\x89PNG"


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        train_toy(seeds=0)

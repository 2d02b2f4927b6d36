"""`footsteps toy`: the paper's Fig. 2, a weak teacher and a small student on the two sides of a sine.

    x uniform on [−X, X] × [−Y, Y]         clean labels:  x₂ > sin x₁
                                           noisy labels:  x₂ + noise > sin x₁, the same x, test labels clean
    teacher  2-128-128-2, stopped at the first step whose training accuracy reaches 88.8 %
    student  2-8-2, always from the same initialisation and for the same steps

    sft       CE                      distill   KL(teacher ‖ student)     td   ½ KL + ½ CE
    hard-aw   KL, CE or half of each  aw        w KL + (1 − w) CE         w = L_S / (L_S + L_T), L_S of the sft student

Every seed draws data, noise and initialisations of its own, and all models of one shape train as one batch: a model's
loss is a mean over its examples and the batch's loss a sum over models, so that none feels another.

Legend: B models, S seeds, N examples, G grid points a side. Two classes, so a distribution is one probability.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from cache_builder.errors import ConfigError
from trainer.methods.weighting import adaptive_weights, hard_weights

READINGS = ("clean", "noisy")
MODELS = ("teacher", "sft", "distill", "td", "hard-aw", "aw")
TEACHER_SIZES, STUDENT_SIZES = (2, 128, 128, 2), (2, 8, 2)
# Not the paper's sin(0.5x) and N(0, 1): with these no teacher is right on 88.8 % of noisy labels (docs/toy.md).
HALF_WIDTH, HALF_HEIGHT, NOISE = 5.0, 2.0, 0.35
TEACHER_ACCURACY, TEACHER_STEPS_LIMIT = 0.888, 1000
TEACHER_LR, STUDENT_LR = 1e-3, 1e-2
HARD_AW_DELTA = 0.1
TEST_EXAMPLES = 4000
GRID_POINTS = 160
TEACHERS_TOGETHER = 8


@dataclass(frozen=True)
class ToyResult:
    """Accuracies on clean test labels, and what is needed to draw the first seed's decision regions."""

    accuracy: dict[str, dict[str, np.ndarray]]
    """Reading -> model -> f64 [S], fractions."""
    teacher_steps: dict[str, np.ndarray]
    mean_weight: dict[str, np.ndarray]
    """Reading -> mean adaptive weight of each seed, f64 [S]."""
    first_points: np.ndarray
    """Training points of seed 0, [2, N]."""
    first_labels: dict[str, np.ndarray]
    grid: np.ndarray
    """Points at which the regions are known, [2, G, G]."""
    regions: dict[str, dict[str, np.ndarray]]
    """Reading -> model -> class at each grid point, bool [G, G]."""


def train_toy(seeds: int = 40, examples: int = 500, steps: int = 2000) -> ToyResult:
    """Train every model of every seed in both readings.

    Raises:
        ConfigError: a count is below one.
    """
    if min(seeds, examples, steps) < 1:
        raise ConfigError(f"seeds, examples and steps must be at least 1, got {seeds}, {examples} and {steps}")
    points_S2N, noise_SN = _training_data(seeds, examples)
    test_S2N = torch.stack([_points(_generator("test", seed), TEST_EXAMPLES) for seed in range(seeds)])
    labels_BN = torch.cat([label(points_S2N), label(points_S2N, noise_SN)])
    points_B2N, test_B2N = points_S2N.repeat(2, 1, 1), test_S2N.repeat(2, 1, 1)
    test_labels_BN = label(test_S2N).repeat(2, 1)
    teacher, teacher_steps = _train_teacher(points_B2N, labels_BN)
    with torch.no_grad():
        teacher_BN = torch.sigmoid(_logit(teacher, points_B2N))
    start = _initialise("student", STUDENT_SIZES, seeds)
    models = {"teacher": teacher, "sft": _train_students(start, points_B2N, labels_BN, steps)}
    weights_BN = adaptive_weights(_loss(models["sft"], points_B2N, labels_BN), _loss(teacher, points_B2N, labels_BN))
    weighting = {
        "distill": np.ones_like(weights_BN),
        "td": np.full_like(weights_BN, 0.5),
        "hard-aw": hard_weights(weights_BN, HARD_AW_DELTA),
        "aw": weights_BN,
    }
    targets = torch.cat([mixed_targets(weights, teacher_BN, labels_BN) for weights in weighting.values()])
    copies = len(weighting)
    trained = _train_students([p.repeat(copies, 1, 1) for p in start], points_B2N.repeat(copies, 1, 1), targets, steps)
    for index, name in enumerate(weighting):
        models[name] = [p[2 * seeds * index : 2 * seeds * (index + 1)] for p in trained]
    axes = (
        torch.linspace(-HALF_WIDTH, HALF_WIDTH, GRID_POINTS),
        torch.linspace(-HALF_HEIGHT, HALF_HEIGHT, GRID_POINTS),
    )
    grid_2GG = torch.stack(torch.meshgrid(*axes, indexing="xy"))
    regions = {name: _first_regions(parameters, grid_2GG, seeds) for name, parameters in models.items()}
    accuracy = {name: _accuracy(parameters, test_B2N, test_labels_BN) for name, parameters in models.items()}
    half = {"clean": slice(0, seeds), "noisy": slice(seeds, None)}
    return ToyResult(
        accuracy={r: {name: accuracy[name][half[r]] for name in MODELS} for r in READINGS},
        teacher_steps={r: teacher_steps[half[r]] for r in READINGS},
        mean_weight={r: weights_BN[half[r]].mean(1) for r in READINGS},
        first_points=points_S2N[0].numpy(),
        first_labels={r: labels_BN[i * seeds].numpy() > 0 for i, r in enumerate(READINGS)},
        grid=grid_2GG.numpy(),
        regions={r: {name: regions[name][i] for name in MODELS} for i, r in enumerate(READINGS)},
    )


def label(points_2N: Tensor, noise_N: Tensor | float = 0.0) -> Tensor:
    """Return on which side of the sine each point is, 0. or 1. [..., N], its height shifted by the noise."""
    return (points_2N[..., 1, :] + noise_N > torch.sin(points_2N[..., 0, :])).float()


def _training_data(seeds: int, examples: int) -> tuple[Tensor, Tensor]:
    generators = [_generator("train", seed) for seed in range(seeds)]
    points = torch.stack([_points(generator, examples) for generator in generators])
    return points, torch.stack([torch.randn(examples, generator=generator) * NOISE for generator in generators])


def _generator(purpose: str, seed: int) -> torch.Generator:
    offset = {"train": 0, "test": 1, "teacher": 2, "student": 3}[purpose]
    return torch.Generator().manual_seed(4 * seed + offset)


def _points(generator: torch.Generator, count: int) -> Tensor:
    return (2 * torch.rand(2, count, generator=generator) - 1) * torch.tensor([[HALF_WIDTH], [HALF_HEIGHT]])


def _initialise(purpose: str, sizes: tuple[int, ...], seeds: int) -> list[Tensor]:
    """Draw weights [B, out, in] and biases [B, out, 1], uniform in ±1/√in; both readings of a seed start alike."""
    networks = []
    for seed in range(seeds):
        generator = _generator(purpose, seed)
        shapes = [shape for a, b in pairwise(sizes) for shape in ((a, b, a), (a, b, 1))]
        networks.append([(2 * torch.rand(r, c, generator=generator) - 1) / math.sqrt(fan) for fan, r, c in shapes])
    return [torch.stack(layer).repeat(len(READINGS), 1, 1) for layer in zip(*networks, strict=True)]


def _logit(parameters: list[Tensor], points_B2N: Tensor) -> Tensor:
    """Return logit of class 1 minus logit of class 0, [B, N], of B networks with ReLU, each on its own points."""
    hidden = points_B2N
    for index in range(0, len(parameters), 2):
        hidden = torch.baddbmm(parameters[index + 1], parameters[index], hidden)
        if index < len(parameters) - 2:
            hidden = torch.relu(hidden)
    return hidden[:, 1] - hidden[:, 0]


def _train_teacher(points_B2N: Tensor, labels_BN: Tensor) -> tuple[list[Tensor], np.ndarray]:
    """Train until each teacher first reaches the accuracy, and keep it as it was then; also return its steps [B].

    A few at a time: the slowest of all would keep the others waiting.
    """
    start = _initialise("teacher", TEACHER_SIZES, len(points_B2N) // len(READINGS))
    kept = [torch.empty_like(p) for p in start]
    steps = np.zeros(len(points_B2N), np.int64)
    for first in range(0, len(points_B2N), TEACHERS_TOGETHER):
        part = slice(first, first + TEACHERS_TOGETHER)
        points, labels = points_B2N[part], labels_BN[part]
        parameters = [p[part].clone().requires_grad_() for p in start]
        optimizer = torch.optim.Adam(parameters, lr=TEACHER_LR)
        waiting = torch.ones(len(points), dtype=torch.bool)
        step = 0
        while waiting.any():
            logit_BN = _logit(parameters, points)
            reached = ((logit_BN > 0) == labels).float().mean(-1) >= TEACHER_ACCURACY
            stops = waiting & (reached | (step == TEACHER_STEPS_LIMIT))
            for snapshot, parameter in zip(kept, parameters, strict=True):
                snapshot[part][stops] = parameter.detach()[stops]
            steps[part][stops.numpy()] = step
            waiting &= ~stops
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(logit_BN, labels, reduction="none").mean(-1).sum().backward()
            optimizer.step()
            step += 1
    return kept, steps


def _train_students(start: list[Tensor], points_B2N: Tensor, targets_BN: Tensor, steps: int) -> list[Tensor]:
    """Minimise each model's mean cross-entropy with the targets, which are probabilities of class 1."""
    parameters = [p.clone().requires_grad_() for p in start]
    optimizer = torch.optim.Adam(parameters, lr=STUDENT_LR)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_BN = binary_cross_entropy_with_logits(_logit(parameters, points_B2N), targets_BN, reduction="none")
        loss_BN.mean(-1).sum().backward()
        optimizer.step()
    return [p.detach() for p in parameters]


def mixed_targets(weights_BN: np.ndarray, teacher_BN: Tensor, labels_BN: Tensor) -> Tensor:
    """Return the targets whose cross-entropy is w·KL(teacher‖student) + (1 − w)·CE, up to the teacher's entropy.

    Both are linear in the target distribution: w·CE(p, q) + (1 − w)·CE(y, q) = CE(w·p + (1 − w)·y, q).
    """
    weights = torch.from_numpy(weights_BN).float()
    return weights * teacher_BN + (1 - weights) * labels_BN


def _loss(parameters: list[Tensor], points_B2N: Tensor, labels_BN: Tensor) -> np.ndarray:
    with torch.no_grad():
        loss_BN = binary_cross_entropy_with_logits(_logit(parameters, points_B2N), labels_BN, reduction="none")
    return loss_BN.double().numpy()


def _accuracy(parameters: list[Tensor], points_B2N: Tensor, labels_BN: Tensor) -> np.ndarray:
    with torch.no_grad():
        right: np.ndarray = ((_logit(parameters, points_B2N) > 0) == labels_BN).double().mean(-1).numpy()
    return right


def _first_regions(parameters: list[Tensor], grid_2GG: Tensor, seeds: int) -> list[np.ndarray]:
    """Return seed 0's class at every grid point, bool [G, G], for each reading."""
    first = [p[[0, seeds]] for p in parameters]
    with torch.no_grad():
        classes = _logit(first, grid_2GG.reshape(1, 2, -1).repeat(2, 1, 1)) > 0
    return [part.reshape(grid_2GG.shape[1:]).numpy() for part in classes]

"""The container of targets: arrays, tensors and back."""

import numpy as np
import pytest
import torch

from cache_builder.targets.sparse import ARRAYS, Targets
from cache_builder.targets.tensors import to_torch


def test_what_the_reader_returns_becomes_tensors_of_the_right_types():
    zeros = np.zeros((4, 2), np.float32)
    targets = Targets(
        ids=np.array([[5, 6]] * 4, np.uint32),
        logp=zeros,
        samples=np.array([[7]] * 4, np.uint32),
        log_tail=zeros[:, 0],
        gold=zeros[:, 0],
        entropy=zeros[:, 0],
    )
    torch_targets = to_torch(targets)
    assert torch_targets.ids.dtype == torch_targets.samples.dtype == torch.int64
    assert torch_targets.ids.tolist() == [[5, 6]] * 4
    assert torch_targets.logp.dtype == torch_targets.log_tail.dtype == torch.float32
    assert torch_targets.log_blocks.shape == torch_targets.log_collision.shape == (4, 0) and torch_targets.edges == ()


EDGES = (0, 10, 60, 99)


def some_targets(positions: int = 5) -> Targets:
    generator = np.random.default_rng(0)
    return Targets(
        ids=generator.integers(0, 99, (positions, 3)),
        logp=generator.normal(size=(positions, 3)).astype(np.float32),
        samples=generator.integers(0, 99, (positions, 2)),
        log_tail=generator.normal(size=positions).astype(np.float32),
        gold=generator.normal(size=positions).astype(np.float32),
        entropy=generator.normal(size=positions).astype(np.float32),
        log_blocks=generator.normal(size=(positions, 3)).astype(np.float32),
        log_collision=generator.normal(size=(positions, 1)).astype(np.float32),
        edges=EDGES,
    )


def assert_same(one: Targets, other: Targets) -> None:
    assert one.edges == other.edges
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


def test_tensors_and_arrays_turn_into_each_other():
    targets = some_targets()
    assert_same(to_torch(targets).to("cpu").to_numpy(), targets)


def test_parts_of_targets_join_to_the_whole_and_can_be_put_in_place():
    targets = some_targets()
    assert len(targets[1:3]) == 2 and targets[1:3].edges == EDGES
    assert_same(Targets.concatenate([targets[:2], targets[2:]]), targets)
    blank = Targets.blank(5, 3, 2, EDGES)
    order = np.array([4, 0, 3, 1, 2])
    blank[order] = targets[order]
    assert_same(blank, targets)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_that_of_log_probabilities_and_ids_stay_ids(dtype):
    targets = to_torch(some_targets()).in_precision(dtype)
    for name in ("logp", "log_tail", "entropy", "log_blocks", "log_collision"):
        assert getattr(targets, name).dtype == dtype
    assert targets.ids.dtype == targets.samples.dtype == torch.int64

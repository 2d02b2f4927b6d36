"""Blocks of the tail made to deceive are held to the vocabulary and the support."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_builder.cache.reader import open_cache
from tests.support.crafted import Craft, Crafted, in_group, setting, write_honest
from tests.support.refusals import CHECKPOINT, refusals_in_little_memory


@pytest.fixture(scope="module")
def honest_with_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "cache"
    write_honest(folder, tail_blocks=12)
    return folder


@pytest.fixture
def with_blocks(honest_with_blocks: Path, tmp_path: Path) -> Crafted:
    return Crafted(Path(shutil.copytree(honest_with_blocks, tmp_path / "cache")))


def test_an_honest_cache_with_blocks_is_read_and_verified(with_blocks: Crafted) -> None:
    assert refusals_in_little_memory(with_blocks.folder) == []
    targets = open_cache(str(with_blocks.folder)).read("step-2", [3])
    np.testing.assert_allclose(np.exp(targets.log_blocks).sum(1), np.exp(targets.log_tail), rtol=1e-5)


BLOCKS: dict[str, Craft] = {
    "edges that fall": setting("", "targets.blocks.edges", [0, 200, 100, 300]),
    "edges beyond the vocabulary": setting("", "targets.blocks.edges", [0, 100, 301]),
    "edges short of the vocabulary": setting("", "targets.blocks.edges", [0, 100, 299]),
    "a block less": setting("", "targets.blocks.edges", [0, *range(200, 210), 300]),
    "as many edges as there are ids": setting("", "targets.blocks.edges", list(range(301))),
    "a million edges": setting("", "targets.blocks.edges", list(range(10**5))),
    "edges of text": setting("", "targets.blocks.edges", ["0", "300"]),
    "no edges": setting("", "targets.blocks.edges", []),
    "no steps": setting("", "targets.blocks.steps_per_nat", 0),
    "steps below zero": setting("", "targets.blocks.steps_per_nat", -4),
    "fractional steps": setting("", "targets.blocks.steps_per_nat", 4.5),
    "no blocks": setting("", "targets.blocks", None),
    "no blocks, and version 1": in_group("", lambda body: body.update(version=1, targets=_without_blocks(body))),
    "an older version": setting("", "version", 1),
    "a newer version": setting("", "version", 4),
    "every block empty": lambda crafted: _set_shares(crafted, slice(None), 255),
    "a narrow block that the support fills": lambda crafted: _with_edges_at_the_support(crafted),
}


def _without_blocks(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body["targets"].items() if key != "blocks"}


def _set_shares(crafted: Crafted, blocks: slice, code: int) -> None:
    planes = crafted.values(CHECKPOINT, "records")
    planes[5 * 4 + 3 * 2 : 5 * 4 + 3 * 2 + 12][blocks] = code
    crafted.array(CHECKPOINT, "records", planes)


def _with_edges_at_the_support(crafted: Crafted) -> None:
    """Cut a block of one token for the first position's first id, and give every block mass."""
    first = int(open_cache(str(crafted.folder)).read("step-2", [0]).ids[0, 0])
    inner = sorted({first or 1, first + 1, *range(40, 300, 20)} - {0, 300})[:11]
    setting("", "targets.blocks.edges", [0, *inner, 300])(crafted)
    _set_shares(crafted, slice(None), 8)


@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_what_a_cache_says_of_the_tail_s_blocks_is_held_to_the_vocabulary_and_the_support(
    case: str, with_blocks: Crafted
) -> None:
    BLOCKS[case](with_blocks)
    assert refusals_in_little_memory(with_blocks.folder)

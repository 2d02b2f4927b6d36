"""Edges that cut a vocabulary into blocks of ids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_builder.targets.blocks import FIRST_BLOCK, block_edges, check_edges, ids_inside


@given(st.integers(1, 300_000), st.integers(1, 1024))
def test_any_vocabulary_is_cut_into_as_many_blocks_as_asked_for(vocab_size: int, blocks: int) -> None:
    if blocks > vocab_size:
        with pytest.raises(ValueError, match="blocks of"):
            block_edges(blocks, vocab_size)
    else:
        edges = block_edges(blocks, vocab_size)
        check_edges(edges, vocab_size)
        assert len(edges) == blocks + 1


def test_blocks_of_a_large_vocabulary_widen_by_a_factor() -> None:
    widths = np.diff(block_edges(16, 49_152))
    assert widths[0] == FIRST_BLOCK
    factors = widths[2:] / widths[1:-1]
    np.testing.assert_allclose(factors, (49_152 / FIRST_BLOCK) ** (1 / 15), rtol=0.02)


@pytest.mark.parametrize("edges", [(), (0,), (1, 300), (0, 299), (0, 301), (0, 5, 5, 300), (0, 9, 5, 300), (-1, 300)])
def test_edges_that_do_not_cut_the_vocabulary_are_refused(edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rise from 0 to 300"):
        check_edges(edges, 300)


def test_the_supports_ids_are_counted_in_their_blocks_without_unused_slots() -> None:
    ids = np.array([[0, 4, 5, 9], [9, 9, 9, 9]])
    used = np.array([[True, True, True, True], [True, False, False, False]])
    assert ids_inside(ids, used, (0, 5, 9, 10)).tolist() == [[2, 1, 1], [0, 0, 1]]

"""The uniforms behind tail samples."""

import numpy as np

from cache_builder.targets.sampling import tail_uniforms


def test_uniforms_depend_on_seed_checkpoint_position_and_sample_and_on_nothing_else():
    positions = np.arange(1000, 2000)
    whole = tail_uniforms(7, "checkpoint-10", positions, 4)
    np.testing.assert_array_equal(tail_uniforms(7, "checkpoint-10", positions[300:500], 4), whole[300:500])
    np.testing.assert_array_equal(tail_uniforms(7, "checkpoint-10", positions, 2), whole[:, :2])
    for other in (tail_uniforms(8, "checkpoint-10", positions, 4), tail_uniforms(7, "checkpoint-20", positions, 4)):
        assert not (other == whole).any()


def test_uniforms_never_change_between_releases():
    values = tail_uniforms(0, "checkpoint-1", np.array([0, 1, 2**40]), 2)
    expected = [
        [0.38853640743148554, 0.014205124839343442],
        [0.9190567517054139, 0.4383537534389462],
        [0.9670611846018554, 0.151670102840901],
    ]
    np.testing.assert_array_equal(values, expected)


def test_uniforms_are_uniform_and_independent_across_neighbours():
    values = tail_uniforms(3, "x", np.arange(50_000), 2)
    assert values.min() > 0
    assert values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000.0) ** 2 / 1000.0).sum()
    assert chi_square < 160  # 99 degrees of freedom: 1 in 10,000
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.02
    assert abs(np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]) < 0.02


def test_no_samples_is_an_empty_array_of_the_right_shape():
    assert tail_uniforms(0, "x", np.arange(5), 0).shape == (5, 0)

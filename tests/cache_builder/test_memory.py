"""A peak is that of its own stretch of work."""

import sys

import numpy as np
import pytest

from cache_builder.memory import peak_memory_mib, reset_peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_a_new_stretch_forgets_the_peak_of_the_last() -> None:
    reset_peak_memory()
    before = peak_memory_mib()
    array = np.ones(64 << 20, np.uint8)
    with_array = peak_memory_mib()
    assert 56 < with_array - before < 96
    del array
    reset_peak_memory()
    assert peak_memory_mib() < with_array - 32

"""The tokens of a batch that suit a device."""

import pytest

from cache_builder.batch_size import batch_tokens_for


def test_a_cpu_takes_batches_that_its_caches_hold() -> None:
    assert batch_tokens_for(None, 118_784) == 2048


@pytest.mark.parametrize(
    ("memory_gib", "token_bytes", "batch_tokens"),
    [
        (80, 118_784, 16384),  # an 8B model in bfloat16
        (24, 118_784, 8192),
        (23.6, 118_784, 8192),  # the same card, as its driver reports it
        (8, 118_784, 4096),
        (1, 10**9, 512),
    ],
)
def test_a_gpu_takes_as_much_as_a_sixteenth_of_its_memory_holds(
    memory_gib: float, token_bytes: int, batch_tokens: int
) -> None:
    assert batch_tokens_for(int(memory_gib * 2**30), token_bytes) == batch_tokens

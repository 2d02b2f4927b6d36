"""How many tokens one forward pass takes while a cache is built, where `cache.batch_tokens` leaves it open.

    CPU    2,048     larger ones leave its caches: measured on SmolLM2-135M, and what they pad besides
    GPU    16,384    or the power of two whose activations take a sixteenth of its memory, if that is less

No torch here, so that `footsteps plan` reads it too.
"""

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384
_LEAST = 512
_MEMORY_SHARE = 16


def batch_tokens_for(memory_bytes: int | None, token_bytes: int) -> int:
    """Return the tokens of a batch on a device with so much memory, None for a CPU.

    Args:
        token_bytes: what a layer keeps of one token while it runs.
    """
    if memory_bytes is None:
        return CPU_BATCH_TOKENS
    fitting = memory_bytes // (_MEMORY_SHARE * token_bytes)
    # a power of two, so that cards of one kind which report a little more or less agree
    return min(GPU_BATCH_TOKENS, max(_LEAST, 1 << max(fitting, 1).bit_length() - 1))

"""Four processes in two tensor-parallel groups build a cache; forked, so that torch is imported once.

    python -m tests.support.tensor_parallel_processes TEACHING CACHE padded|packed      the exit status says all

MASTER_ADDR and MASTER_PORT are as torchrun would set them.
"""

import os
import socket
import sys
from pathlib import Path

import torch

from cache_builder.build.build import build_cache
from cache_builder.config import CacheExperiment
from tests.support.caches import Teaching

SIZE, WORLD = 2, 4


def main() -> None:
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(WORLD)}
    children = [start(rank) for rank in range(WORLD)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(f"exit statuses {statuses}" if any(statuses) else 0)


def start(rank: int) -> int:
    """Fork one process of the world and return its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        build(Teaching(Path(sys.argv[1])), Path(sys.argv[2]), (rank // SIZE, WORLD // SIZE))
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def build(teaching: Teaching, cache: Path, part: tuple[int, int]) -> None:
    values = teaching.experiment(cache, packing=sys.argv[3] == "packed").model_dump()
    experiment = CacheExperiment.model_validate({**values, "teacher": {**values["teacher"], "tensor_parallel": SIZE}})
    build_cache(experiment, teaching.corpus, teaching.tokenizer, teaching.checkpoints, teaching.held_out, part=part)


if __name__ == "__main__":
    main()

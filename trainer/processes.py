"""One run on several processes (torchrun, accelerate launch): all of them train, one writes, the others wait.

    main process      losses, evaluation, report, cards: what needs no second process
    all processes     fine-tuning, distillation, and each its own part of the cache

A process that fails ends its launcher, which ends those that wait for it.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from cache_builder.narration import say

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""For others' parts of a cache, or an evaluation; training keeps its own, `ddp_timeout`."""


def is_main_process() -> bool:
    """Say whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """Return how many processes this run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def say_skipped(folder: Path) -> None:
    """Say, once, that a stage is not done again, and why."""
    if is_main_process():
        say("skipped", f"{folder}: complete, from these inputs; skipped", folder=str(folder))


def wait_for_all() -> None:
    """Return once every process of the run has come here."""
    if process_count() > 1:
        import torch

        torch.distributed.barrier(group=_waiting_group())


def on_main_process(work: Callable[[], T]) -> T | None:
    """Do the work on the main process while the others wait; they get None."""
    result = work() if is_main_process() else None
    wait_for_all()
    return result


def only_run_in(folder: Path, what: str) -> AbstractContextManager[None]:
    """Be the only run that does `what` in a folder until the block ends; the main process holds the lock for all.

    Raises:
        CacheBusyError: another run does it; the message names its process.
    """
    from cache_builder.storage.locks import only_one_in

    return only_one_in(folder, what) if is_main_process() else nullcontext()


@cache
def _waiting_group() -> Any:
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.accelerator.is_available())
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)

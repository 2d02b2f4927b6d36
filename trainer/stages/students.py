"""Every student of a run: one after another here, or several at once, each in a process of its own.

    this process ── method, seed ──▶ process 1 … `jobs`, each with its share of the threads ──▶ the student's folder
                 └─ a pipe whose end is the signal to stop: this process failed, was killed, or has seen a refusal

The processes share the run folder, where a student is locked while it trains and continues where it was stopped, so
they can be ended at any moment. They share the device too.
"""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, TrainingError, UserError
from cache_builder.narration import LINES, in_environment
from trainer.config import Experiment
from trainer.processes import process_count
from trainer.stages.distill import distill

Student = tuple[str, int]
"""A method and a seed."""


def train_students(
    experiment: Experiment,
    students: Iterable[Student],
    prepared: Prepared,
    cache: Cache,
    jobs: int = 1,
    begun: Callable[[str, int], None] = lambda method, seed: None,
) -> Iterator[Path]:
    """Train the students and yield the folder of each as it is done; `begun` hears of one that is trained here.

    Args:
        jobs: how many are trained at once; more than one, and each has a process of its own and a share of the threads.

    Raises:
        ConfigError: several jobs are asked for where a launcher has started several processes already.
        TrainingError: a process refused its student, or was lost; the others are stopped, and go on when asked again.
    """
    wanted = list(students)
    jobs = min(jobs, len(wanted))
    if jobs > 1 and process_count() > 1:
        raise ConfigError(f"--jobs {jobs} under a launcher of {process_count()} processes; give one or the other")
    if jobs > 1:
        yield from _side_by_side(experiment, cache, wanted, jobs)
        return
    for method, seed in wanted:
        begun(method, seed)
        yield distill(experiment, method, seed, cache, prepared)


def _side_by_side(experiment: Experiment, cache: Cache, students: list[Student], jobs: int) -> Iterator[Path]:
    context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    stopped, ours = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    with (
        in_environment(LINES, "1"),  # their bars would be drawn over each other
        closing(stopped),
        closing(ours),
        ProcessPoolExecutor(jobs, context, _begin, (experiment, cache.url, stopped, threads)) as pool,
    ):
        training = [pool.submit(_train, *student) for student in students]
        try:
            for future in as_completed(training):
                yield future.result()
        except BaseException as error:
            ours.close()  # ends the others where they are
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise TrainingError(
                    "a process that trains a student ended by itself, perhaps for want of memory; give the same "
                    f"command again to continue, or with fewer than --jobs {jobs}"
                ) from None
            raise


_task: tuple[Experiment, str] | None = None
"""Of a process that trains for another one: the experiment, and where its cache is."""


def _begin(experiment: Experiment, url: str, stopped: Connection, threads: int) -> None:
    global _task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that started this one, which ends it
    threading.Thread(target=_end_with, args=(stopped,), daemon=True).start()
    torch.set_num_threads(threads)
    _task = experiment, url


def _end_with(stopped: Connection) -> None:
    """End this process when the other end of the pipe is closed, also by the death of the process that holds it."""
    stopped.poll(None)
    os._exit(1)


@functools.cache
def _opened() -> tuple[Experiment, Prepared, Cache]:
    assert _task is not None
    experiment, url = _task
    return experiment, Prepared(experiment), open_cache(url, local_copy=experiment.local_copy)


def _train(method: str, seed: int) -> Path:
    try:
        experiment, prepared, cache = _opened()
        return distill(experiment, method, seed, cache, prepared)
    except UserError as error:  # of whatever kind: not all of them can travel between processes
        raise TrainingError(f"{method}, seed {seed}: {error}") from None

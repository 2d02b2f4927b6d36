"""Time of a step through the Trainer, its loader included, what of it is waiting, and the rate of the loader alone.

stock      transformers.Trainer, model(labels=…), the same batches in the same order    the yardstick
scd+aw     ours: the cache's targets read, decoded and collated, forward KL and CE by adaptive weights
no thread  the same, each batch made when the step asks for it and not ahead of it
loader     reading, decoding and collating those batches alone

python -m tools.bench_trainer [--vocabulary 128256] [--sequences 400] [--workers 0] [--latency 0.02]

The cache is made up (tools/synthetic_cache.py), in a folder, or with `--latency` in a store that takes so many seconds
to answer. Seconds are medians between the ends of consecutive steps; the trainers take turns, and a ratio is the median
of the turns' ratios. On a GPU, where there is one, in bfloat16 by autocast. The title says for what share of the time
the next batch was waited for, with the thread and without.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from cache_builder.cache.reader import DEFAULT_MEMORY_BYTES, Cache, open_cache
from cache_builder.storage.local import LocalStore
from cache_builder.storage.object_store import RemoteStore
from tools.bench_stream import URL, Distant
from tools.measuring import Measured, make_model, median_ratio, parameters, report
from tools.synthetic_cache import Synthetic, write_synthetic_cache
from trainer.config import DistillConfig
from trainer.loop import trainer as loop
from trainer.loop.dataset import CachedRows
from trainer.loop.order import RowStream
from trainer.loop.pace import Pace
from trainer.loop.settings import LoopSettings
from trainer.methods.methods import get_method
from trainer.stages.distill import DistillTrainer

BATCH = 8
SKIPPED_STEPS = 3


class Clock(TrainerCallback):
    """Notes when each step ends, and what of the time was waiting."""

    def __init__(self, pace: Pace | None = None) -> None:
        self.pace, self.waiting = pace, 0.0
        self.ends: list[float] = []
        self.processor_ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.pace is not None and len(self.ends) == SKIPPED_STEPS:
            self.pace.restart()
        self.ends.append(time.perf_counter())
        self.processor_ends.append(time.process_time())
        if self.pace is not None:
            self.waiting = self.pace.waiting_seconds / self.pace.seconds

    def step_seconds(self) -> float:
        """Return the median time from one step's end to the next one's."""
        return statistics.median(np.diff(self.ends[SKIPPED_STEPS:]).tolist())

    def processor_seconds(self) -> float:
        """Return the mean processor time of a step."""
        return float(np.diff(self.processor_ends[SKIPPED_STEPS:]).mean())


class StockTrainer(Trainer):
    """transformers.Trainer, given our order of rows."""

    def __init__(self, order: list[int], **options: Any) -> None:
        self.order = order
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order


class LabelledRows(CachedRows):
    """The same batches as labels, without targets."""

    def __getitems__(self, items: list[Any]) -> dict[str, Any]:
        batch = super().__getitems__([(None, row) for row in items])
        labels = torch.full_like(batch["input_ids"], -100)
        labels.view(-1)[batch["hidden_index_M"] + 1] = batch["label_M"]
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def our_trainer(cache: Cache, args: argparse.Namespace, folder: Path) -> DistillTrainer:
    """An scd+aw student of one stage."""
    words = {f"t{index}": index for index in range(args.vocabulary)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "t0")), pad_token="t0")
    weights = np.random.default_rng(0).uniform(size=len(cache.corpus))
    options: dict[str, Any] = {"dataloader_num_workers": args.workers, "bf16": torch.cuda.is_available()}
    config = DistillConfig(per_device_train_batch_size=BATCH, epochs_per_stage=1, logging_steps=1000, **options)
    return DistillTrainer(
        method=get_method("scd+aw"),
        cache=cache,
        best=cache.checkpoints[-1],
        experiment=SimpleNamespace(distill=config),
        model=make_model(args.vocabulary, args.hidden_size, args.layers, torch.float32, torch.device("cpu")),
        tokenizer=tokenizer,
        rows=CachedRows(cache, 0, lambda _: weights),
        validation=None,
        settings=LoopSettings(config=config, output_dir=folder, seed=0, stages=1, epochs_per_stage=1),
        stream=RowStream(cache.corpus.position_offsets, cache.manifest.layout.chunk_positions, 256, 0),
    )


def made_when_asked(batches: Iterator[Any], count: int, begin: Callable[[], None]) -> Iterator[Any]:
    """Yield the batches without a thread, as `read_ahead` does with one."""
    yield from batches


def open_made_up(args: argparse.Namespace, folder: Path) -> Callable[[], Cache]:
    """Make the cache up, and return what opens it."""
    made = Synthetic(args.sequences, args.vocabulary)
    if not args.latency:
        write_synthetic_cache(LocalStore(folder / "cache"), made)
        return lambda: open_cache(str(folder / "cache"))
    write_synthetic_cache(RemoteStore(URL), replace(made, shard_positions=8192, chunk_positions=512))
    Distant.latency = args.latency
    return lambda: Cache(Distant(URL), DEFAULT_MEMORY_BYTES)


def bench(args: argparse.Namespace, folder: Path) -> tuple[list[Measured], dict[str, float]]:
    """Measure the trainers in turns, then the loader; also return the shares of waiting."""
    open_it = open_made_up(args, folder)
    turns: list[list[Clock]] = []
    for turn in range(args.rounds):
        ahead, plain = (our_trainer(open_it(), args, folder / f"{name}-{turn}") for name in ("ahead", "plain"))
        order = list(ahead.sampler.stream.rows(0, len(ahead.sampler)))
        stock = StockTrainer(
            order=order,
            model=make_model(args.vocabulary, args.hidden_size, args.layers, torch.float32, torch.device("cpu")),
            args=ahead.args,
            train_dataset=LabelledRows(open_it(), 0, lambda _: np.empty(0)),
            data_collator=lambda batch: batch,
        )
        stock.remove_callback(ProgressCallback)
        clocks = [Clock(), Clock(ahead.pace), Clock(plain.pace)]
        for trainer, clock in zip((stock, ahead, plain), clocks, strict=True):
            trainer.add_callback(clock)
        stock.train()
        ahead.train()
        with mock.patch.object(loop, "read_ahead", made_when_asked):
            plain.train()
        turns.append(clocks)
    rows = CachedRows(open_it(), 0, lambda _: np.ones(args.sequences))
    batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    start, processor_start = time.perf_counter(), time.process_time()
    for batch in batches:
        rows.__getitems__([(rows.cache.checkpoints[0], row) for row in batch])
    loader = [(time.perf_counter() - start) / len(batches)] * args.rounds
    loader_processor = [(time.process_time() - processor_start) / len(batches)] * args.rounds
    names = ("stock", "scd+aw", "no thread")
    seconds = {name: [turn[place].step_seconds() for turn in turns] for place, name in enumerate(names)}
    processor = {name: [turn[place].processor_seconds() for turn in turns] for place, name in enumerate(names)}
    seconds, processor = seconds | {"loader": loader}, processor | {"loader": loader_processor}
    measured = [
        Measured(
            name,
            statistics.median(seconds[name]),
            median_ratio(seconds[name], seconds["stock"]),
            None,
            median_ratio(processor[name], processor["stock"]),
        )
        for name in seconds
    ]
    waiting = [statistics.median(turn[place].waiting for turn in turns) for place in (1, 2)]
    return measured, {"waiting": waiting[0], "waiting_no_thread": waiting[1]}


def main() -> None:
    """Measure, print the table and append it to results/trainer.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured, waiting = bench(args, Path(folder))
    student = make_model(args.vocabulary, args.hidden_size, args.layers, torch.float32, torch.device("cpu"))
    settings = {**vars(args), "batch": BATCH, "parameters": parameters(student)}
    settings |= {name: f"{share:.3f}" for name, share in waiting.items()}
    title = f"{1 / measured[-1].seconds:,.0f} batches/s from the loader; " + ", ".join(
        f"{name} {value}" for name, value in settings.items()
    )
    report(measured, "trainer.csv", settings, title)


if __name__ == "__main__":
    main()

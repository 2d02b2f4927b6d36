"""Time of a step through the Trainer, its loader included, and the rate of the loader alone.

stock    transformers.Trainer, model(labels=…), the same batches in the same order      the yardstick
scd+aw   ours: the cache's targets read, decoded and collated, forward KL and CE by adaptive weights
loader   reading, decoding and collating those batches alone

python -m tools.bench_trainer [--vocabulary 128256] [--sequences 400] [--workers 0]

The cache is made up (tools/synthetic_cache.py). Seconds are medians between the ends of consecutive steps; the two
trainers take turns, and the ratio is the median of the turns' ratios.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.storage.local import LocalStore
from tools.measuring import Measured, make_model, parameters, report
from tools.synthetic_cache import Synthetic, write_synthetic_cache
from trainer.config import DistillConfig
from trainer.loop.dataset import CachedRows
from trainer.loop.order import RowStream
from trainer.loop.settings import LoopSettings
from trainer.methods.methods import get_method
from trainer.stages.distill import DistillTrainer

BATCH = 8
SKIPPED_STEPS = 3


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def step_seconds(self) -> float:
        """Return the median time from one step's end to the next one's."""
        return statistics.median(np.diff(self.ends[SKIPPED_STEPS:]).tolist())


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


def our_trainer(cache: Cache, args: argparse.Namespace, folder: Path, clock: Clock) -> DistillTrainer:
    """An scd+aw student of one stage."""
    words = {f"t{index}": index for index in range(args.vocabulary)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "t0")), pad_token="t0")
    weights = np.random.default_rng(0).uniform(size=len(cache.corpus))
    options: dict[str, Any] = {"dataloader_num_workers": args.workers}
    config = DistillConfig(per_device_train_batch_size=BATCH, epochs_per_stage=1, logging_steps=1000, **options)
    trainer = DistillTrainer(
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
    trainer.add_callback(clock)
    return trainer


def bench(args: argparse.Namespace, folder: Path) -> list[Measured]:
    """Measure both trainers in turns, then the loader."""
    write_synthetic_cache(LocalStore(folder / "cache"), Synthetic(args.sequences, args.vocabulary))
    cache = open_cache(str(folder / "cache"))
    turns = []
    for turn in range(args.rounds):
        clocks = Clock(), Clock()
        ours = our_trainer(cache, args, folder / f"ours-{turn}", clocks[1])
        order = list(ours.sampler.stream.rows(0, len(ours.sampler)))
        stock = StockTrainer(
            order=order,
            model=make_model(args.vocabulary, args.hidden_size, args.layers, torch.float32, torch.device("cpu")),
            args=ours.args,
            train_dataset=LabelledRows(cache, 0, lambda _: np.empty(0)),
            data_collator=lambda batch: batch,
            callbacks=[clocks[0]],
        )
        stock.remove_callback(ProgressCallback)
        stock.train()
        ours.train()
        turns.append([clock.step_seconds() for clock in clocks])
    fresh = CachedRows(open_cache(str(folder / "cache")), 0, lambda _: np.ones(args.sequences))
    batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    start = time.perf_counter()
    for rows in batches:
        fresh.__getitems__([(cache.checkpoints[0], row) for row in rows])
    loader = (time.perf_counter() - start) / len(batches)
    stock_seconds, our_seconds = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(ours / stock for stock, ours in turns)
    return [
        Measured("stock", stock_seconds, 1.0, None),
        Measured("scd+aw", our_seconds, ratio, None),
        Measured("loader", loader, loader / stock_seconds, None),
    ]


def main() -> None:
    """Measure, print the table and append it to results/trainer.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = bench(args, Path(folder))
    student = make_model(args.vocabulary, args.hidden_size, args.layers, torch.float32, torch.device("cpu"))
    settings = {**vars(args), "batch": BATCH, "parameters": parameters(student)}
    title = f"{1 / measured[2].seconds:,.0f} batches/s from the loader; " + ", ".join(
        f"{name} {value:,}" for name, value in settings.items()
    )
    report(title, measured, "trainer.csv", settings)


if __name__ == "__main__":
    main()

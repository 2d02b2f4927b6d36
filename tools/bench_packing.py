"""Tokens per second by the ways to make batches, on the lengths of real data sets.

capture   one forward pass of every batch, with the targets of its positions:
            mixed      padded batches in the corpus's order                                  the yardstick
            grouped    padded batches of like length, ended where they would pad             cache.packing = false
            packed     several sequences in a row                                            cache.packing = true
training  one optimizer step on every micro-batch of 8 sequences in random order:
            padded                                                                           the yardstick
            grouped    micro-batches of like length                                          distill.length_grouped
            packed     the padded ones' sequences, several in a row                          distill.packing

Lengths and completions are those of `--data`, tokenised by `--tokenizer`; the model is random, of `--hidden-size` and
`--layers`. Real tokens count, padding does not. The ways take turns; a ratio is the median of the turns' ratios, of
tokens by the clock and by processor time.

    python -m tools.bench_packing --data snips --path ../shared/data/snips --tokenizer FOLDER [--sequences 400]
    python -m tools.bench_packing … --padding --batch-tokens 2048 16384    what the batches of a capture pad; no run
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cache_builder.capture.capture import begin_capture
from cache_builder.config import CacheExperiment, make_experiment
from cache_builder.data.batches import Batching
from cache_builder.data.batching import Batch
from cache_builder.data.prepare import Prepared
from cache_builder.models.lm_head import hidden_states_at
from cache_builder.models.packed import packing_of
from cache_builder.targets.sampling import tail_uniforms
from tools.measuring import Measured, append_rows, make_model, measure, parameters
from trainer.loss.fused import distillation_loss

MICRO_BATCH = 8
Sequences = list[tuple[np.ndarray, np.ndarray]]


def sequences_of(args: argparse.Namespace) -> tuple[Sequences, int]:
    """Return (token ids, completion mask) of a random part of a data set, and the vocabulary's size."""
    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, Any] = {
            "run": {"output_dir": folder},
            "data": {
                "source": args.data,
                "path": args.path,
                "split_by": args.split_by,
                "train_examples": args.sequences,
                "validation_fraction": 0,
            },
            "text": {"chat_template": "plain", "max_length": args.max_length},
            "tokenizer": {"path": args.tokenizer},
            "teacher": {"model": args.tokenizer},
        }
        prepared = Prepared(make_experiment(CacheExperiment, values, (), "this tool"))
        corpus = prepared.train
        rows = [corpus.sequence(row) for row in range(len(corpus))]
        return [(np.array(tokens), np.array(completion)) for tokens, completion in rows], len(prepared.tokenizer)


def in_order(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Cut padded batches as the sequences come."""
    batches: list[np.ndarray] = []
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[start : end + 1].max() > tokens:
            batches.append(np.arange(start, end))
            start = end
    return batches


def batches_for_capture(sequences: Sequences, tokens: int, packing: Any) -> dict[str, list[Batch]]:
    """Return the batches of each way."""
    lengths = np.array([len(ids) for ids, _ in sequences])
    grouped, packed = Batching(0, tokens), Batching(0, tokens, packing)
    plans = {"mixed": (grouped, in_order(lengths, tokens)), "grouped": (grouped, grouped.plan(lengths))}
    plans["packed"] = packed, packed.plan(lengths)
    return _collated(plans, sequences)


def batches_for_training(sequences: Sequences, packing: Any) -> dict[str, list[Batch]]:
    """Return the micro-batches of each way."""
    rng = np.random.default_rng(0)
    whole = len(sequences) // MICRO_BATCH * MICRO_BATCH
    drawn = rng.permutation(len(sequences))[:whole]
    lengths = np.array([len(ids) for ids, _ in sequences])
    sorted_rows = drawn[np.argsort(lengths[drawn], kind="stable")]
    padded, packed = Batching(0, 1), Batching(0, 1, packing)
    cut = {name: list(rows.reshape(-1, MICRO_BATCH)) for name, rows in (("drawn", drawn), ("sorted", sorted_rows))}
    plans = {"padded": (padded, cut["drawn"]), "grouped": (padded, cut["sorted"]), "packed": (packed, cut["drawn"])}
    return _collated(plans, sequences)


def _collated(plans: dict[str, tuple[Batching, list[np.ndarray]]], sequences: Sequences) -> dict[str, list[Batch]]:
    return {
        name: [batching.collate([sequences[row] for row in rows]) for rows in batches]
        for name, (batching, batches) in plans.items()
    }


def run_capture(model: Any, batches: list[Batch], vocab_size: int) -> Callable[[], None]:
    """Capture the targets of all batches."""

    def run() -> None:
        for batch in batches:
            uniforms = tail_uniforms(0, "bench", np.arange(len(batch["label_M"])), 0)
            begin_capture(model, batch, vocab_size, top_k=16, top_p=1.0, uniforms_MS=uniforms).arrived()

    return run


def run_training(model: Any, optimizer: Any, batches: list[Batch], vocab_size: int) -> Callable[[], None]:
    """Train on all batches, a step each; cross-entropy alone, whose gradient is written in the same pass."""

    def run() -> None:
        for batch in batches:
            hidden_MD, head = hidden_states_at(model, batch, vocab_size)
            label_M = batch["label_M"].to(hidden_MD.device)
            weight_M = torch.full(label_M.shape, 1 / len(label_M), device=hidden_MD.device)
            distillation_loss(hidden_MD, head, None, label_M, 0 * weight_M, weight_M).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def main() -> None:
    """Measure both; append rows to results/packing.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--split-by", default="official")
    parser.add_argument("--sequences", type=int, default=400)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--hidden-size", type=int, default=576)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--padding", action="store_true", help="run nothing")
    parser.add_argument("--without-training", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    device = torch.device(args.device)
    sequences, vocab_size = sequences_of(args)
    if args.padding:
        return print_padding(sequences, args.batch_tokens)
    model = make_model(vocab_size, args.hidden_size, args.layers, getattr(torch, args.dtype), device).eval()
    model.set_attn_implementation(args.attention)
    packing = packing_of(model, "packing")
    settings = {"dtype": args.dtype, "hidden": args.hidden_size, "parameters": parameters(model), "data": args.data}
    settings |= {"layers": args.layers, "sequences": len(sequences)}
    for tokens in args.batch_tokens:
        batches = batches_for_capture(sequences, tokens, packing)
        ways = {name: run_capture(model, each, vocab_size) for name, each in batches.items()}
        report(
            batches,
            measure(ways, args.rounds, device, peaks=False),
            settings | {"what": "capture", "batch_tokens": tokens},
        )
    if not args.without_training:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        batches = batches_for_training(sequences, packing)
        ways = {name: run_training(model, optimizer, each, vocab_size) for name, each in batches.items()}
        report(
            batches,
            measure(ways, args.rounds, device, peaks=False),
            settings | {"what": "training", "batch_tokens": ""},
        )


def print_padding(sequences: Sequences, budgets: list[int]) -> None:
    """Say how many batches each way makes of the sequences, and which share of them is padding."""
    for tokens in budgets:
        for way, batches in batches_for_capture(sequences, tokens, "rows").items():
            used, padding = tokens_and_padding(batches)
            print(f"{used:,} tokens in batches of {tokens:,}, {way}: {len(batches)} batches, {padding:.1%} padding")


def tokens_and_padding(batches: list[Batch]) -> tuple[int, float]:
    """Return the real tokens of batches, and the share of padding."""
    used = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return used, 1 - used / sum(batch["input_ids"].numel() for batch in batches)


def report(batches: dict[str, list[Batch]], measured: list[Measured], settings: dict[str, object]) -> None:
    """Print what each way reaches, and append it to results/packing.csv."""
    from rich.console import Console
    from rich.table import Table

    title = ", ".join(f"{name} {value}" for name, value in settings.items())
    table = Table("way", "batches", "padding", "tokens/s", "ratio", "processor ratio", title=title)
    rows: list[dict[str, object]] = []
    for way in measured:
        used, padding = tokens_and_padding(batches[way.variant])
        rate, ratio, count = used / way.seconds, 1 / way.ratio, len(batches[way.variant])
        processor = f"{1 / way.processor_ratio:.3f}"
        table.add_row(way.variant, str(count), f"{padding:.3f}", f"{rate:,.0f}", f"{ratio:.3f}", processor)
        figures = {"batches": count, "padding": f"{padding:.3f}", "tokens": used}
        figures |= {"tokens_per_second": f"{rate:.0f}", "ratio": f"{ratio:.3f}"}
        figures |= {"processor_ratio": processor}
        rows.append(settings | {"way": way.variant} | figures)
    append_rows("packing.csv", rows)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

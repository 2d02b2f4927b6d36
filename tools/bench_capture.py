"""Time and peak memory of building a checkpoint's targets, against the bare forward pass of the same batch.

forward          model(…).logits, kept, nothing done with them                                    the yardstick
capture          targets of 16 + 8 tokens, gold, entropy, tail: hidden states at positions, the head in chunks
capture top-64   the same with 64 slots
capture top-p    16 + 8 tokens, cut at 0.95 of the mass
full logits      the plain way: log_softmax of all logits, topk, gold, entropy, tail by 1 − Σ

python -m tools.bench_capture [--vocabularies 32000 128256] [--tokens 2048] [--device cuda --dtype bfloat16]
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch

from cache_builder.capture.capture import begin_capture
from cache_builder.models.lm_head import verify_head
from cache_builder.targets.sampling import tail_uniforms
from tools.measuring import Deadline, Measured, make_model, measure, parameters, random_batch, report

VARIANTS = ("forward", "capture", "capture top-64", "capture top-p", "full logits")


def bench(
    vocab_size: int, share: float, args: argparse.Namespace, deadline: Deadline | None = None
) -> tuple[list[Measured], dict[str, object]]:
    """Measure every variant at one vocabulary size and one share of positions among tokens."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = make_model(vocab_size, args.hidden_size, args.layers, dtype, device).eval()
    batch = random_batch(vocab_size, args.tokens, share, device)
    positions = len(batch["label_M"])
    uniforms_MS = tail_uniforms(0, "bench", np.arange(positions), 8)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    verify_head(model, batch)

    @torch.no_grad()
    def forward() -> None:
        model(**inputs)

    def ours(top_k: int, top_p: float) -> None:
        begin_capture(
            model,
            batch,
            vocab_size,
            top_k=top_k,
            top_p=top_p,
            uniforms_MS=uniforms_MS,
            chunk_positions=args.chunk_positions,
        ).arrived()

    @torch.no_grad()
    def full_logits() -> None:
        logits_MV = model(**inputs).logits.flatten(0, 1)[batch["hidden_index_M"]].float()
        logp_MV = torch.log_softmax(logits_MV, dim=1)
        values_MK = logp_MV.topk(16, dim=1).values
        torch.log1p(-values_MK.exp().sum(1)), logp_MV.gather(1, batch["label_M"][:, None])
        (logp_MV.exp() * logp_MV).sum(1)

    variants: dict[str, Callable[[], None]] = {
        "forward": forward,
        "capture": lambda: ours(16, 1.0),
        "capture top-64": lambda: ours(64, 1.0),
        "capture top-p": lambda: ours(16, 0.95),
        "full logits": full_logits,
    }
    settings = {
        "dtype": args.dtype,
        "vocabulary": vocab_size,
        "hidden": args.hidden_size,
        "parameters": parameters(model),
        "tokens": args.tokens,
        "positions": positions,
    }
    variants = {name: variant for name, variant in variants.items() if name in args.variants}
    return measure(variants, args.rounds, device, deadline=deadline), settings


def main() -> None:
    """Measure at each vocabulary, with no prompt and with half of the tokens prompt; append to results/capture.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_256])
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--chunk-positions", type=int)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    for vocab_size in args.vocabularies:
        for share in (1.0, 0.5):
            measured, settings = bench(vocab_size, share, args)
            report(measured, "capture.csv", settings)


if __name__ == "__main__":
    main()

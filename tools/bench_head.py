"""Time and peak memory of the head and the loss alone, forward and backward, from given hidden states.

stock CE         cross_entropy(hidden @ weightᵀ), autograd          the yardstick, or else the first that is chosen
three matmuls    logits, and both gradients of them, in chunks of 512, and nothing else: the floor
distil           ours: forward KL on targets of 16 + 8 tokens, and CE, chunks of 512
distil 256       the same in chunks of 256
dense KL         log_softmax over the vocabulary against a dense teacher that costs nothing
checkpointed     our loss by autograd, chunks of 512 recomputed by torch.utils.checkpoint

python -m tools.bench_head [--vocabularies 32000 128256] [--positions 2048] [--device cuda --dtype bfloat16]
python -m tools.bench_head --hidden-size 4096 --positions 2048 --vocabularies 128256 --variants "dense KL" distil
                                    the shape of Liger's figures, as far as memory allows; 8,192 positions on a GPU
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cache_builder.models.lm_head import Head
from tools.bench_loss import random_targets, sparse_loss
from tools.measuring import Measured, measure, report
from trainer.loss.fused import distillation_loss

VARIANTS = ("stock CE", "three matmuls", "distil", "distil 256", "dense KL", "checkpointed")


def bench(vocab_size: int, args: argparse.Namespace) -> tuple[list[Measured], dict[str, object]]:
    """Measure every variant at one vocabulary size; also return what identifies the row."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    hidden_MD = torch.randn(args.positions, args.hidden_size, device=device, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(vocab_size, args.hidden_size, device=device, dtype=dtype).mul_(0.03).requires_grad_()
    label_M = torch.randint(vocab_size, (args.positions,), device=device)
    weight_M = torch.full((args.positions,), 0.5 / args.positions, device=device)
    targets = random_targets(args.positions, vocab_size, device, 0)
    teacher_MV = torch.randn(args.positions, vocab_size, device=device, dtype=dtype)

    def backward(loss: Tensor) -> None:
        loss.backward()
        hidden_MD.grad = weight_VD.grad = None

    @torch.no_grad()
    def three_matmuls() -> None:
        grad_hidden_MD, grad_weight_VD = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
        z_CV = torch.empty(512, vocab_size, device=device, dtype=dtype)
        for start in range(0, args.positions, 512):
            hidden_CD = hidden_MD[start : start + 512]
            logits_CV = torch.mm(hidden_CD, weight_VD.T, out=z_CV[: len(hidden_CD)])
            torch.mm(logits_CV, weight_VD, out=grad_hidden_MD[start : start + 512])
            grad_weight_VD.addmm_(logits_CV.T, hidden_CD)

    def distil(chunk_positions: int | None) -> None:
        head = Head(weight_VD, None, vocab_size)
        output = distillation_loss(
            hidden_MD, head, targets, label_M, weight_M, weight_M, chunk_positions=chunk_positions
        )
        backward(output.loss)

    def dense_kl() -> None:
        logq_MV = torch.log_softmax((hidden_MD @ weight_VD.T).float(), dim=1)
        logp_MV = torch.log_softmax(teacher_MV.float(), dim=1)
        backward(F.kl_div(logq_MV, logp_MV, log_target=True, reduction="batchmean"))

    def checkpointed() -> None:
        losses = [
            checkpoint(sparse_loss, hidden_MD[chunk], weight_VD, targets, label_M, chunk, use_reentrant=False)
            for chunk in (slice(start, start + 512) for start in range(0, args.positions, 512))
        ]
        backward(torch.stack(losses).sum() * 0.5 / args.positions)

    variants: dict[str, Callable[[], None]] = {
        "stock CE": lambda: backward(F.cross_entropy((hidden_MD @ weight_VD.T).float(), label_M)),
        "three matmuls": three_matmuls,
        "distil": lambda: distil(None),
        "distil 256": lambda: distil(256),
        "dense KL": dense_kl,
        "checkpointed": checkpointed,
    }
    settings = {
        "dtype": args.dtype,
        "vocabulary": vocab_size,
        "hidden": args.hidden_size,
        "positions": args.positions,
    }
    chosen = {name: variant for name, variant in variants.items() if name in args.variants}
    return measure(chosen, args.rounds, device), settings


def main() -> None:
    """Measure at each vocabulary, print the tables and append them to results/head.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_256])
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    for vocab_size in args.vocabularies:
        measured, settings = bench(vocab_size, args)
        report(measured, "head.csv", settings)


if __name__ == "__main__":
    main()

"""Everything of this project that a GPU may do otherwise than a CPU, in one command without a network.

correctness   capture and loss in bfloat16 against float64, of the same weights: plain, padded vocabulary, packed
fsdp          a model that FSDP2 shards over one process gives the loss of the same model whole
chunks        the fused loss by the positions of a chunk
loss          head and loss alone: ours, stock cross-entropy, dense KL; Liger's fused ones where it is installed
step          a training step: stock SFT, distillation (plain and compiled), a live teacher of 2.7 times the size
waiting       training from a cache through the Trainer: the share of waiting for data, with the thread and without
capture       a checkpoint's targets against the bare forward, of 0.5B- and 3B-shaped random models

Parts, their cases and the variants of a case begin in this order until `--minutes` are over; what there was no time or
no memory for is in the table, too. Exit status 1 where a check failed. Rows go to results/gpu.csv with the card's name.
`--device cpu` runs everything on tiny sizes, to see that it runs: no GPU has run it yet.

    python -m tools.gpu_check [--minutes 8] [--only correctness loss] [--device cpu]
"""

import argparse
import copy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cache_builder.capture.capture import begin_capture
from cache_builder.data.batching import Batch, collate
from cache_builder.data.packing import collate_packed
from cache_builder.models.lm_head import Head, hidden_states_at
from cache_builder.models.packed import packing_of
from cache_builder.targets.sampling import tail_uniforms
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tensors import to_torch
from tools import bench_capture, bench_loss, bench_trainer
from tools.bench_loss import random_targets
from tools.measuring import Deadline, Measured, append_rows, hardware, make_model, measure
from trainer.loss.forward import Objective, attach_objective
from trainer.loss.fused import distillation_loss

BF16_NATS, BF16_GRADIENT = 0.02, 0.05
"""What bfloat16's 8 bits may move: a log-probability on average, and a gradient by its length."""


@dataclass
class Check:
    """One run of the checks."""

    device: torch.device
    quick: bool
    """Tiny sizes."""
    deadline: Deadline
    rows: list[dict[str, object]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def note(self, part: str, case: str, what: str, value: float, at_most: float | None = None) -> None:
        """Keep a figure; above `at_most`, or no number, it is a failure."""
        passed = at_most is None or value <= at_most
        self.rows.append(
            {
                "part": part,
                "case": case,
                "what": what,
                "value": f"{value:.5g}",
                "at_most": "" if at_most is None else at_most,
            }
        )
        if not passed:
            self.failed.append(f"{part}, {case}: {what} is {value:.3g}, at most {at_most:g} expected")

    def note_measured(self, part: str, case: str, measured: list[Measured]) -> None:
        """Keep each variant's time and memory, and both against the first's; and what was left out."""
        for each in measured:
            self.note(part, case, f"{each.variant}: seconds", each.seconds)
            self.note(part, case, f"{each.variant}: time ratio", each.ratio)
            if each.peak_mib is not None:
                self.note(part, case, f"{each.variant}: peak MiB", each.peak_mib)
                if measured[0].peak_mib:
                    self.note(part, case, f"{each.variant}: memory ratio", each.peak_mib / measured[0].peak_mib)
        for variant, reason in self.deadline.left_out:
            self.leave_out(part, case, variant, reason)
        self.deadline.left_out.clear()

    def leave_out(self, part: str, case: str, what: str, reason: str = "time over") -> None:
        """Say in the table what was not measured."""
        self.rows.append({"part": part, "case": case, "what": what, "value": f"left out: {reason}", "at_most": ""})

    def has_time(self, part: str, case: str) -> bool:
        """Say whether there is time for a case; where there is none, it is left out."""
        if self.deadline.is_over:
            self.leave_out(part, case, "everything")
        return not self.deadline.is_over

    def measure(self, part: str, case: str, variants: dict[str, Callable[[], None]]) -> None:
        """Run variants side by side and keep their figures."""
        self.note_measured(part, case, measure(variants, self.rounds, self.device, deadline=self.deadline))

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3


def correctness(check: Check) -> None:
    """Compare bfloat16 on the device with float64 on the CPU."""
    size = (64, 2) if check.quick else (128, 4)
    for case, rows in (("plain", 1000), ("padded vocabulary", 1064), ("packed", 1000)):
        if not check.has_time("correctness", case):
            continue
        model = make_model(rows, *size, torch.bfloat16, torch.device("cpu")).eval()
        low, exact = copy.deepcopy(model).to(check.device), model.double()
        with torch.no_grad():  # exact in any precision; larger weights, so that what attention does shows in the logits
            for parameter in (*low.parameters(), *exact.parameters()):
                parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
        rng = np.random.default_rng(0)
        sequences = [(rng.integers(0, 1000, length), np.arange(length) > 3) for length in (60, 31, 17, 9, 40)]
        padded = collate(sequences, 0)
        batch = collate_packed(sequences, 0, packing_of(low, "packing")) if case == "packed" else padded
        options: dict[str, Any] = {"top_k": 16, "top_p": 1.0, "edges": (0, 300, 1000)}
        options["uniforms_MS"] = tail_uniforms(0, "check", np.arange(len(padded["label_M"])), 8)
        ours, theirs = (
            begin_capture(low, batch, 1000, **options).arrived(),
            begin_capture(exact, padded, 1000, **options).arrived(),
        )
        for name in ("gold", "entropy", "log_tail"):
            apart = float(np.abs(getattr(ours, name) - getattr(theirs, name)).mean())
            check.note("correctness", case, f"{name}, nats", apart, BF16_NATS)
        for name, (targets, weights) in {"distil": (to_torch(theirs), (0.5, 0.5)), "ce": (None, (0.0, 1.0))}.items():
            low_loss, low_grad = _loss_and_gradient(low, batch, targets, weights)
            loss, grad = _loss_and_gradient(exact, padded, targets, weights)
            check.note("correctness", case, f"{name} loss, nats", abs(low_loss - loss), BF16_NATS)
            apart = float((low_grad - grad).norm() / grad.norm())
            check.note("correctness", case, f"{name} gradient, relative", apart, BF16_GRADIENT)


def _loss_and_gradient(
    model: Any, batch: Batch, targets: Targets[Tensor] | None, weights: tuple[float, float]
) -> tuple[float, Tensor]:
    """Return a batch's mean loss and its gradient with respect to the head."""
    model.zero_grad()
    hidden_MD, head = hidden_states_at(model, batch, 1000)
    label_M = batch["label_M"].to(hidden_MD.device)
    share_M = torch.full(label_M.shape, 1 / len(label_M), device=hidden_MD.device)
    placed = None if targets is None else targets.to(hidden_MD.device)
    loss = distillation_loss(hidden_MD, head, placed, label_M, weights[0] * share_M, weights[1] * share_M).loss
    loss.backward()
    gradient = model.get_output_embeddings().weight.grad[:1000]
    return loss.item(), gradient.double().cpu()


def fsdp(check: Check) -> None:
    """Compare the loss of a sharded model with that of the same model whole."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    backend = "nccl" if check.device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        losses = []
        for sharded in (False, True):
            model = make_model(1000, 64, 2, torch.float32, check.device).eval()
            attach_objective(model, 1000)
            if sharded:
                for layer in model.model.layers:
                    fully_shard(layer)
                fully_shard(model)
            rng = np.random.default_rng(0)
            sequences = [(rng.integers(0, 1000, length), np.arange(length) > 3) for length in (60, 31, 17)]
            batch = {name: value.to(check.device) for name, value in collate(sequences, 0).items()}  # type: ignore[attr-defined]
            share_M = torch.full(batch["label_M"].shape, 1 / len(batch["label_M"]), device=check.device)
            loss = model(**batch, objective=Objective(None, 0 * share_M, share_M)).loss
            loss.backward()
            losses.append(loss.item())
    finally:
        distributed.destroy_process_group()
    check.note("fsdp", "one process", "loss, nats", abs(losses[1] - losses[0]), 1e-4)


def _head(check: Check, vocab_size: int, hidden: int, positions: int) -> tuple[Tensor, Head, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden_MD = torch.randn(positions, hidden, device=check.device, dtype=check.dtype, requires_grad=True)
    weight_VD = torch.randn(vocab_size, hidden, device=check.device, dtype=check.dtype).mul_(0.03).requires_grad_()
    label_M = torch.randint(vocab_size, (positions,), device=check.device)
    share_M = torch.full((positions,), 0.5 / positions, device=check.device)
    return hidden_MD, Head(weight_VD, None, vocab_size), label_M, share_M


def chunks(check: Check) -> None:
    """Measure the fused loss by its chunks, for a small and a large hidden size."""
    vocab_size, positions = (1000, 128) if check.quick else (151_936, 8192)
    for hidden in (64,) if check.quick else (896, 4096):
        case = f"V {vocab_size}, D {hidden}"
        if not check.has_time("chunks", case):
            continue
        hidden_MD, head, label_M, share_M = _head(check, vocab_size, hidden, positions)
        targets = random_targets(positions, vocab_size, check.device, 32)

        def run(chunk: int, inputs: Any = (hidden_MD, head, targets, label_M, share_M, share_M)) -> None:
            distillation_loss(*inputs, chunk_positions=chunk).loss.backward()
            inputs[0].grad = inputs[1].weight_VD.grad = None

        sizes = (32, 64) if check.quick else (1024, 512, 2048, 4096)
        variants: dict[str, Callable[[], None]] = {f"{size} positions": lambda size=size: run(size) for size in sizes}
        check.measure("chunks", case, variants)


def loss(check: Check) -> None:
    """Measure head and loss alone, at the shapes for which other kernels' figures are published."""
    for vocab_size in (1000,) if check.quick else (32_000, 128_256, 262_144):
        hidden, positions = (64, 128) if check.quick else (4096, 8192)
        case = f"M {positions}, V {vocab_size}, D {hidden}"
        if not check.has_time("loss", case):
            continue
        hidden_MD, head, label_M, share_M = _head(check, vocab_size, hidden, positions)
        weight_VD, targets = head.weight_VD, random_targets(positions, vocab_size, check.device, 32)
        teacher_VD = torch.randn_like(weight_VD).mul_(0.03)

        def backward(value: Tensor, inputs: Any = (hidden_MD, weight_VD)) -> None:
            value.backward()
            inputs[0].grad = inputs[1].grad = None

        def dense(inputs: Any = (hidden_MD, weight_VD, teacher_VD)) -> Tensor:
            logq_MV = torch.log_softmax((inputs[0] @ inputs[1].T).float(), dim=1)
            with torch.no_grad():
                logp_MV = torch.log_softmax((inputs[0] @ inputs[2].T).float(), dim=1)
            return F.kl_div(logq_MV, logp_MV, log_target=True, reduction="batchmean")

        ours = hidden_MD, head, targets, label_M, share_M, share_M
        stock = hidden_MD, weight_VD, label_M
        variants: dict[str, Callable[[], None]] = {
            "stock CE": lambda stock=stock, back=backward: back(
                F.cross_entropy((stock[0] @ stock[1].T).float(), stock[2])
            ),
            "distil": lambda ours=ours, back=backward: back(distillation_loss(*ours).loss),
            "dense KL": lambda dense=dense, back=backward: back(dense()),
        }
        variants |= _ligers(hidden_MD, weight_VD, teacher_VD, label_M, backward)
        check.measure("loss", case, variants)


def _ligers(
    hidden_MD: Tensor, weight_VD: Tensor, teacher_VD: Tensor, label_M: Tensor, backward: Callable[[Tensor], None]
) -> dict[str, Callable[[], None]]:
    """Return Liger's fused losses, where it is installed and there is a GPU; its teacher's logits are made, too."""
    if hidden_MD.device.type != "cuda":
        return {}
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[import-not-found]
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]
    except ImportError:
        return {}
    ce, jsd = LigerFusedLinearCrossEntropyLoss(), LigerFusedLinearJSDLoss()
    return {
        "Liger CE": lambda: backward(ce(weight_VD, hidden_MD, label_M)),
        "Liger JSD": lambda: backward(jsd(hidden_MD, weight_VD, hidden_MD.detach(), teacher_VD, label_M)),
    }


def captures(check: Check) -> None:
    """Measure capture against the bare forward pass."""
    shapes = {"tiny": (64, 2)} if check.quick else {"0.5B": (896, 24), "3B": (2048, 36)}
    for name, (hidden, layers) in shapes.items():
        for vocab_size in (2000,) if check.quick else (32_000, 128_256, 151_936, 262_144):
            args = argparse.Namespace(device=str(check.device), dtype="bfloat16", hidden_size=hidden, layers=layers)
            args.variants = bench_capture.VARIANTS
            args.tokens, args.chunk_positions, args.rounds = 1024 if check.quick else 8192, None, check.rounds
            for share in (1.0, 0.5):
                case = f"{name}, V {vocab_size}, {share:.0%} completions"
                if check.has_time("capture", case):
                    measured, _ = bench_capture.bench(vocab_size, share, args, check.deadline)
                    check.note_measured("capture", case, measured)


def steps(check: Check) -> None:
    """Measure a training step of a 0.5B-shaped student."""
    args = argparse.Namespace(device=str(check.device), dtype="bfloat16", hidden_size=896, layers=24, tokens=8192)
    if check.quick:
        args.hidden_size, args.layers, args.tokens = 128, 2, 1024
    args.without_online, args.completion_share, args.chunk_positions = False, 1.0, None
    args.blocks, args.rounds, args.compiled = [0, 32], check.rounds, check.device.type == "cuda"
    vocab_size = 2000 if check.quick else 151_936
    measured, _ = bench_loss.bench(vocab_size, args, check.deadline)
    check.note_measured("step", f"V {vocab_size}, D {args.hidden_size}", measured)


def waiting(check: Check) -> None:
    """Measure training through the Trainer, and what of it is waiting for data."""
    args = argparse.Namespace(vocabulary=151_936, hidden_size=896, layers=8, sequences=320, rounds=1)
    if check.quick:
        args.vocabulary, args.hidden_size, args.layers, args.sequences = 1000, 64, 1, 64
    args.workers, args.latency = 0, 0.0
    case = f"V {args.vocabulary}, D {args.hidden_size}, {args.sequences} sequences"
    with tempfile.TemporaryDirectory() as folder:
        measured, shares = bench_trainer.bench(args, Path(folder))
    check.note_measured("waiting", case, measured)
    for name, share in shares.items():
        check.note("waiting", case, f"{name}: share of the time", share)


PARTS: dict[str, Callable[[Check], None]] = {
    "correctness": correctness,
    "fsdp": fsdp,
    "chunks": chunks,
    "loss": loss,
    "step": steps,
    "waiting": waiting,
    "capture": captures,
}


def main() -> int:
    """Run the parts, print what they found, and append it to results/gpu.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, as always on a CPU")
    parser.add_argument("--without-csv", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; to see that the checks run at all, give --device cpu")
    quick = args.quick or args.device == "cpu"
    check = Check(torch.device(args.device), quick, Deadline(time.monotonic() + 60 * args.minutes))
    console = Console(width=120)
    for name in args.only:
        if not check.has_time(name, "all of it"):
            continue
        began = time.monotonic()
        try:
            PARTS[name](check)
        except Exception:  # one part that breaks must not take the others' figures along
            check.failed.append(f"{name} broke:\n{traceback.format_exc()}")
        if args.device == "cuda":
            torch.cuda.empty_cache()
        console.print(f"{name}: {time.monotonic() - began:.1f} s", highlight=False)
    table = Table("part", "case", "what", "value", "at most", title=hardware())
    for row in check.rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    if check.rows and not args.without_csv:
        settings = {"device": args.device, "quick": quick, "torch": torch.__version__}
        append_rows("gpu.csv", [settings | row for row in check.rows])
    for failure in check.failed:
        console.print(f"FAILED {failure}", markup=False, highlight=False)
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())

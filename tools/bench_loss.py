"""Time and peak memory of one training step, optimizer included, by the ways a student can be trained.

sft              the stock step: model(labels=…), full logits, autograd                           the yardstick
distil           ours: targets of 16 + 8 tokens, forward KL and CE, gradients written in the forward
distil reverse   ours with reverse KL (the tail as one outcome)
distil G blocks  ours with the tail by G blocks of ids in place of the samples, for each of --blocks (0: one bucket)
distil adaptive  ours with a mixture of the largest G of blocks and the samples, weighed at each position
distil pooled    the same, weighed alike at all positions of a step
distil compiled  ours with the layers under torch.compile (with --compiled; so also the stock step, sft compiled)
dense KL         log_softmax over the vocabulary against a dense teacher that costs nothing
checkpointed     the sparse KL by autograd, chunks of 512 recomputed by torch.utils.checkpoint
online           a live teacher 2.7 times the student's size, then the dense KL

python -m tools.bench_loss [--vocabularies 32000 128256] [--tokens 2048] [--device cuda --dtype bfloat16]
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cache_builder.models.lm_head import hidden_states_at
from cache_builder.targets.blocks import block_edges
from cache_builder.targets.sparse import Targets
from cache_builder.targets.tail import Tail
from tools.measuring import Deadline, Measured, make_model, measure, parameters, random_batch, report
from trainer.loss.fused import distillation_loss

TOP_K, TAIL_SAMPLES = 16, 8


def bench(
    vocab_size: int, args: argparse.Namespace, deadline: Deadline | None = None
) -> tuple[list[Measured], dict[str, object]]:
    """Measure every variant at one vocabulary size; also return what identifies the row."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    student = make_model(vocab_size, args.hidden_size, args.layers, dtype, device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    teacher = None
    if not args.without_online:
        teacher_hidden = args.hidden_size * 7 // 4 // 64 * 64
        one, two = (parameters(make_model(vocab_size, teacher_hidden, n, dtype, device)) for n in (1, 2))
        layers = max(1, round((2.7 * parameters(student) - (2 * one - two)) / (two - one)))
        teacher = make_model(vocab_size, teacher_hidden, layers, dtype, device, seed=1).eval().requires_grad_(False)

    batch = random_batch(vocab_size, args.tokens, args.completion_share, device)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    hidden_index_M, label_M = batch["hidden_index_M"], batch["label_M"]
    positions = len(label_M)
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[hidden_index_M + 1] = label_M
    weight_M = torch.full((positions,), 0.5 / positions, device=device)
    targets = {blocks: random_targets(positions, vocab_size, device, blocks) for blocks in {0, *args.blocks}}
    most = max(args.blocks)
    free_teacher_MV = torch.randn(positions, vocab_size, device=device, dtype=dtype)

    def step(compute_loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            compute_loss().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    def distil(divergence: str, blocks: int = 0, tail: Tail | None = None) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            hidden_MD, head = hidden_states_at(student, batch, vocab_size)
            return distillation_loss(
                hidden_MD,
                head,
                targets[blocks],
                label_M,
                weight_M,
                weight_M,
                divergence=divergence,
                tail=tail,
                chunk_positions=args.chunk_positions,
            ).loss

        return loss

    def dense(teacher_logits_MV: Tensor) -> Tensor:
        logits_MV = student(**inputs).logits.flatten(0, 1)[hidden_index_M].float()
        logq_MV = torch.log_softmax(logits_MV, dim=1)
        logp_MV = torch.log_softmax(teacher_logits_MV.float(), dim=1)
        return F.kl_div(logq_MV, logp_MV, log_target=True, reduction="batchmean")

    def online() -> Tensor:
        with torch.no_grad():
            logits_MV = teacher(**inputs).logits.flatten(0, 1)[hidden_index_M]
        return dense(logits_MV)

    def checkpointed() -> Tensor:
        hidden_MD, head = hidden_states_at(student, batch, vocab_size)
        losses = [
            checkpoint(sparse_loss, hidden_MD[chunk], head.weight_VD, targets[0], label_M, chunk, use_reentrant=False)
            for chunk in (slice(start, start + 512) for start in range(0, positions, 512))
        ]
        return torch.stack(losses).sum() * 0.5 / positions

    variants = {
        "sft": step(lambda: student(**inputs, labels=labels).loss),
        "distil": step(distil("forward_kl")),
        "distil reverse": step(distil("reverse_kl")),
        **{
            f"distil {blocks} blocks": step(distil("forward_kl", blocks, Tail(by_block=blocks > 0)))
            for blocks in args.blocks
        },
        "distil adaptive": step(distil("forward_kl", most, Tail(by_block=True, sample_weight=None))),
        "distil pooled": step(distil("forward_kl", most, Tail(by_block=True, sample_weight=0.5, pooled=True))),
        "dense KL": step(lambda: dense(free_teacher_MV)),
        "checkpointed": step(checkpointed),
    }
    if args.compiled:
        variants["sft compiled"] = step(torch.compile(lambda: student(**inputs, labels=labels).loss))
        variants["distil compiled"] = step(torch.compile(distil("forward_kl")))
    if teacher is not None:
        variants["online"] = step(online)
    measured = measure(variants, args.rounds, device, deadline=deadline)
    settings = {
        "dtype": args.dtype,
        "vocabulary": vocab_size,
        "hidden": args.hidden_size,
        "tokens": args.tokens,
        "positions": positions,
        "student_parameters": parameters(student),
        "teacher_parameters": 0 if teacher is None else parameters(teacher),
    }
    return measured, settings


def random_targets(positions: int, vocab_size: int, device: torch.device, blocks: int) -> Targets:
    """Targets of random ids with most of the mass in the support, and the tail's divided among blocks."""
    generator = torch.Generator().manual_seed(0)
    ids_MX = torch.randint(vocab_size, (positions, TOP_K + TAIL_SAMPLES), generator=generator)
    logp_MO = torch.log_softmax(torch.randn(positions, TOP_K + 1, generator=generator), 1).sort(1, True).values
    entropy_M = torch.full((positions,), 2.0)
    targets = Targets(ids_MX[:, :TOP_K], logp_MO[:, :-1], ids_MX[:, TOP_K:], logp_MO[:, -1], -entropy_M, entropy_M)
    if blocks:
        share_MG = torch.log_softmax(torch.randn(positions, blocks, generator=generator), 1)
        targets.log_blocks = share_MG + targets.log_tail[:, None]
        targets.log_collision = torch.full((positions, 1), -4.0)
        targets.edges = block_edges(blocks, vocab_size)
    return targets.to(device)


def sparse_loss(hidden_CD: Tensor, weight_VD: Tensor, targets: Targets, label_M: Tensor, chunk: slice) -> Tensor:
    """The same loss as ours on one chunk, by autograd."""
    logq_CV = torch.log_softmax((hidden_CD @ weight_VD.T).float(), dim=1)
    p_CK, p_tail_C = targets.logp[chunk].exp(), targets.log_tail[chunk].exp()
    support_C = (p_CK * logq_CV.gather(1, targets.ids[chunk])).sum(1)
    tail_C = p_tail_C * logq_CV.gather(1, targets.samples[chunk]).mean(1)
    return -(support_C + tail_C + logq_CV.gather(1, label_M[chunk, None])[:, 0]).sum()


def main() -> None:
    """Measure at each vocabulary, print the tables and append them to results/loss.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_256])
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--completion-share", type=float, default=1.0)
    parser.add_argument("--chunk-positions", type=int)
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 16, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--without-online", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()
    for vocab_size in args.vocabularies:
        measured, settings = bench(vocab_size, args)
        report(measured, "loss.csv", settings)


if __name__ == "__main__":
    main()

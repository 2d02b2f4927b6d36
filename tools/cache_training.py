"""Small students trained to the end from each kind of target, against the same training from the full distribution.

    a small teacher, as it is and sharpened ─▶ p at every position of a few rows ─▶ a target, drawn and rounded once
    a student from random weights ─▶ 64 passes, gradient q − p̂ ─▶ KL(p‖q) for the whole p, on these rows and on others

    python -m tools.cache_training FOLDER --texts FILE… [--seeds 5] [--passes 64]
    python -m tools.cache_training FOLDER --unsaid          nats that slots and blocks leave unsaid, by number of slots
    python -m tools.cache_training --table                  means and deviations over the seeds that have a row

A small corpus and many passes, so that what can be learned by heart is. Targets are those of tools/cache_curve, with
all ids of the vocabulary as columns; `full` is p itself, `full, 20 % of positions` only those at which the teacher's
entropy is highest. A student is one row of results/cache_training.csv, appended when it is done; what has a row is
skipped. FOLDER keeps the teacher.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import one_hot

from tools.cache_curve import texts
from tools.cache_curve.facts import DRAWS, Facts, block_of_id, read
from tools.cache_curve.pairs import small_model, trained
from tools.cache_curve.stored import Kept, Target, keep, missing, noise
from tools.measuring import RESULTS, append_rows
from trainer.methods.pooled import PooledWeight

CSV = "cache_training.csv"
PASSES = (1, 4, 16, 64)
SHARPENING = {"flat": 1.0, "sharp": 2.0}
"""What the teacher's logits are multiplied with, so that its tail is large or small."""
ROWS, HELD_OUT_ROWS, BATCH_ROWS = 8, 8, 2
VOCABULARY, WIDTH, LEARNING_RATE = 2048, 96, 3e-3
KEPT_SHARE = 0.2
TARGETS = {
    target.label: target
    for target in (
        Target(16),
        Target(16, "samples", 8),
        Target(16, blocks=32, block_steps=2),
        Target(128, blocks=32, block_steps=2),
        Target(12, "pooled", 4, 32, block_steps=2),
        Target(12, "pooled", 8, 24, block_steps=2),
        Target(12, "pooled", 8, 32, block_steps=2),
        Target(0, "samples", 12, peer="RS-KD, 12 draws"),
        Target(16, "adaptive", 8),
        Target(16, blocks=16),
        Target(16, "none", peer="top-16, renormalised"),
    )
}
FULL, FEWER = "full", "full, 20 % of positions"


@dataclass(frozen=True)
class Rows:
    """Token rows and what the teacher says at their positions."""

    tokens: Tensor
    """[rows, T]"""
    p: Tensor
    """[rows, T − 1, V]"""


class Stored:
    """A target of every row, drawn and rounded once, as a cache keeps it."""

    def __init__(self, target: Target, rows: Rows, seed: int) -> None:
        vocabulary = rows.p.shape[2]
        self.target, self.columns_V = target, torch.arange(vocabulary)
        mean_tail_V = rows.p.flatten(0, 1).mean(0)
        self.block_V = block_of_id(target.edges, target.blocks, mean_tail_V)
        self.maps = {target.map: one_hot(self.block_V, target.blocks).float()}
        generator = torch.Generator().manual_seed(seed)
        self.pooled = PooledWeight()
        self.teacher: list[Facts] = []
        self.kept: list[Kept] = []
        for p_CV, label_C in zip(rows.p, rows.tokens[:, 1:], strict=True):
            uniforms = torch.rand(len(p_CV), 2 * DRAWS, generator=generator)
            facts = read(p_CV.clone(), label_C, self.maps, self.columns_V, uniforms_CS=uniforms[:, DRAWS:])
            self.teacher.append(facts)
            self.kept.append(keep(target, facts, self.block_V, uniforms[:, :DRAWS]))

    def missing(self, chosen: Tensor, q: Tensor) -> Tensor:
        """Return p − p̂ [rows, C, V] of a step's rows for a student's probabilities; a pooled λ moves with each step."""
        pooled = self.target.tail == "pooled"
        at_0, *at_1 = (
            torch.stack([self._missing(int(row), q_CV, weight) for row, q_CV in zip(chosen, q, strict=True)])
            for weight in ((0.0, 1.0) if pooled else (0.0,))
        )
        if not pooled:
            return at_0
        weight = self.pooled.weight
        difference_V = (at_0 - at_1[0]).flatten(0, 1).sum(0)
        variance = sum(float(noise(self.target, self.kept[int(row)]).sum()) for row in chosen)
        self.pooled.update(float(difference_V.square().sum()), variance)
        return at_0.lerp(at_1[0], weight)

    def _missing(self, row: int, q_CV: Tensor, weight: float) -> Tensor:
        teacher, kept = self.teacher[row], self.kept[row]
        label_C = torch.zeros(len(q_CV), dtype=torch.int64)
        student = read(q_CV.clone(), label_C, self.maps, self.columns_V, teacher=teacher)
        p_CV, places = teacher.columns_CX, self.columns_V
        return missing(self.target, kept, student, self.columns_V, places, p_CV, self.block_V, weight)


def train(name: str, rows: Rows, held_out: Rows, seed: int, passes: int) -> dict[str, float]:
    """Train a student; return KL(p‖q) in nats on both kinds of rows after each of PASSES."""
    student = small_model(rows.p.shape[2], WIDTH, 2, seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    stored = Stored(TARGETS[name], rows, seed) if name in TARGETS else None
    weight = torch.ones(rows.p.shape[:2])
    if name == FEWER:
        entropy = -torch.special.xlogy(rows.p, rows.p).sum(2)
        weight = (entropy >= entropy.quantile(1 - KEPT_SHARE)).float() / KEPT_SHARE
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, float] = {}
    for number in range(1, passes + 1):
        for chosen in torch.randperm(len(rows.tokens), generator=generator).split(BATCH_ROWS):
            logits = student(input_ids=rows.tokens[chosen]).logits[:, :-1]
            q = logits.detach().softmax(2)
            gradient = q - rows.p[chosen]
            if stored is not None:
                gradient += stored.missing(chosen, q)
            logits.backward(gradient * weight[chosen][..., None] / gradient.shape[:2].numel())
            optimizer.step()
            optimizer.zero_grad()
        if number in PASSES:
            found |= {f"train_{number}": divergence(student, rows), f"held_out_{number}": divergence(student, held_out)}
    return found


@torch.no_grad()
def divergence(student: torch.nn.Module, rows: Rows) -> float:
    """Return the mean KL(p‖q) over all positions."""
    total = 0.0
    for tokens, p_CV in zip(rows.tokens, rows.p, strict=True):
        logq_CV = student(input_ids=tokens[None]).logits[0, :-1].log_softmax(1)
        total += float((torch.special.xlogy(p_CV, p_CV) - p_CV * logq_CV).sum())
    return total / rows.p.shape[:2].numel()


def teacher_says(folder: Path, files: list[Path], steps: int) -> tuple[Tensor, Tensor]:
    """Train the teacher unless it was; return tokens [rows, T] and its logits [rows, T − 1, V]."""
    path = folder / "cache_training.safetensors"
    if not path.is_file():
        stream = texts.stream(files, VOCABULARY)
        whole = stream[0] >= 0
        teacher = trained(small_model(VOCABULARY, 192, 4, 0), [(row, whole) for row in stream], steps, 8, 2e-3)
        tokens = torch.from_numpy(stream[:: len(stream) // (ROWS + HELD_OUT_ROWS)][: ROWS + HELD_OUT_ROWS])
        with torch.no_grad():
            logits = teacher(input_ids=tokens).logits[:, :-1]
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": tokens.contiguous(), "logits": logits.contiguous()}, path)
    stored = load_file(path)
    return stored["tokens"], stored["logits"]


def unsaid(rows: Rows, top_k: int, blocks: int) -> float:
    """Return KL(p‖p̂) in nats, p̂ within a block of the tail being the rows' own mean: what no record of slots and masses
    says, even to a student that has learned where a block's mass lies on average.
    """
    p_MV = rows.p.flatten(0, 1).double()
    tail_MV = p_MV.scatter(1, p_MV.topk(top_k, dim=1).indices, 0.0)
    block_V = block_of_id("log", blocks, tail_MV.mean(0))
    mass_MG = tail_MV @ one_hot(block_V, blocks).double()
    mean_MV = tail_MV.mean(0).where(tail_MV > 0, 0.0)  # no id of the position's own slots is in its tail
    share_MV = mean_MV / (mean_MV @ one_hot(block_V, blocks).double()).clamp(min=1e-300)[:, block_V]
    filled_MV = mass_MG[:, block_V] * share_MV
    return float((torch.special.xlogy(tail_MV, tail_MV) - torch.special.xlogy(tail_MV, filled_MV)).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the teacher is kept")
    parser.add_argument(
        "--texts", type=Path, nargs="+", help="ShareGPT, JSON or text files that the teacher learns from"
    )
    parser.add_argument("--targets", nargs="+", choices=[FULL, *TARGETS, FEWER], default=[FULL, *TARGETS, FEWER])
    parser.add_argument("--steps", type=int, default=128, help="of the teacher")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=64)
    parser.add_argument("--unsaid", action="store_true", help="train no student")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    if args.table:
        print(table(_rows(args.passes)))
        return
    if args.folder is None or args.texts is None:
        parser.error("FOLDER and --texts are needed to train")
    tokens, logits = teacher_says(args.folder, args.texts, args.steps)
    done = {(row["teacher"], row["target"], row["seed"]) for row in _rows(args.passes)}
    for seed in range(args.seeds):
        for state, factor in SHARPENING.items():
            p = (logits * factor).softmax(2)
            order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
            rows, held_out = (Rows(tokens[part], p[part]) for part in order.split([ROWS, HELD_OUT_ROWS]))
            if args.unsaid:
                found = {top_k: round(unsaid(rows, top_k, 32), 3) for top_k in (8, 12, 16, 64, 128, 256, 512, 1024)}
                print(f"{state}: nats unsaid by slots beside 32 blocks: {found}")
                continue
            tail = 1 - float(rows.p.topk(16, dim=2).values.sum(2).mean())
            for name in args.targets:
                if (state, name, str(seed)) not in done:
                    found = train(name, rows, held_out, seed, args.passes)
                    row: dict[str, object] = {"teacher": state, "tail_mass": f"{tail:.3f}", "passes": args.passes}
                    row |= {"seed": seed, "target": name} | {key: f"{value:.4f}" for key, value in found.items()}
                    append_rows(CSV, [row])
                    print(row, flush=True)


def table(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table: KL on training rows / on others after 16 and 64 passes, mean ± deviation over seeds."""
    columns = [(state, passes) for state in SHARPENING for passes in PASSES[2:]]
    lines = ["| target | seeds | " + " | ".join(f"{state}: {passes} passes" for state, passes in columns) + " |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for target in dict.fromkeys([FULL, *TARGETS, FEWER, *(row["target"] for row in rows)]):
        of = {
            state: [row for row in rows if (row["teacher"], row["target"]) == (state, target)] for state in SHARPENING
        }
        if any(of.values()):
            cells = [
                " / ".join(_spread(of[state], f"{on}_{n}") for on in ("train", "held_out")) for state, n in columns
            ]
            seeds = " / ".join(str(len(found)) for found in of.values())
            lines.append(f"| {target} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(rows: list[dict[str, str]], column: str) -> str:
    values = [float(row[column]) for row in rows]
    if not values:
        return "–"
    digits = 2 if mean(values) >= 0.1 else 3
    found = [mean(values), *([stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{value:.{digits}f}".removeprefix("0") for value in found)


def _rows(passes: int) -> list[dict[str, str]]:
    path = RESULTS / CSV
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["passes"] == str(passes)]


if __name__ == "__main__":
    main()

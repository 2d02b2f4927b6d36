"""Degrees and bytes of every target on the pairs that `pairs.py` made.

    python -m tools.cache_curve.measure FOLDER/pubmed [--students noise …] [--grid short] [--positions 2048]

Head gradients over groups of 64, 512, 4,096 and all positions, as many as --positions allows; the hidden states' at the
first 256, over the whole vocabulary. Bytes are those of the encoded records on 4,096 positions, with the model's own
ids and with ids spread over 128,256. Appended to results/cache_curve.csv row by row; what has a row for the same pair,
student, target and number of positions is not measured again.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import one_hot

from tools.cache_curve.angles import CHUNK, HeadAngles, PooledAngles, angle
from tools.cache_curve.facts import DRAWS, Facts, block_of_id, choose_columns, head_of, read
from tools.cache_curve.grid import GRIDS
from tools.cache_curve.stored import (
    CHUNK_POSITIONS,
    Kept,
    Target,
    bytes_per_position,
    head_of_kept,
    keep,
    missing,
    noise,
    record_planes,
)
from tools.measuring import RESULTS, append_rows

GROUPS = (512, 4096)
SIZES = ("hidden", "64", "512", "4096", "all")
HIDDEN_POSITIONS = 256
FREQUENCY_POSITIONS = 512
CSV = "cache_curve.csv"


@dataclass(frozen=True)
class Columns:
    """Where in the vocabulary gradients are compared."""

    ids_X: Tensor
    weight_X: Tensor
    place_V: Tensor

    @classmethod
    def of(cls, ids_X: Tensor, weight_X: Tensor, vocabulary: int) -> "Columns":
        """Take ids, rising, and how often each counts."""
        place_V = torch.full((vocabulary,), len(ids_X))
        place_V[ids_X] = torch.arange(len(ids_X))
        return cls(ids_X, weight_X, place_V)


class Pair:
    """A teacher, read once."""

    def __init__(self, folder: Path, positions: int, targets: list[Target]) -> None:
        stored = load_file(folder / "teacher.safetensors")
        self.folder, self.head_VD, self.label_N, self.hidden_ND = (
            folder,
            stored["head"],
            stored["label"],
            stored["hidden"],
        )
        available = len(self.hidden_ND) // CHUNK * CHUNK
        self.positions = min(positions, available)
        # As a short pass over a probe would find it before a cache is built.
        some_CV = probabilities(self.hidden_ND[-FREQUENCY_POSITIONS:], self.head_VD)
        mean_tail_V = some_CV.scatter(1, some_CV.topk(16, dim=1).indices, 0.0).mean(0)
        vocabulary = len(mean_tail_V)
        self.columns = Columns.of(*choose_columns(some_CV.mean(0)), vocabulary)
        self.everywhere = Columns.of(torch.arange(vocabulary), torch.ones(vocabulary), vocabulary)
        self.blocks_V = {target.map: block_of_id(target.edges, target.blocks, mean_tail_V) for target in targets}
        self.maps_VG = {name: one_hot(block_V, int(name.split()[1])).float() for name, block_V in self.blocks_V.items()}
        self.uniforms = torch.rand(available, 2 * DRAWS, generator=torch.Generator().manual_seed(0))
        self.teacher = [
            read(
                probabilities(self.hidden_ND[chunk], self.head_VD),
                self.label_N[chunk],
                self.maps_VG,
                self.columns.ids_X,
                uniforms_CS=self.uniforms[chunk, DRAWS:],
            )
            for chunk in chunks(max(self.positions, min(CHUNK_POSITIONS, available)))
        ]
        self.entropy = float(torch.cat([facts.entropy_C for facts in self.teacher]).mean())
        self.top_16 = float(torch.cat([facts.at_ids_CT[:, :16].sum(1) for facts in self.teacher]).mean())

    def keep(self, target: Target) -> list[Kept]:
        """Return what is kept of every chunk that was read."""
        uniforms = self.uniforms[: len(self.teacher) * CHUNK, :DRAWS].split(CHUNK)
        return [keep(target, f, self.blocks_V[target.map], u) for f, u in zip(self.teacher, uniforms, strict=True)]

    def bytes(self, target: Target, kept: list[Kept], *, large: bool) -> float:
        """Return bytes of a position's record."""
        if target.peer:
            return target.peer_bytes
        vocabulary = len(self.head_VD)
        parts = [record_planes(target, k, f, vocabulary, large=large) for k, f in zip(kept, self.teacher, strict=True)]
        return bytes_per_position(np.concatenate(parts, axis=1))


class Student:
    """A student at the positions that are measured, read on its teacher's slots and draws."""

    def __init__(self, pair: Pair, name: str) -> None:
        stored = load_file(pair.folder / f"{name}.safetensors")
        self.pair, self.head_VD = pair, stored.get("head", pair.head_VD)
        self.hidden = [stored["hidden"][chunk] for chunk in chunks(pair.positions)]
        root_X = pair.columns.weight_X.sqrt()
        self.facts, self.full_CX, self.full_XD, kl = [], [], [], []
        for number, chunk in enumerate(chunks(pair.positions)):
            teacher, hidden_CD = pair.teacher[number], self.hidden[number]
            p_CV = probabilities(pair.hidden_ND[chunk], pair.head_VD)
            logq_CV = (hidden_CD @ self.head_VD.T).log_softmax(1)
            kl.append(-(p_CV * logq_CV).sum(1) - teacher.entropy_C)
            q_CV = logq_CV.exp_()
            if number == 0:
                self.first_p, self.first_q = p_CV[:HIDDEN_POSITIONS].clone(), q_CV[:HIDDEN_POSITIONS].clone()
            self.facts.append(read(q_CV, pair.label_N[chunk], pair.maps_VG, pair.columns.ids_X, teacher=teacher))
            self.full_CX.append((self.facts[-1].columns_CX - teacher.columns_CX) * root_X)
            self.full_XD.append(self.full_CX[-1].T @ hidden_CD)
        self.first_full = (self.first_q - self.first_p) @ self.head_VD
        self.kl = float(torch.cat(kl).mean())

    def degrees(self, target: Target, kept: list[Kept]) -> dict[str, float]:
        """Return the angles of a target: `hidden`, and by group size, `all` of the positions the largest.

        A pooled target has each group size's own λ, and that of 512 positions for the hidden states.
        """
        pair = self.pair
        sizes = sorted({*(size for size in GROUPS if size <= pair.positions), pair.positions})
        errors = [(target, 0.0), (target, 1.0)] if target.tail == "pooled" else [(target, 0.0)]
        pooled = PooledAngles(sizes, pair.columns.weight_X)
        plain = HeadAngles(sizes, pair.columns.weight_X)
        for number, facts in enumerate(self.facts):
            p_CX = pair.teacher[number].columns_CX
            full = self.full_CX[number], self.full_XD[number]
            missing_CX = [self._missing(*error, kept[number], facts, pair.columns, p_CX) for error in errors]
            if len(errors) > 1:
                pooled.add(*full, (missing_CX[0], missing_CX[1]), noise(target, kept[number]), self.hidden[number])
            else:
                plain.add(*full, missing_CX[0], self.hidden[number])
        weight = pooled.weight(CHUNK) if len(errors) > 1 else 0.0
        rows = len(self.first_p)
        first = self._missing(
            target,
            weight,
            head_of_kept(kept[0], rows),
            head_of(self.facts[0], rows, self.first_q),
            pair.everywhere,
            self.first_p,
        )
        means = pooled.means() if len(errors) > 1 else plain.means()
        by_size = {str(size): means[size] for size in (64, *GROUPS) if size in means}
        return {"hidden": angle(self.first_full, first @ self.head_VD), **by_size, "all": means[pair.positions]}

    def _missing(
        self, target: Target, weight: float, kept: Kept, facts: Facts, columns: Columns, p_CX: Tensor
    ) -> Tensor:
        block_V = self.pair.blocks_V[target.map]
        return missing(target, kept, facts, columns.ids_X, columns.place_V, p_CX, block_V, weight)


def probabilities(hidden_CD: Tensor, head_VD: Tensor) -> Tensor:
    """Return softmax(hidden @ headᵀ) [C, V]."""
    return torch.softmax(hidden_CD @ head_VD.T, dim=1)


def chunks(positions: int) -> Iterator[slice]:
    """Yield the slices of so many positions."""
    for start in range(0, positions, CHUNK):
        yield slice(start, start + CHUNK)


def measure(folder: Path, students: list[str], targets: list[Target], positions: int) -> None:
    """Append a row for every student and target of a pair that has none."""
    done = _done(folder.name, positions)
    wanted = {name: [target for target in targets if (name, target.label) not in done] for name in students}
    targets = [target for target in targets if any(target in those for those in wanted.values())]
    if not targets:
        return
    pair = Pair(folder, positions, targets)
    costs: dict[str, list[str]] = {}
    for name in students:
        student = Student(pair, name) if wanted[name] else None
        for target in wanted[name]:
            assert student is not None
            kept = pair.keep(target)
            if target.label not in costs:
                costs[target.label] = [f"{pair.bytes(target, kept, large=large):.1f}" for large in (False, True)]
            degrees = {size: f"{value:.2f}" for size, value in student.degrees(target, kept).items()}
            row: dict[str, object] = {
                "pair": folder.name,
                "vocabulary": len(pair.head_VD),
                "entropy_nats": f"{pair.entropy:.2f}",
                "top_16_mass": f"{pair.top_16:.3f}",
                "student": name,
                "kl_nats": f"{student.kl:.3f}",
                "positions": positions,
                "target": target.label,
                "bytes": costs[target.label][0],
                "bytes_128k": costs[target.label][1],
            }
            append_rows(CSV, [row | {f"degrees_{size}": degrees.get(size, "") for size in SIZES}])
            print(
                f"{folder.name}: {name}, KL {student.kl:.2f}: {target.label:40} {costs[target.label]} {degrees}",
                flush=True,
            )


def _done(pair: str, positions: int) -> set[tuple[str, str]]:
    path = RESULTS / CSV
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["pair"] == pair and row["positions"] == str(positions)]
    return {(row["student"], row["target"]) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a pair's")
    parser.add_argument("--students", nargs="+", help="all that are there unless given")
    parser.add_argument("--grid", choices=GRIDS, default="short")
    parser.add_argument("--positions", type=int, default=2048)
    args = parser.parse_args()
    students = args.students or sorted(
        path.stem for path in args.folder.glob("*.safetensors") if path.stem != "teacher"
    )
    measure(args.folder, students, GRIDS[args.grid], args.positions)


if __name__ == "__main__":
    main()

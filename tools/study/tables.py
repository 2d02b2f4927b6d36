"""The study's answers from its CSV: methods side by side in each cell, differences paired by seed, Holm-corrected.

    python -m tools.study.tables [--csv results/study.csv] [--images docs/images]        Markdown, and one PNG a table
    python -m tools.study.tables --reference scd                                         differences from another row

A difference is the mean over seeds of (method − reference) with the same seed, data, teacher and cache; interval and
p-value are those of the paired t test, the p-values of a table corrected together (Holm). A seed is the unit: what is
claimed is about training again, on this data.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from tools.measuring import RESULTS
from tools.study.cells import Cell
from trainer.report.results import holm

CSV = RESULTS / "study.csv"
REFERENCE = "td"
CONFIDENCE = 0.95
SCORES = {"test": 1, "shifted": 1, "held_out": 3}
"""What is compared, with its digits: scores ×100, and nats per position of held-out data, where less is better."""
METHOD_FACTORS = ("method", "aw_source", "metric", "alpha")
"""What tells the rows of a table apart; the other factors are its title."""
Row = dict[str, str]
Group = tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """How far one row of a table is ahead of its reference, over the seeds that both have."""

    seeds: int
    mean: float
    low: float
    high: float
    p_value: float


def read(path: Path) -> list[Row]:
    """Return the CSV's rows."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def paired(ours: dict[str, float], theirs: dict[str, float]) -> Difference | None:
    """Compare two rows by seed with the paired t test; None where they share fewer than two seeds.

    Rows that never differ are a comparison too, with a p-value of 1: a schedule that stays with one checkpoint is TD.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    if len(seeds) < 2:
        return None
    if not differences.any():
        return Difference(len(seeds), 0.0, 0.0, 0.0, 1.0)
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / len(seeds) ** 0.5)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, len(seeds) - 1)) if error else 0.0
    return Difference(len(seeds), mean, mean - reach, mean + reach, p_value)


def groups(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """Return the students by their table, in the CSV's order."""
    factors = [name for name in Cell().columns() if name not in METHOD_FACTORS]
    found: dict[Group, list[Row]] = {}
    for row in rows:
        if row["seed"]:
            found.setdefault(tuple(row[name] for name in factors), []).append(row)
    return found


def label(row: Row) -> str:
    """Name a row of a table: the method, and what is not usual about it."""
    usual, unusual = Cell(), []
    if row["aw_source"] != usual.aw_source:
        unusual.append(row["aw_source"])
    if row["metric"] != usual.metric:
        unusual.append(f"by {row['metric']}")
    if row["alpha"] != str(usual.alpha):
        unusual.append(f"α = {float(row['alpha']):g}")
    return ", ".join([row["method"], *unusual])


def title(group: Group) -> str:
    """Say in words what a table's students have in common."""
    data, noise, checkpoints, size, epochs, start = group
    wrong = f", {100 * float(noise):g} % of training answers wrong" if data == "demo" else ""
    larger = f", {size} student" if size != Cell().size else ""
    begin = "from random weights" if start == "base" else "from the student SFT"
    return f"{data}{wrong}{larger}: {checkpoints} checkpoints × {epochs} epochs, {begin}"


def by_seed(rows: Sequence[Row], name: str, score: str) -> dict[str, float]:
    """Return a method's scores, %, or its held-out losses."""
    scale = 1 if score == "held_out" else 100
    return {row["seed"]: scale * float(row[score]) for row in rows if label(row) == name and row[score]}


def table(rows: Sequence[Row], group: Group, everything: Sequence[Row], reference: str = REFERENCE) -> str:
    """Return a group's table as Markdown: teacher and student SFT first, then methods by their score."""
    names = list(dict.fromkeys(label(row) for row in rows))
    found = {
        score: {
            name: difference
            for name in names
            if name != reference
            and (difference := paired(by_seed(rows, name, score), by_seed(rows, reference, score))) is not None
        }
        for score in SCORES
    }
    corrected = {
        score: dict(zip(each, holm([d.p_value for d in each.values()]), strict=True)) for score, each in found.items()
    }
    shown = [score for score in SCORES if any(row[score] for row in rows)]
    heads = [head for score in shown for head in (score.replace("_", "-"), f"− {reference}", "p")]
    heads = ["", "seeds", *heads, "who taught, by seed"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in everything:
        if not row["seed"] and row["method"] in ("teacher", "student_sft") and serves(row, group):
            cells = [row["method"].replace("_", " "), ""]
            for score in shown:
                cells += [f"{value:.{SCORES[score]}f}" for value in by_seed([row], row["method"], score).values()]
                cells += ["", ""]
            lines.append("| " + " | ".join([*cells, ""]) + " |")
    for name in sorted(names, key=lambda name: -float(np.mean(list(by_seed(rows, name, "test").values())))):
        own = [row for row in rows if label(row) == name]
        cells = [f"`{name}`", str(len(by_seed(rows, name, "test")))]
        for score in shown:
            cells += [_spread(list(by_seed(rows, name, score).values()), SCORES[score])]
            cells += [_difference(found[score].get(name), SCORES[score]), _p(corrected[score].get(name))]
        lines.append("| " + " | ".join([*cells, _teachers(own)]) + " |")
    return "\n".join(lines)


def serves(row: Row, group: Group) -> bool:
    """Say whether a teacher's or a student SFT's row is of a group's data and sizes."""
    data, noise, checkpoints, size, _, _ = group
    return (row["data"], row["noise"], row["checkpoints"], row["size"]) == (data, noise, checkpoints, size)


def _spread(values: list[float], digits: int) -> str:
    found = [np.mean(values), *([np.std(values, ddof=1)] if len(values) > 1 else [])]
    return " ± ".join(f"{value:.{digits}f}" for value in found)


def _difference(difference: Difference | None, digits: int) -> str:
    if difference is None:
        return ""
    mean, low, high = (f"{value:+.{digits}f}" for value in (difference.mean, difference.low, difference.high))
    return f"{mean} [{low}, {high}]".replace("-", "−")


def _p(p_value: float | None) -> str:
    return "" if p_value is None else f"{p_value:.3f}" if p_value >= 0.001 else "< .001"


def _teachers(rows: Sequence[Row]) -> str:
    """Return who taught, stage by stage; plans of several seeds that are alike count together."""
    plans = [row["chosen"] for row in rows if "None" not in row["chosen"] and row["chosen"].strip()]
    if not plans or all(len(set(plan.split())) == 1 and plan == plans[0] for plan in plans):
        return plans[0].split()[0] if plans else ""
    counts = {plan: plans.count(plan) for plan in dict.fromkeys(plans)}
    return "; ".join(
        f"{plan.replace(' ', '→')}" + (f" ×{count}" if count > 1 else "") for plan, count in counts.items()
    )


def main() -> None:
    """Print every table, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--reference", default=REFERENCE, help="a row, as the tables name it: scd, 'td, α = 1'")
    arguments = parser.parse_args()
    rows = read(arguments.csv)
    for group, students in groups(rows).items():
        print(f"\n**{title(group)}**\n\n{table(students, group, rows, arguments.reference)}")
    if arguments.images is not None:
        from tools.study.plots import draw_all

        for path in draw_all(rows, arguments.images):
            print(f"\n{path}")


if __name__ == "__main__":
    main()

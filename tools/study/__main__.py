"""Train what is missing of the study for so many minutes, then print what is left; run again, it continues.

    python -m tools.study FOLDER [--budget-minutes 5] [--blocks budget-noise schedule …] [--seeds 5]

A student is one row of results/study.csv, appended when it is judged; what has a row is skipped. Teacher and student
SFT have a row for each cell that they serve, without a seed. FOLDER keeps the runs. No test score chooses anything.
"""

import argparse
import csv
import time
from pathlib import Path

from tools.measuring import RESULTS, append_rows
from tools.study.cells import BLOCKS, SEEDS, Cell, students
from tools.study.students import REFERENCES, references, result

CSV = RESULTS / "study.csv"


def main() -> None:
    """Read the arguments and train until the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget-minutes", type=float, default=5.0)
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--csv", type=lambda path: Path(path).resolve(), default=CSV)
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.budget_minutes
    wanted = list(students(arguments.blocks, arguments.seeds))
    for cell, seed in wanted:
        if time.monotonic() > until:
            break
        done = rows_done(arguments.csv)
        if (*cell.columns().values(), str(seed)) in done:
            continue
        for name in REFERENCES:
            reference = reference_cell(cell, name)
            if (*reference.columns().values(), "") not in done:
                scores = references(arguments.folder, cell)[name]
                append_rows(str(arguments.csv), [{**reference.columns(), "seed": "", **scores}])
        started = time.monotonic()
        scores = result(arguments.folder, cell, seed)
        append_rows(str(arguments.csv), [{**cell.columns(), "seed": str(seed), **scores}])
        print(f"{cell.method:8} {cell} seed {seed}: {scores['test']} in {time.monotonic() - started:.0f} s", flush=True)
    done = rows_done(arguments.csv)
    left = sum((*cell.columns().values(), str(seed)) not in done for cell, seed in wanted)
    print(f"{len(wanted) - left} of {len(wanted)} students are done")
    raise SystemExit(3 if left else 0)


def reference_cell(cell: Cell, name: str) -> Cell:
    """Return the cell under which a teacher or a student SFT is written down: only what it depends on differs."""
    return Cell(data=cell.data, noise=cell.noise, checkpoints=cell.checkpoints, size=cell.size, method=name)


def rows_done(path: Path) -> set[tuple[str, ...]]:
    """Return the factors and the seed of every row."""
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {tuple(row[name] for name in (*Cell().columns(), "seed")) for row in csv.DictReader(file)}


if __name__ == "__main__":
    main()

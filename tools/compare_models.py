"""Is one evaluated model better than another? Row by row, on the test rows that both answered.

python -m tools.compare_models runs/demo scd/seed-0/best td/seed-0/best

task         metric     first  second  difference [95 % interval]  p, paired bootstrap  p, McNemar
difference   mean of the rows' scores by their weights, first minus second: of entities, the F1 over all of them.
             McNemar's exact test only where every score is 0 or 1 and every row counts alike
"""

import json
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from cache_builder.errors import DataError, MissingError, UserError
from trainer.evaluation.metrics import weighted_mean
from trainer.evaluation.statistics import mcnemar, paired_bootstrap

Scores = dict[str, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class Comparison:
    """Two models on one task: weighted means of the rows' scores, and how sure their difference is."""

    task: str
    rows: int
    first: float
    second: float
    low: float
    high: float
    p_bootstrap: float
    p_mcnemar: float | None


def read_scores(run: Path, model: str) -> Scores:
    """Return task → row id → (score, weight) of one evaluated model; rows of older files all have weight 1.

    Raises:
        MissingError: the model has not been evaluated in this run.
    """
    path = run / "evaluate" / model / "predictions.jsonl"
    if not path.is_file():
        known = sorted(
            found.parent.relative_to(run / "evaluate").as_posix() for found in run.rglob("predictions.jsonl")
        )
        raise MissingError(f"{path}: no such file; evaluated are {', '.join(known) or 'no models'}")
    scores: Scores = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["score"] is not None:
            scores.setdefault(row["task"], {})[row["id"]] = (row["score"], row.get("weight", 1.0))
    return scores


def compare(first: Scores, second: Scores, samples: int) -> list[Comparison]:
    """Compare two models on every task that both have scores of.

    Raises:
        DataError: the two models have no task or row in common.
    """
    results = []
    for task in sorted(first.keys() & second.keys()):
        ids = sorted(first[task].keys() & second[task].keys())
        if ids:
            (one, one_weight), (other, other_weight) = (
                np.array([scores[task][row] for row in ids]).T for scores in (first, second)
            )
            weights = np.stack([one_weight, other_weight])
            alike = bool((weights == 1).all())
            _, low, high, p_value = paired_bootstrap(one, other, samples, weights=None if alike else tuple(weights))
            binary = alike and set(np.concatenate([one, other]).tolist()) <= {0.0, 1.0}
            means = [weighted_mean(one, one_weight), weighted_mean(other, other_weight)]
            exact = mcnemar(one, other) if binary else None
            results.append(Comparison(task, len(ids), *means, low, high, p_value, exact))
    if not results:
        raise DataError("the two models have no scored test row in common; evaluate both on the same test set")
    return results


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("first")
@click.argument("second")
@click.option("--samples", default=10_000, show_default=True, help="Resamples of the test rows.")
def main(run: Path, first: str, second: str, samples: int) -> None:
    """Compare the models FIRST and SECOND, folders below RUN/evaluate."""
    try:
        results = compare(read_scores(run, first), read_scores(run, second), samples)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    table = Table("task", "rows", first, second, "difference [95 %]", "p, bootstrap", "p, McNemar")
    for result in results:
        difference = 100 * (result.first - result.second)
        table.add_row(
            result.task,
            str(result.rows),
            f"{100 * result.first:.1f}",
            f"{100 * result.second:.1f}",
            f"{difference:+.1f} [{100 * result.low:+.1f}, {100 * result.high:+.1f}]",
            f"{result.p_bootstrap:.4f}",
            "–" if result.p_mcnemar is None else f"{result.p_mcnemar:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

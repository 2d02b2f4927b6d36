"""Comparing two evaluated models: paired by row, and refused where there is nothing to pair."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cache_builder.errors import DataError, MissingError
from tools.compare_models import compare, main, read_scores
from trainer.evaluation.statistics import mcnemar


def write(run: Path, model: str, scores: list[float | None]) -> None:
    folder = run / "evaluate" / model
    folder.mkdir(parents=True)
    rows = [{"id": f"r{index}", "task": "t", "score": score} for index, score in enumerate(scores)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_models_are_paired_by_row(tmp_path: Path) -> None:
    write(tmp_path, "a", [1.0] * 30 + [0.0] * 10)
    write(tmp_path, "td/seed-0/best", [1.0] * 20 + [0.0] * 20)
    (result,) = compare(read_scores(tmp_path, "a"), read_scores(tmp_path, "td/seed-0/best"), 2000)
    assert (result.rows, result.first, result.second) == (40, 0.75, 0.5)
    assert 0 < result.low < 0.25 < result.high and result.p_bootstrap < 0.01
    assert result.p_mcnemar == mcnemar([1.0] * 10, [0.0] * 10) == 2 / 2**10  # type: ignore[arg-type]


def test_graded_scores_have_no_mcnemar_test(tmp_path: Path) -> None:
    write(tmp_path, "a", [0.5, 1.0])
    write(tmp_path, "b", [0.4, 1.0])
    (result,) = compare(read_scores(tmp_path, "a"), read_scores(tmp_path, "b"), 100)
    assert result.p_mcnemar is None


def test_entity_scores_are_compared_by_the_f1_over_all_entities(tmp_path: Path) -> None:
    """One row with 20 entities counts as much as its entities do, and rows without any count nothing."""
    for model, of_many in (("a", 0.5), ("b", 1.0)):
        rows = [("many", of_many, 40), ("one", 1.0 if model == "a" else 0.0, 2), ("none", 1.0, 0)]
        folder = tmp_path / "evaluate" / model
        folder.mkdir(parents=True)
        lines = [json.dumps({"id": row, "task": "t", "score": score, "weight": weight}) for row, score, weight in rows]
        (folder / "predictions.jsonl").write_text("\n".join(lines))
    (result,) = compare(read_scores(tmp_path, "a"), read_scores(tmp_path, "b"), 500)
    assert result.first == pytest.approx((0.5 * 40 + 2) / 42) and result.second == pytest.approx(40 / 42)
    assert result.p_mcnemar is None and result.low < result.first - result.second < result.high


def test_the_command_prints_a_row_per_task_and_names_a_model_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "a", [1.0, 0.0])
    write(tmp_path, "b", [1.0, 1.0])
    result = CliRunner().invoke(main, [str(tmp_path), "a", "b", "--samples", "100"])
    assert result.exit_code == 0 and "-50.0" in result.output
    refused = CliRunner().invoke(main, [str(tmp_path), "a", "c"])
    assert refused.exit_code == 2 and "evaluated are a, b" in refused.output
    with pytest.raises(MissingError):
        read_scores(tmp_path, "c")


def test_models_without_a_common_row_are_not_compared() -> None:
    with pytest.raises(DataError, match="no scored test row in common"):
        compare({"t": {"1": (1.0, 1.0)}}, {"t": {"2": (1.0, 1.0)}}, 100)

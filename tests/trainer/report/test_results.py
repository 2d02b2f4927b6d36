"""Who won: means, intervals, marks and the terminal's table."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.support.run_folder import METHODS, TASKS, make_run
from trainer.report.page import results_tables
from trainer.report.results import difference, holm, result_table
from trainer.report.run.records import Baseline, Evaluation, Run, TaskResult
from trainer.report.sections.summary import summary
from trainer.report.subdomains import compare
from trainer.report.terminal import TerminalTable


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


def run_with(evaluations: list[Evaluation]) -> Run:
    return Run(Path("demo"), {}, {}, None, None, [], evaluations, {})


def evaluation(
    model: str, scores: list[float], method: str | None = None, seed: int | None = None, which: str | None = None
) -> Evaluation:
    value = float(np.mean(scores))
    result = TaskResult(len(scores), "accuracy", {"accuracy": {"value": value, "low": value - 0.1, "high": value}})
    by_row = {str(i): score for i, score in enumerate(scores)}
    return Evaluation(model, method, seed, which, 1000, 10.0, {"t": result}, {"t": by_row})


def test_both_sides_of_a_comparison_are_summed_apart() -> None:
    parts = compare(np.array([1.0, 4.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0, 3.5]))
    assert (parts.student_favored, parts.teacher_favored) == (2, 1)
    assert (parts.advantage, parts.deficit) == (pytest.approx(2.5 / 4), pytest.approx(3 / 4))
    assert parts.gap == pytest.approx(2.5 - 9.5 / 4)
    assert parts.margin == pytest.approx(-parts.gap)


def test_a_student_that_is_right_where_its_teacher_is_wrong_is_marked_as_above_it() -> None:
    teacher = evaluation("teacher", [1.0] * 20 + [0.0] * 20)
    above = evaluation("td/seed-0/best", [1.0] * 35 + [0.0] * 5, "td", 0, "best")
    alike = evaluation("cd/seed-0/best", [0.0] * 20 + [1.0] * 20, "cd", 0, "best")
    below = evaluation("rkl/seed-0/best", [0.0] * 40, "rkl", 0, "best")
    table = result_table(run_with([teacher, above, alike, below]))
    marks = {row.label: row.cells["t"].mark for row in table.rows}
    assert marks == {"teacher SFT": "", "td": "above", "cd": "", "rkl": "below"}
    assert [row.label for row in table.rows if row.cells["t"].best] == ["td"]


def test_base_models_are_shown_and_change_nothing_else() -> None:
    teacher = evaluation("teacher", [1.0] * 20 + [0.0] * 20)
    students = [
        evaluation("student_sft", [1.0] * 12 + [0.0] * 28),
        evaluation("td/seed-0/best", [1.0] * 9 + [0.0] * 31, "td", 0, "best"),
    ]
    bases = [evaluation("teacher_base", [1.0] * 40), evaluation("base", [1.0] + [0.0] * 39)]
    without, shown = result_table(run_with([teacher, *students])), result_table(run_with([teacher, *bases, *students]))
    assert [row.label for row in shown.rows] == ["teacher SFT", "teacher base", "student base", "student SFT", "td"]
    assert [row for row in shown.rows if row.kind != "base"] == without.rows
    for row in (row for row in shown.rows if row.kind == "base"):
        assert not row.cells["t"].best and not row.cells["t"].mark and not row.best_average


def test_the_teacher_is_never_the_best_student() -> None:
    teacher, student = evaluation("teacher", [1.0, 1.0]), evaluation("student_sft", [1.0, 0.0])
    rows = result_table(run_with([teacher, student])).rows
    assert [(row.label, row.cells["t"].best) for row in rows] == [("teacher SFT", False), ("student SFT", True)]


def test_a_difference_is_paired_by_row_and_knows_ties() -> None:
    hard_rows = [float(i % 3 == 0) for i in range(60)]
    slightly_better = [1.0 if i % 3 == 1 and i < 30 else score for i, score in enumerate(hard_rows)]
    teacher = evaluation("teacher", hard_rows)
    found = difference([evaluation("student_sft", slightly_better)], [teacher], "t")
    assert found is not None and found.rows == 60
    assert found.ahead == pytest.approx(10 / 60) and found.low > 0 and found.high < 0.3 and found.p_value < 0.01
    tied = difference([teacher], [teacher], "t")
    assert tied is not None and tied.ahead == 0 and tied.p_value == 1.0
    elsewhere = replace(teacher, scores={"t": {"another row": 1.0}})
    assert difference([teacher], [elsewhere], "t") is None and difference([], [teacher], "t") is None


def test_rows_that_count_by_their_entities_are_compared_by_the_score_that_the_table_shows() -> None:
    """A student that finds what the rows with many entities have is ahead, though most rows are the teacher's."""
    weights = {"t": {str(i): 30.0 if i % 4 == 0 else 0.0 for i in range(40)}}
    teacher = replace(evaluation("teacher", [0.1 if i % 4 == 0 else 1.0 for i in range(40)]), weights=weights)
    student = replace(evaluation("student_sft", [0.9 if i % 4 == 0 else 0.0 for i in range(40)]), weights=weights)
    found = difference([student], [teacher], "t")
    assert found is not None and found.ahead == pytest.approx(0.8) and found.p_value < 0.01
    seeds = [replace(evaluation(f"td/seed-{s}/best", [s] * 40, "td", s, "best"), weights=weights) for s in (0, 1)]
    found = difference(seeds, [teacher], "t")
    assert found is not None and found.ahead == pytest.approx((0 + 1) / 2 - 0.1)


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_never_reorders() -> None:
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_terminal_table_has_a_line_per_model_and_its_interval(run_dir: Path) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_tables(run_dir))
    text = console.export_text()
    for name in ("teacher SFT", "student SFT", *METHODS):
        assert re.search(rf"{re.escape(name)} .*\d\d\.\d.* \[\d\d\.\d, \d+\.\d\]", text), name


@pytest.mark.parametrize("width", [80, 50, 36])
def test_a_narrow_terminal_shows_fewer_words_and_every_name_whole(run_dir: Path, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_tables(run_dir))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for task in TASKS:
        assert task in text
    for name in ("teacher SFT", "student SFT", *METHODS):
        assert re.search(rf"│ {re.escape(name)} +│ +\d\d\.\d", text), name
    assert ("±" in text) == (width == 80)


def with_baseline(model: Evaluation, low: float) -> Evaluation:
    baseline = Baseline({"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}, {"value": 0.1, "low": low, "high": 0.2})
    return replace(model, tasks={"t": replace(model.tasks["t"], baselines={"majority": baseline})})


def test_baselines_have_rows_of_their_own_and_a_model_that_is_not_above_one_is_marked() -> None:
    teacher = with_baseline(evaluation("teacher", [1.0] * 9 + [0.0]), 0.2)
    weak = with_baseline(evaluation("td/seed-0/best", [1.0] * 5 + [0.0] * 5, "td", 0, "best"), -0.1)
    strong = with_baseline(evaluation("td/seed-1/best", [1.0] * 8 + [0.0] * 2, "td", 1, "best"), 0.1)
    table = result_table(run_with([teacher, weak, strong]))
    assert [(row.label, row.cells["t"].mean) for row in table.baselines] == [("majority class", 0.5)]
    assert {row.label: row.cells["t"].at_baseline for row in table.rows} == {
        "teacher SFT": "",
        "td": "majority class",
    }, "one seed that is not above it is enough"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(TerminalTable(table))
    text = console.export_text()
    assert re.search(r"majority class .* 50.0", text) and re.search(r"│ td .* ○", text)
    assert "○: not above a baseline" in " ".join(text.split()) and not re.search(r"│ teacher SFT .* ○", text)


def test_the_first_paragraph_says_who_won_by_how_much_and_whether_that_is_chance() -> None:
    teacher = evaluation("teacher", [1.0] * 30 + [0.0] * 10)
    near = evaluation("td/seed-0/best", [1.0] * 29 + [0.0] * 11, "td", 0, "best")
    control = evaluation("sft/seed-0/best", [1.0] * 10 + [0.0] * 30, "sft", 0, "best")
    run = run_with([teacher, near, control])
    text = summary(run, result_table(run))
    assert text.startswith("td is the best student: 72.5 of 100 on t, 2.5 points below its teacher's 75.0.")
    assert "not significant (at p < 0.05, paired by its 40 test rows" in text
    assert "The control, sft, which saw the labels alone, has 25.0: 47.5 points less." in text
    assert text.endswith("td has 1 K parameters, 100% of the teacher's 1 K.")
    run = run_with([teacher, control])
    assert "The difference is significant (at p < 0.05, paired by its 40 test rows" in summary(run, result_table(run))

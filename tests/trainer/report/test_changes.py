"""What students gained on their own tasks and lost elsewhere, against themselves before training."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainer.report.changes import changes
from trainer.report.run.harness import read_harness
from trainer.report.run.records import Evaluation, Run, TaskResult
from trainer.report.sections.changes import changes_sections, forgotten
from trainer.report.terminal import changes_table

NO_ROWS: dict[str, dict[str, float]] = {}


def evaluation(model: str, *tasks: tuple[str, float, list[float]], higher: bool = True, **named: Any) -> Evaluation:
    results = {task: TaskResult(40, "m", {"m": {"value": value}}, higher_is_better=higher) for task, value, _ in tasks}
    rows = {task: dict(zip(map(str, range(len(scores))), scores, strict=True)) for task, _, scores in tasks if scores}
    found = Evaluation(model, None, None, None, None, None, results, rows)
    return replace(found, **named)


def run_of(evaluations: list[Evaluation], elsewhere: list[Evaluation]) -> Run:
    return Run(Path("demo"), {}, {}, None, None, [], evaluations, {}, elsewhere=elsewhere)


def student(method: str, seed: int, *tasks: tuple[str, float, list[float]], **options: Any) -> Evaluation:
    return evaluation(f"{method}/seed-{seed}/best", *tasks, method=method, seed=seed, which="best", **options)


def test_gains_are_the_mean_over_seeds_against_the_base_and_their_chance_is_paired_by_row() -> None:
    base = evaluation("base", ("own", 0.25, [1.0] * 10 + [0.0] * 30), ("far", 0.75, [1.0] * 30 + [0.0] * 10))
    better = student("td", 0, ("own", 1.0, [1.0] * 40)), student("td", 1, ("own", 0.5, [1.0] * 20 + [0.0] * 20))
    worse = student("td", 0, ("far", 0.25, [1.0] * 10 + [0.0] * 30))
    same = student("cd", 0, ("far", 0.75, [0.0] * 10 + [1.0] * 30))
    found = {(each.label, each.task): each for each in changes(run_of([base, *better], [base, worse, same]))}
    own = found["td", "own"]
    assert (own.gained, own.seeds, own.verdict, own.own) == (0.5, 2, "gained", True)
    assert own.low is not None and own.high is not None and own.low < 0.5 < own.high
    assert (found["td", "far"].gained, found["td", "far"].verdict) == (-0.5, "lost")
    assert (found["cd", "far"].gained, found["cd", "far"].verdict) == (0.0, "")


def test_of_a_metric_of_which_less_is_better_less_is_gained() -> None:
    base = evaluation("base", ("far", 2.0, [2.0] * 40), higher=False)
    (change,) = changes(run_of([], [base, student("td", 0, ("far", 1.5, [1.5] * 40), higher=False)]))
    assert (change.gained, change.low, change.high, change.verdict) == (0.5, 0.5, 0.5, "gained")


def test_a_metric_without_rows_has_its_difference_and_no_test() -> None:
    base, after = evaluation("base", ("far", 9.0, [])), student("td", 0, ("far", 4.0, []))
    (change,) = changes(run_of([], [base, after]))
    assert (change.gained, change.low, change.p_value, change.verdict) == (-5.0, None, None, "")


def test_what_was_lost_elsewhere_is_said_in_the_first_section_and_in_the_terminals_table() -> None:
    base = evaluation("base", ("far", 0.75, [1.0] * 30 + [0.0] * 10))
    run = run_of([], [base, student("td", 0, ("far", 0.25, [1.0] * 10 + [0.0] * 30))])
    assert "worse than before training: td on far (m 0.75 → 0.25)" in forgotten(run)
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(changes_table(changes(run)))
    assert "−0.500 ▼" in console.export_text()
    (section,) = changes_sections(run)
    assert section.tables[0].rows[0]["verdict"] == "lost"


def test_what_was_lost_on_its_own_task_is_not_forgotten_and_without_a_base_nothing_is_said() -> None:
    base = evaluation("base", ("own", 0.75, [1.0] * 30 + [0.0] * 10))
    worse = student("td", 0, ("own", 0.25, [1.0] * 10 + [0.0] * 30))
    assert forgotten(run_of([base, worse], [])) == ""
    assert changes(run_of([worse], [worse])) == [] and changes_sections(run_of([worse], [])) == []


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def task(primary: str = "acc", value: float = 0.5) -> dict[str, Any]:
    return {"rows": 2, "primary": primary, "higher_is_better": True, "metrics": {primary: {"value": value}}}


def test_a_group_of_one_metric_is_one_task_of_all_of_their_rows_and_others_stay_apart(tmp_path: Path) -> None:
    rows = {"a": {"0": 1.0, "1": 0.0}, "b": {"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0}}
    group = {"name": "group", "tasks": {"a": task(), "b": task(value=1.0)}, "scores": rows}
    mixed = {"name": "mixed", "tasks": {"c": task(), "d": task("f1")}, "scores": NO_ROWS}
    for name, file in (("group", group), ("mixed", mixed)):
        write(tmp_path / "td/seed-1/best/harness" / f"{name}.json", file)
    missing: list[str] = []
    (found,) = read_harness(tmp_path, missing)
    assert (found.model, found.method, found.seed, found.which) == ("td/seed-1/best", "td", 1, "best")
    assert set(found.tasks) == {"group", "c", "d"} and missing == []
    assert found.tasks["group"].value == pytest.approx(5 / 6) and len(found.scores["group"]) == 6


@pytest.mark.parametrize("damage", [{"tasks": {"a": {}}}, {"scores": {"a": {"0": "x"}}}, {"tasks": {"a": task("f1")}}])
def test_a_file_of_another_shape_is_named_and_left_out(tmp_path: Path, damage: dict[str, Any]) -> None:
    whole = {"name": "a", "tasks": {"a": task()}, "scores": {"a": {"0": 1.0}}}
    if "f1" in str(damage):
        damage["tasks"]["a"]["metrics"] = {}
    write(tmp_path / "base/harness/a.json", {**whole, **damage})
    missing: list[str] = []
    assert read_harness(tmp_path, missing) == []
    (said,) = missing
    assert said.startswith("base: harness/a.json cannot be used")

"""The report shows what a run folder has, says what it has not, and runs nothing that a run's texts contain."""

import csv
import io
import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from rich.console import Console

from cache_builder.build.costs import CostNote
from cache_builder.errors import MissingError
from tests.support.run_folder import CHECKPOINTS, METHODS, SEQUENCES, TASKS, make_run, write_losses
from trainer.report.page import number, results_table, slugify, write_report
from trainer.report.results import difference, holm, result_table
from trainer.report.run.run_reader import Evaluation, Run, TaskResult, read_run
from trainer.report.sections.costs import costs_section
from trainer.report.sections.weights import weights_section
from trainer.report.subdomains import compare


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return write_report([run_dir]).read_text(encoding="utf-8")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_with(evaluations: list[Evaluation]) -> Run:
    return Run(Path("demo"), {}, {}, None, None, [], evaluations, {})


def evaluation(
    model: str, scores: list[float], method: str | None = None, seed: int | None = None, which: str | None = None
) -> Evaluation:
    value = float(np.mean(scores))
    result = TaskResult(len(scores), 0, "accuracy", {"accuracy": {"value": value, "low": value - 0.1, "high": value}})
    by_row = {str(i): score for i, score in enumerate(scores)}
    return Evaluation(model, method, seed, which, 1000, 10.0, {"t": result}, {"t": by_row})


def test_a_complete_run_has_nothing_missing_and_every_section_has_its_plots(run_dir: Path, page: str) -> None:
    assert read_run(run_dir).missing == []
    assert "Missing:" not in page and "missing from this run" not in page
    plots = {path.stem for path in (run_dir / "report").glob("*.png")}
    assert plots == {
        "scores",
        "schedule-scd+aw",
        "kl-matrix",
        "weights-before",
        "weights-after",
        "balance",
        "differences-loss",
        "differences-score",
        "costs",
        "training-loss",
        "training-curves",
    }
    assert page.count("<figure>") == len(plots)
    for name in METHODS:
        assert f">{name}<small>" in page


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len(sources) > 10
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|<link", page)


def test_the_same_run_gives_the_same_bytes(run_dir: Path, page: str, tmp_path: Path) -> None:
    again = write_report([run_dir], tmp_path / "again")
    assert again.read_text(encoding="utf-8") == page
    for path in (run_dir / "report").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_table_gives_mean_and_deviation_over_seeds_and_bolds_the_best_student(run_dir: Path) -> None:
    rows = read_csv_of_report(run_dir, "results")
    cells = [row for row in rows if row["model"] == "scd+aw" and row["which"] == "best" and row["task"] == "triage"]
    values = [
        json.loads((run_dir / f"evaluate/scd+aw/seed-{seed}/best/metrics.json").read_text())["tasks"]["triage"][
            "metrics"
        ]["accuracy"]["value"]
        for seed in (0, 1)
    ]
    assert float(cells[0]["mean"]) == pytest.approx(sum(values) / 2)
    assert float(cells[0]["std over seeds"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    best = {row["task"]: row["model"] for row in rows if row["best student"] == "yes" and row["which"] == "best"}
    assert best == dict.fromkeys(TASKS, "scd+aw")


def read_csv_of_report(run_dir: Path, name: str) -> list[dict[str, str]]:
    if not (run_dir / "report" / "index.html").is_file():
        write_report([run_dir])
    return read_csv(run_dir / "report" / f"{name}.csv")


def test_the_identity_of_theorem_4_holds_for_every_student_and_its_condition_is_read_off(run_dir: Path) -> None:
    rows = read_csv_of_report(run_dir, "subdomains")
    assert len(rows) == 1 + len(METHODS) * 2
    for row in rows:
        gap = float(row["R(student) − R(teacher)"])
        assert gap == pytest.approx(float(row["TFS deficit"]) - float(row["SFS advantage"]), abs=1e-12)
        assert (row["student ahead"] == "yes") == (gap < 0)


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


def test_what_is_missing_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "part", methods=("td", "scd"), seeds=(0,))
    shutil.rmtree(run_dir / "cache")
    shutil.rmtree(run_dir / "evaluate" / "scd")
    (run_dir / "distill/scd/seed-0/plan.json").write_text("{not json")
    (run_dir / "evaluate/td/seed-0/best/predictions.jsonl").write_text('{"id": 1, "score": 1}\n')
    shutil.rmtree(run_dir / "losses")
    page = write_report([run_dir]).read_text(encoding="utf-8")
    for note in (
        "no cache at",
        "scd, seed 0: trained, not evaluated",
        "plan.json is not valid JSON",
        "predictions.jsonl, line 1",
        "student.safetensors is not there",
        "one seed only",
        "Missing: No scheduled method",
        "Missing: The weights need the cache",
    ):
        assert note in page, note
    assert ">td<small>" in page


@pytest.mark.parametrize(
    ("part", "text", "note"),
    [
        ("evaluate/td/seed-0/best/metrics.json", "[]", "evaluate/td/seed-0/best/metrics.json cannot be used"),
        (
            "evaluate/teacher/metrics.json",
            '{"tasks": {"t": {"rows": 1, "primary": "a", "metrics": {}}}}',
            "t.metrics.a",
        ),
        ("distill/td/seed-0/plan.json", '{"stages": [{"anchor_kl": 1}]}', "plan.json cannot be used"),
        ("distill/td/seed-0/losses.safetensors", "no tensors", "losses.safetensors cannot be read"),
        ("config.toml", "distill = 3", ""),
        ("config.toml", "= not TOML", "config.toml is not valid TOML"),
        ("cache/zarr.json", "{}", "the cache:"),
        ("teacher/checkpoints.json", '"text"', ""),
    ],
)
def test_a_damaged_part_is_named_and_costs_no_other(tmp_path: Path, part: str, text: str, note: str) -> None:
    run_dir = make_run(tmp_path / "run", methods=("td",), seeds=(0,), tasks={"triage": "accuracy"})
    (run_dir / part).write_text(text)
    run = read_run(run_dir)
    assert note in "\n".join(run.missing)
    assert run.evaluation("student_sft") is not None
    assert result_table(run).rows


def test_a_run_that_only_has_its_config_still_gives_a_page(tmp_path: Path) -> None:
    run_dir = tmp_path / "fresh"
    run_dir.mkdir()
    (run_dir / "config.toml").write_text('[distill]\nmethods = ["td"]\nseeds = [0, 1]\n')
    page = write_report([run_dir]).read_text(encoding="utf-8")
    assert "No model of this run has been evaluated yet" in page
    assert "td, seed 1: not trained" in page


def test_losses_of_another_corpus_are_not_compared(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "other", methods=("td",), seeds=(0,))
    write_losses(run_dir / "losses" / "student.safetensors", np.ones(SEQUENCES - 1))
    run = read_run(run_dir)
    assert run.student_losses is None
    assert any(f"has {SEQUENCES - 1} sequences, the cache {SEQUENCES}" in note for note in run.missing)


def test_test_rows_without_labels_are_missing_and_not_a_score(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "unlabelled", methods=("td",), seeds=(0,), tasks={"triage": "accuracy"})
    for path in (run_dir / "evaluate").rglob("metrics.json"):
        values = json.loads(path.read_text())
        values["tasks"]["triage"] |= {"rows": 0, "metrics": {}}
        path.write_text(json.dumps(values))
    page = write_report([run_dir]).read_text(encoding="utf-8")
    assert "task triage has no labelled test rows" in page
    assert "No model has been evaluated on labelled test rows" in page


def test_script_and_formulas_in_names_are_shown_and_not_run(tmp_path: Path) -> None:
    evil = "<script>alert(1)<∕script>"
    run_dir = make_run(
        tmp_path / "<img src=x onerror=alert(2)>",
        methods=("td", "scd"),
        seeds=(0,),
        tasks={evil: "$x_{$", "{{ 7 * 7 }}": "日本語"},
        ids="<script>alert({})</script>",
    )
    evil_method = run_dir / "distill" / "<script>alert(3)<-script>"
    shutil.copytree(run_dir / "distill" / "scd", evil_method)
    page = write_report([run_dir]).read_text(encoding="utf-8")
    assert page.count("<script>") == 1, "the page's own script and no other"
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page and "&lt;script&gt;alert(3)" in page
    assert "{{ 7 * 7 }}" in page
    assert "<script>alert(5)</script>" in (run_dir / "report" / "sequences.csv").read_text(encoding="utf-8")


def test_several_runs_share_a_page_and_never_each_others_files(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a" / "demo", methods=("td",), seeds=(0,))
    second = make_run(tmp_path / "b" / "demo", methods=("scd",), seeds=(0,))
    index = write_report([first, second])
    assert index == tmp_path / "report" / "index.html"
    page = index.read_text(encoding="utf-8")
    assert "The runs side by side" in page
    assert 'id="a-demo-results"' in page and 'id="b-demo-results"' in page
    assert len(read_csv(index.parent / "a-demo-sequences.csv")) == SEQUENCES
    assert (index.parent / "b-demo-schedule-scd.png").is_file()
    together = {(row["model"], row["task"]) for row in read_csv(index.parent / "runs.csv")}
    assert together == {(name, t) for name in ("teacher SFT", "student SFT", "td", "scd") for t in TASKS}


def with_settings(run_dir: Path, **settings: object) -> Path:
    """Add sections to a run's config."""
    path = run_dir / "config.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | settings))
    return run_dir


def test_runs_on_the_same_data_are_compared_row_by_row_and_others_are_not(tmp_path: Path) -> None:
    same: dict[str, object] = {"data": {"source": "demo"}, "run": {"seed": 0}}
    tasks = {"triage": "accuracy"}
    first = with_settings(make_run(tmp_path / "first", methods=("td", "cd"), seeds=(0,), tasks=tasks), **same)
    worse = with_settings(make_run(tmp_path / "worse", methods=("td", "cd"), seeds=(0,), tasks=tasks), **same)
    other = make_run(tmp_path / "other", methods=("td",), seeds=(0,), tasks={**tasks, "codes": "exact_match"})
    with_settings(other, data={"source": "snips"}, run={"seed": 0})
    for which in ("best", "last"):
        path = worse / "evaluate" / "td" / "seed-0" / which / "predictions.jsonl"
        rows = [json.loads(line) | {"score": 0.0} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fewer = worse / "evaluate" / "student_sft" / "predictions.jsonl"
    fewer.write_text("".join(fewer.read_text().splitlines(keepends=True)[1:]))
    shutil.rmtree(other / "evaluate" / "td")
    index = write_report([first, worse, other, worse], tmp_path / "report")
    paired = {(row["run"], row["model"]): row for row in read_csv(index.parent / "runs_paired.csv")}
    assert set(paired) == {("worse", name) for name in ("teacher SFT", "td", "cd")}, "equal rows of equal data"
    assert paired["worse", "td"]["verdict"] == "behind" and float(paired["worse", "td"]["high"]) < 0
    assert paired["worse", "cd"]["verdict"] == "" and float(paired["worse", "cd"]["ahead of first, ×100"]) == 0
    page = index.read_text(encoding="utf-8")
    assert (index.parent / "runs.png").is_file()
    assert "Not all runs have codes (exact_match): means" in page
    assert "Not compared with first row by row" in page and "tasks and seed: other." in page
    assert "other: 1 thing is missing, listed under its name" in page
    assert page.count('class="text">td</td>') >= 2 and page.count("<article") == 3, "a run given twice is one"


def test_a_run_without_any_score_still_stands_beside_others(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", methods=("td",), seeds=(0,))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.toml").write_text("")
    page = write_report([empty, first], tmp_path / "report").read_text(encoding="utf-8")
    assert "No model of this run has been evaluated yet" in page and "Not all runs have" not in page
    fresh = write_report([empty, tmp_path / "first" / ".." / "empty"], tmp_path / "again").read_text(encoding="utf-8")
    assert fresh.count("<article>") == 1


def test_weights_are_those_that_training_used_where_they_were_cross_fitted(tmp_path: Path) -> None:
    run_dir = with_settings(
        make_run(tmp_path / "cross", methods=("td+aw",), seeds=(0,)),
        distill={"methods": ["td+aw"], "seeds": [0], "aw_source": "crossfit"},
    )
    assert any("cross-fitted losses of the student" in note for note in read_run(run_dir).missing)
    write_losses(run_dir / "crossfit/student/losses/student.safetensors", np.full(SEQUENCES, 2.0))
    for name in CHECKPOINTS:
        write_losses(run_dir / f"crossfit/teacher/losses/{name}.safetensors", np.full(SEQUENCES, 1.0))
    section = weights_section(read_run(run_dir))
    (table,) = section.tables
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    rows = [row for row in rows if row["when"] == "cross-fitted"]
    assert [row["checkpoint"] for row in rows] == list(CHECKPOINTS)
    assert all(row["mean w"] == pytest.approx(2 / 3) and row["TFS share"] == 1 for row in rows)
    assert "judged by models that were fine-tuned on the other half of the data." in section.plots[0].caption
    (run_dir / f"crossfit/teacher/losses/{CHECKPOINTS[0]}.safetensors").unlink()
    assert read_run(run_dir).aw_losses is None


def live_teacher(method: str, difference: float) -> dict[str, object]:
    arm = {"seconds_per_step": 0.5, "rounds": [0.5], "peak_memory_mib": 100.0}
    agreement = {"loss_cache": 1.0 + difference, "loss_live": 1.0, "sampling_error": 0.01, "codes": 0.0}
    agreement |= {"arithmetic": 0.0, "one_sided": False, "sequences": 96}
    return {
        "method": method, "seed": 0, "checkpoint": CHECKPOINTS[0], "steps": 12, "sequences_per_step": 8,
        "teacher_parameters": 12_000_000, "student_parameters": 3_100_000, "device": "<script>GPU</script>",
        "commit": "abc", "cache": arm, "live": {**arm, "seconds_per_step": 1.5}, "time_ratio": 3.0,
        "agreement": agreement,
    }  # fmt: skip


def test_a_live_teacher_is_shown_where_it_was_measured_and_asked_for_where_not(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "live", methods=("td",), seeds=(0,))
    (_, note) = costs_section(read_run(run_dir)).notes
    assert "not measured for this run" in note and "python -m tools.live_teacher RUN" in note
    measured = [live_teacher("td", 0.03), live_teacher("cd", 0.05)]
    (run_dir / "live_teacher.json").write_text(json.dumps({"measurements": measured}))
    page = write_report([run_dir]).read_text(encoding="utf-8")
    assert "not measured for this run" not in page and "<script>GPU" not in page
    rows = read_csv(run_dir / "report" / "live_teacher.csv")
    assert [(row["method"], row["within"], row["time, live ÷ cache"]) for row in rows] == [
        ("td", "yes", "3.0"),
        ("cd", "no", "3.0"),
    ]
    assert page.count("It is MORE than that") == 1
    assert (run_dir / "report" / "live-teacher.png").is_file()
    (run_dir / "live_teacher.json").write_text('{"measurements": [{"method": "<script>"}]}')
    run = read_run(run_dir)
    assert run.live_teachers == [] and any("live_teacher.json cannot be used" in note for note in run.missing)


def test_building_the_cache_has_its_time_and_memory_in_the_report(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "built", methods=("td",), seeds=(0,))
    assert f"no note of the build of {', '.join(CHECKPOINTS)}" in costs_section(read_run(run_dir)).notes[0]
    cache = read_run(run_dir).cache
    assert cache is not None
    for name, positions in zip(CHECKPOINTS, (cache.n_positions, cache.n_positions + 63, 63, 0), strict=True):
        if positions:
            note = CostNote(run_dir, name, cache.fingerprint, (0, 1), Console(file=io.StringIO()))
            note.add(positions, finished=True)
    section = costs_section(read_run(run_dir))
    table = next(table for table in section.tables if table.name == "build")
    rows: list[dict[str, Any]] = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["checkpoint"] for row in rows] == [*CHECKPOINTS[:3], "in total"]
    assert rows[-1]["positions captured"] == 2 * cache.n_positions + 126
    assert rows[-1]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows[:-1]))
    assert all(row["peak memory, MiB"] > 10 for row in rows)
    lacking, again, partly, _ = section.notes
    assert f"no note of the build of {CHECKPOINTS[3]}:" in lacking
    assert again.startswith(f"{CHECKPOINTS[1]}: {cache.n_positions + 63:,} positions were captured")
    assert f"The notes cover only a part of {CHECKPOINTS[2]}:" in partly


def test_an_answer_with_a_line_separator_costs_no_prediction(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "lines", methods=("td",), seeds=(0,), tasks={"triage": "accuracy"})
    path = run_dir / "evaluate" / "teacher" / "predictions.jsonl"
    rows = [json.loads(line) | {"output": "one\u2028two\x85three"} for line in path.read_text().split("\n") if line]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    run = read_run(run_dir)
    assert run.missing == ["one seed only: no spread over seeds can be given"]
    teacher = run.evaluation("teacher")
    assert teacher is not None and len(teacher.scores["triage"]) == len(rows)


def test_the_teacher_is_the_checkpoint_that_the_plans_call_the_best(run_dir: Path, tmp_path: Path) -> None:
    assert read_run(run_dir).best == CHECKPOINTS[-1]
    other = make_run(tmp_path / "early", methods=("td", "scd"), seeds=(0,))
    for path in other.glob("distill/*/seed-0/plan.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"best": CHECKPOINTS[1]}))
    assert read_run(other).best == CHECKPOINTS[1]
    shutil.rmtree(other / "distill")
    assert read_run(other).best == CHECKPOINTS[-1], "the lowest held-out loss"
    (other / "config.toml").write_text(f'[distill]\nbest = "{CHECKPOINTS[0]}"\n')
    assert read_run(other).best == CHECKPOINTS[0]


def test_what_building_took_is_summed_by_checkpoint_and_of_this_cache_only(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "built", methods=("td",), seeds=(0,))
    run = read_run(run_dir)
    assert run.cache is not None and run.build_costs == {}
    for checkpoint, cache, part, positions in (
        (CHECKPOINTS[0], run.cache.fingerprint, (0, 2), 500),
        (CHECKPOINTS[0], run.cache.fingerprint, (1, 2), run.cache.n_positions - 500),
        (CHECKPOINTS[1], "another cache", (0, 1), 7),
    ):
        note = CostNote(run_dir, checkpoint, cache, part, Console(file=io.StringIO()))
        note.add(positions, finished=part != (1, 2))
    (run_dir / "build" / CHECKPOINTS[0] / "x.json").write_text("<script>")
    run = read_run(run_dir)
    assert run.cache is not None
    (cost,) = run.build_costs.values()
    assert (cost.checkpoint, cost.builders, cost.unfinished) == (CHECKPOINTS[0], 2, 1)
    assert cost.positions == run.cache.n_positions and cost.seconds > 0 and cost.devices == ("CPU",)
    assert any(note.startswith(f"build/{CHECKPOINTS[0]}/x.json is not a note") for note in run.missing)


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="not a run folder"):
        write_report([tmp_path])
    with pytest.raises(MissingError, match="no such folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(MissingError, match="no run folder was given"):
        write_report([])


def test_the_terminal_table_has_a_line_per_model_and_its_interval(run_dir: Path) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_table(run_dir))
    text = console.export_text()
    for name in ("teacher SFT", "student SFT", *METHODS):
        assert re.search(rf"{re.escape(name)} .*\d\d\.\d.* \[\d\d\.\d, \d+\.\d\]", text), name


@pytest.mark.parametrize("width", [80, 50, 36])
def test_a_narrow_terminal_shows_fewer_words_and_every_name_whole(run_dir: Path, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(run_dir))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for task in TASKS:
        assert task in text
    for name in ("teacher SFT", "student SFT", *METHODS):
        assert re.search(rf"│ {re.escape(name)} +│ +\d\d\.\d", text), name
    assert ("±" in text) == (width == 80)


def test_size_speed_and_time_stand_beside_quality_for_every_model(run_dir: Path, page: str) -> None:
    rows = read_csv_of_report(run_dir, "results")
    costs = {row["model"]: (row["parameters"], row["bytes"], row["tokens per second"]) for row in rows}
    assert costs["teacher SFT"] == ("12000000", "48000000", "900.0")
    assert set(costs) == {"teacher SFT", "student SFT", *METHODS}
    assert ">12 M<small>48 MB</small>" in page and ">3.1 M<small>12.4 MB</small>" in page
    times = {(row["model"], row["seed"]): row for row in read_csv_of_report(run_dir, "times")}
    assert list(times)[:2] == [("teacher SFT", ""), ("student SFT", "")]
    assert times["teacher SFT", ""]["training, seconds"] == "42.0"
    assert times["teacher SFT", ""]["peak memory, MiB"] == "812.5"
    assert times["taid", "1"]["answering the test set, seconds"] == "1.5"


def test_every_column_of_the_sequences_file_is_there_for_every_sequence(run_dir: Path) -> None:
    rows = read_csv_of_report(run_dir, "sequences")
    assert len(rows) == SEQUENCES
    assert rows[7]["sequence"] == "train-7"
    assert all(float(row["teacher checkpoint-400"]) > 0 and float(row["scd+aw seed 1"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (float("nan"), "–"), (12345, "12,345"), (-0.51234, "−0.5123"), (0.0, "0"), (2e-9, "2.00e−09")],
)
def test_numbers_are_shown_short(value: object, shown: str) -> None:
    assert number(value) == shown


def test_file_names_hold_no_path_and_nothing_hidden() -> None:
    assert slugify("../../etc/passwd") == "etc-passwd"
    assert slugify("scd+aw seed 0") == "scd+aw-seed-0"
    assert slugify("<>") == "run"

"""The report shows what a run folder has, says what it has not, and runs nothing that a run's texts contain."""

import csv
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w

from cache_builder.errors import MissingError
from tests.support.run_folder import METHODS, SEQUENCES, TASKS, make_run
from trainer.report.page import number, slugify, write_report
from trainer.report.run.run_reader import read_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return write_report([run_dir]).read_text(encoding="utf-8")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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


def test_a_run_that_only_has_its_config_still_gives_a_page(tmp_path: Path) -> None:
    run_dir = tmp_path / "fresh"
    run_dir.mkdir()
    (run_dir / "config.toml").write_text('[distill]\nmethods = ["td"]\nseeds = [0, 1]\n')
    page = write_report([run_dir]).read_text(encoding="utf-8")
    assert "No model of this run has been evaluated yet" in page
    assert "td, seed 1: not trained" in page


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


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="not a run folder"):
        write_report([tmp_path])
    with pytest.raises(MissingError, match="no such folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(MissingError, match="no run folder was given"):
        write_report([])


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


def test_the_identity_of_theorem_4_holds_for_every_student_and_its_condition_is_read_off(run_dir: Path) -> None:
    rows = read_csv_of_report(run_dir, "subdomains")
    assert len(rows) == 1 + len(METHODS) * 2
    for row in rows:
        gap = float(row["R(student) − R(teacher)"])
        assert gap == pytest.approx(float(row["TFS deficit"]) - float(row["SFS advantage"]), abs=1e-12)
        assert (row["student ahead"] == "yes") == (gap < 0)


def test_every_table_is_also_json_with_the_same_records(run_dir: Path, page: str) -> None:
    tables = json.loads((run_dir / "report" / "tables.json").read_text(encoding="utf-8"))
    assert set(tables) == {path.stem for path in (run_dir / "report").glob("*.csv")}
    for name, rows in tables.items():
        written = read_csv(run_dir / "report" / f"{name}.csv")
        assert len(rows) == len(written)
        for row, cells in zip(rows[:20], written, strict=False):
            for column, value in row.items():
                assert cells[column] in (str(value), "" if value is None else None, "nan" if value is None else None)


def test_a_text_that_a_spreadsheet_would_run_is_a_text_in_the_csv_file(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", methods=("td",), seeds=(0,), tasks={"=1+1": "@a"}, ids="-cmd|{}")
    write_report([run_dir])
    cells = [
        cell
        for name in ("results", "metrics", "sequences")
        for row in csv.reader((run_dir / "report" / f"{name}.csv").read_text(encoding="utf-8").splitlines())
        for cell in row
    ]
    assert "'=1+1" in cells and "'@a" in cells and "'-cmd|5" in cells
    for cell in cells:
        assert not cell.startswith(("=", "+", "@")) and (not cell.startswith("-") or float(cell) < 0)

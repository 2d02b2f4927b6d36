"""Sections that need more than a finished run: cross-fitted weights, a live teacher, the notes of a build."""

import csv
import io
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from rich.console import Console

from cache_builder.build.costs import CostNote
from cache_builder.cache.reader import open_cache
from tests.support.run_folder import CHECKPOINTS, SEQUENCES, make_run
from trainer.losses_file import write_losses
from trainer.report.page import write_report
from trainer.report.results import result_table
from trainer.report.run.run_reader import read_run
from trainer.report.sections.costs import costs_section
from trainer.report.sections.subdomains import subdomains_section
from trainer.report.sections.weights import weights_section


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def with_settings(run_dir: Path, **settings: object) -> Path:
    """Add sections to a run's config."""
    path = run_dir / "config.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | settings))
    return run_dir


def test_weights_are_those_that_training_used_where_they_were_cross_fitted(tmp_path: Path) -> None:
    run_dir = with_settings(
        make_run(tmp_path / "cross", methods=("td+aw",), seeds=(0,)),
        distill={"methods": ["td+aw"], "seeds": [0], "aw_source": "crossfit"},
    )
    assert any("cross-fitted losses of the student" in note for note in read_run(run_dir).missing)
    fingerprint = open_cache(str(run_dir / "cache")).fingerprint
    write_losses(run_dir / "crossfit/student/losses/student.safetensors", np.full(SEQUENCES, 2.0), fingerprint)
    for name in CHECKPOINTS:
        write_losses(run_dir / f"crossfit/teacher/losses/{name}.safetensors", np.full(SEQUENCES, 1.0), fingerprint)
    section = weights_section(read_run(run_dir))
    (table,) = section.tables
    rows = [row for row in table.rows if row["when"] == "cross-fitted"]
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
    rows: list[dict[str, Any]] = list(table.rows)
    assert [row["checkpoint"] for row in rows] == [*CHECKPOINTS[:3], "in total"]
    assert rows[-1]["positions captured"] == 2 * cache.n_positions + 126
    assert rows[-1]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows[:-1]))
    assert all(row["peak memory, MiB"] > 10 for row in rows)
    lacking, again, partly, _ = section.notes
    assert f"no note of the build of {CHECKPOINTS[3]}:" in lacking
    assert again.startswith(f"{CHECKPOINTS[1]}: {cache.n_positions + 63:,} positions were captured")
    assert f"The notes cover only a part of {CHECKPOINTS[2]}:" in partly


def test_rows_of_entities_are_weighed_by_their_entities_where_student_and_teacher_are_compared(tmp_path: Path) -> None:
    """Row 0 has nine entities, which the student has right; rows 1 to 9 one each, which the teacher has right."""
    run_dir = make_run(tmp_path / "run", methods=("td",), seeds=(0,), tasks={"entities": "entity_f1"})
    for model in ("teacher", "td/seed-0/best", "student_sft"):
        rows = [
            {
                "id": f"test-{row}",
                "task": "entities",
                "score": float((row == 0) == (model == "td/seed-0/best")),
                "weight": 18.0 if row == 0 else 2.0,
            }
            for row in range(10)
        ]
        path = run_dir / "evaluate" / model / "predictions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(run_dir)
    section = subdomains_section(run, result_table(run))
    (table,) = [table for table in section.tables if table.name == "subdomains_score"]
    (ours,) = [row for row in table.rows if row["student"] == "td"]
    assert (ours["student ahead, share"], ours["teacher ahead, share"]) == (0.1, 0.9)
    assert (ours["won, ×100"], ours["lost, ×100"], ours["margin, ×100"]) == pytest.approx((50.0, 50.0, 0.0))

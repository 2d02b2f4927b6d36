"""A run folder is read as far as it goes, and what is damaged or missing is named."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cache_builder.build.costs import CostNote
from tests.support.run_folder import CHECKPOINTS, SEQUENCES, make_run
from trainer.losses_file import write_losses
from trainer.report.results import result_table
from trainer.report.run.run_reader import read_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


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


def test_losses_of_another_corpus_are_not_compared(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "other", methods=("td",), seeds=(0,))
    path = run_dir / "losses" / "student.safetensors"
    cache = read_run(run_dir).cache
    assert cache is not None
    for losses_N, fingerprint, note in (
        (np.ones(SEQUENCES), "another cache, of as many sequences", "belongs to the cache another cach"),
        (np.ones(SEQUENCES - 1), cache.fingerprint, f"expected {SEQUENCES} finite losses"),
    ):
        write_losses(path, losses_N, fingerprint)
        run = read_run(run_dir)
        assert run.student_losses is None
        assert any(note in found for found in run.missing), run.missing


def test_an_older_log_is_read_by_the_names_of_today(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "old", methods=("td+aw",), seeds=(0,))
    path = run_dir / "distill/td+aw/seed-0/log.json"
    log = read_run(run_dir).distilled[0].log
    path.write_text(path.read_text().replace("divergence_weight", "teacher_weight"))
    assert read_run(run_dir).distilled[0].log == log and any("divergence_weight" in entry for entry in log)


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

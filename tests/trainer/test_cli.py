"""Every command, on a toy, as a user runs it; and every mistake, as a user makes it."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from cache_builder.data.examples import Example
from cache_builder.data.tokenizer import train_tokenizer
from tests.support.paths import ROOT
from tests.support.toys import color_examples, write_toy
from trainer.cli import main


def footsteps(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def refusal(*arguments: object) -> str:
    """Run a command that must be refused; return its message."""
    result = footsteps(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.output.count("error:") == 1
    return " ".join(result.output.split())


def into(run: Path) -> tuple[str, str]:
    return "--set", f"run.output_dir='{run}'"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy on which `run` has done everything; tests must not change it."""
    config = write_toy(tmp_path_factory.mktemp("toy"))
    result = footsteps("run", config)
    assert result.exit_code == 0, result.output
    assert "losses on the training data" not in result.output, "a bar is for terminals"
    return config


def table(run: Path) -> dict[str, dict[str, Any]]:
    """What every model scored."""
    files = sorted((run / "evaluate").rglob("metrics.json"))
    return {str(path.parent.relative_to(run)): json.loads(path.read_text())["tasks"] for path in files}


def test_run_does_every_stage_and_says_where_the_report_is(finished: Path) -> None:
    run = finished.parent / "run"
    assert set(table(run)) == {
        f"evaluate/{name}"
        for name in (
            "teacher",
            "student_sft",
            *(f"{method}/seed-0/{which}" for method in ("sft", "scd+aw") for which in ("best", "last")),
        )
    }
    assert (run / "report" / "index.html").read_text().count("scd+aw")
    assert len(json.loads((run / "distill/scd+aw/seed-0/plan.json").read_text())["stages"]) == 3
    losses = load_file(run / "losses" / "student.safetensors")["loss"]
    assert (losses > 0).all()


def test_running_again_changes_nothing(finished: Path) -> None:
    run = finished.parent / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert footsteps("run", finished).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}


def test_a_run_can_be_replayed_from_its_own_saved_config(finished: Path, tmp_path: Path) -> None:
    run, again = finished.parent / "run", tmp_path / "again"
    assert footsteps("run", run / "config.toml", *into(again)).exit_code == 0
    assert table(again) == table(run)


def test_settings_that_a_run_refuses_are_not_those_that_its_folder_keeps(finished: Path) -> None:
    kept = (finished.parent / "run" / "config.toml").read_bytes()
    message = refusal("sft", finished, "student", "--set", "sft.student.learning_rate=0.5")
    assert "training.learning_rate: it has 0.003, now 0.5" in message
    assert (finished.parent / "run" / "config.toml").read_bytes() == kept


def test_every_stage_by_itself_gives_what_run_gives(finished: Path, tmp_path: Path) -> None:
    elsewhere = into(tmp_path / "run")
    for command in (
        ("sft", finished, "teacher"),
        ("cache", "build", finished),
        ("sft", finished, "student"),
        ("losses", finished),
        ("distill", finished, "--method", "sft"),
        ("distill", finished),
        ("evaluate", finished),
    ):
        assert footsteps(*command, *elsewhere).exit_code == 0, command
    assert footsteps("report", tmp_path / "run").exit_code == 0
    assert table(tmp_path / "run") == table(finished.parent / "run")


def test_machines_are_told_each_stage_step_and_skip_and_people_why(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    steps, again = (
        [json.loads(line) for line in footsteps("run", config, "--json").stdout.splitlines()] for _ in range(2)
    )
    events = [line["event"] for line in steps]
    assert {"stage", "step", "built", "evaluated", "report"} <= set(events) and "skipped" not in events
    first = next(line for line in steps if line["event"] == "step")
    assert first["name"] == "teacher" and 0 < first["step"] < first["steps"] and first["seconds_left"] > 0
    skipped = [line for line in again if line["event"] == "skipped"]
    assert not {"step", "built", "evaluated"} & {line["event"] for line in again}
    built = {line["name"] for line in steps if line["event"] == "built"}
    judged = {line["name"] for line in steps if line["event"] == "evaluated"}
    assert {line["name"] for line in skipped if "name" in line} == built | judged
    assert footsteps("run", config, "--quiet").output == ""
    said = footsteps("run", config).output
    assert "complete, from these inputs; skipped" in said and "judged already" in said


def test_quiet_and_json_exclude_each_other(tmp_path: Path) -> None:
    assert "exclude each other" in footsteps("run", write_toy(tmp_path), "--quiet", "--json").output


def count_files(folder: Path) -> int:
    """Count what is below a folder while another process changes it."""
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_table(finished: Path, tmp_path: Path) -> None:
    """SIGKILL at random instants, each time a little later on average, until a run gets through."""
    command = [sys.executable, "-m", "trainer.cli", "run", str(finished), *into(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    delays = random.Random(int(time.time()))
    kills = 0
    with (tmp_path / "log").open("w") as log:
        for attempt in range(60):
            begun = count_files(tmp_path / "run")
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
            while process.poll() is None and count_files(tmp_path / "run") == begun:
                time.sleep(0.02)  # nothing is written while Python imports
            try:
                process.wait(delays.uniform(0, 1 + attempt))
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            if process.wait() == 0:
                break
    messages = (tmp_path / "log").read_text()
    assert process.returncode == 0, messages[-2000:]
    assert "Traceback" not in messages, messages
    assert kills > 2
    assert table(tmp_path / "run") == table(finished.parent / "run")


@pytest.mark.slow
def test_two_processes_end_with_the_table_of_one_and_say_it_once(finished: Path, tmp_path: Path) -> None:
    half_batches = [f"{section}.per_device_train_batch_size=4" for section in ("sft.teacher", "sft.student", "distill")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = ["trainer.cli", "run", str(finished), *into(tmp_path / "run")]
    overrides = [part for override in half_batches for part in ("--set", override)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *command, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tables = [table(tmp_path / "run"), table(finished.parent / "run")]
    masses = [
        [task["decoding"].pop("padded_mass") for tasks in each.values() for task in tasks.values()] for each in tables
    ]
    assert tables[0] == tables[1]
    # two processes sum a gradient in another order, so a probability differs in its last digits where no score does
    assert masses[0] == pytest.approx(masses[1], rel=1e-5)
    assert done.stdout.count("report: ") == 1
    ours, theirs = (
        load_file(folder / "distill/scd+aw/seed-0/last/model.safetensors")
        for folder in (tmp_path / "run", finished.parent / "run")
    )
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=1e-3, err_msg=name)


def test_the_settings_are_listed_with_their_meaning() -> None:
    output = footsteps("config").output
    assert "epochs_per_stage" in output


# Mistakes. Each is one message, exit code 2, no traceback, and nothing half-written.


def test_an_unknown_key_is_refused(finished: Path) -> None:
    assert "cache.topk: unknown key" in refusal("run", finished, "--set", "cache.topk=3")


def test_a_wrong_type_is_refused(finished: Path) -> None:
    assert "distill.epochs_per_stage" in refusal("run", finished, "--set", "distill.epochs_per_stage='two'")


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    assert "nowhere.toml" in refusal("run", tmp_path / "nowhere.toml")


def write_rows(path: Path, rows: list[Example]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_example_without_a_completion_is_refused_by_its_id(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    rows = color_examples(20)
    rows[7]["messages"] = rows[7]["messages"][:1]
    write_rows(tmp_path / "train.jsonl", rows)
    assert "'color-7'" in refusal("sft", config, "student")
    assert not (tmp_path / "run" / "student").exists()


def test_a_template_that_breaks_the_prompt_is_refused(tmp_path: Path) -> None:
    template = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    config = write_toy(tmp_path)
    assert "breaks the prompt" in refusal("sft", config, "student", "--set", f"text.chat_template='{template}'")


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    assert "train.jsonl is empty" in refusal("run", config)


def test_a_missing_model_folder_is_refused(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    assert "no such folder" in refusal("run", config, "--set", f"teacher.model='{tmp_path}/nowhere/model'")


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    assert "vocabulary rows" in refusal("sft", config, "teacher", "--set", "tokenizer.train_vocab_size=500")


def test_a_stage_before_its_time_names_the_command_to_run_first(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    assert "footsteps sft CONFIG teacher" in refusal("cache", "build", config)
    assert "footsteps cache build" in refusal("distill", config)


def test_k_above_the_vocabulary_is_refused_before_a_model_is_loaded(finished: Path, tmp_path: Path) -> None:
    elsewhere = ("--set", f"cache.path='{tmp_path}/cache'")
    message = refusal("cache", "build", finished, "--set", "cache.top_k=5000", *elsewhere)
    assert "top_k" in message and "5000" in message.replace(",", "")
    assert not (tmp_path / "cache" / "zarr.json").exists()


def test_another_tokenizer_than_the_caches_is_refused_naming_both(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("cache", "losses"):
        shutil.copytree(finished.parent / "run" / name, run / name)
    train_tokenizer((f"{index} pale brown" for index in range(300)), 310, tmp_path / "other")
    message = refusal(
        "distill",
        finished,
        *into(run),
        *("--set", f"tokenizer={{path='{tmp_path}/other'}}"),
    )
    assert "tokenizer" in message and message.count("…") == 2
    assert not (run / "distill").exists()


def test_student_losses_of_another_cache_are_refused(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.parent / "run", run, ignore=shutil.ignore_patterns("distill"))
    path = run / "losses" / "student.safetensors"
    save_file(load_file(path), path, metadata={"cache_fingerprint": "f" * 64})
    message = refusal("distill", finished, "--method", "scd+aw", *into(run))
    assert "footsteps losses" in message


def test_settings_that_changed_since_a_stage_ran_are_refused_by_name(finished: Path) -> None:
    message = refusal("sft", finished, "student", "--set", "sft.student.learning_rate=1e-3")
    assert "learning_rate" in message and "run.output_dir" in message


def test_no_command_s_line_in_the_list_is_cut_short_at_80_columns() -> None:
    for group in (main, *(command for command in main.commands.values() if isinstance(command, click.Group))):
        for name, command in group.commands.items():
            line = command.get_short_help_str(limit=66)
            assert line and not line.endswith("...") and len(line) > 20, (name, line)

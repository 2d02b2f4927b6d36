"""Students that are shrunk out of a larger model, from the config to the table."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.shrinkable import save_source
from tests.support.toys import write_toy
from trainer.cli import main

MODELS = ("teacher, stories260K", "student as shrunk", "td, seed 0")
NAMES, THINGS = ("Tom", "Lily", "Ben", "Mia"), ("ball", "dog", "cake", "hat", "car")


def footsteps(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_run_shrinks_the_student_itself_and_trains_and_judges_it(tmp_path: Path) -> None:
    config = write_toy(tmp_path, examples=60)
    source = save_source(tmp_path / "source")
    settings = ["--set", f"student.model='{source}'", "--set", "shrink.layers=2", "--set", "distill.methods=['td']"]
    settings += [
        "--set",
        "evaluate.base=true",
        "--set",
        "teacher.checkpoints=1",
        "--set",
        "sft.teacher.num_train_epochs=1",
    ]
    first = footsteps("shrink", config, *settings, "--json")
    assert first.exit_code == 0, first.output
    told, student = map(json.loads, first.stdout.splitlines()[-2:])
    assert student["event"] == "result" and student["path"] == told["student"]["model"]
    assert (told["source"]["layers"], told["student"]["layers"], len(told["layers"])) == (5, 2, 2)
    result = footsteps("run", config, *settings)
    assert result.exit_code == 0, result.output
    assert "shrink the student" in result.output and "td" in result.output
    run = tmp_path / "run"
    for folder in ("student/best", "distill/td/seed-0/best"):
        assert json.loads((run / folder / "config.json").read_text())["num_hidden_layers"] == 2
    for name in ("base", "teacher_base", "teacher"):
        assert (run / "evaluate" / name / "metrics.json").is_file(), name
    assert "teacher base" in result.output and "student base" in result.output
    again = footsteps("shrink", config, *settings, "--json")
    assert {**json.loads(again.stdout.splitlines()[-2]), "time": told["time"]} == told
    assert footsteps("shrink", config, *settings, "--quiet").output == ""
    other = footsteps("run", config, *settings, "--set", "shrink.layers=3")
    assert other.exit_code == 2 and "run/shrunk was made from other settings" in " ".join(other.output.split())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use
def test_students_of_two_sizes_train_from_one_cache_of_adapters(tmp_path: Path) -> None:
    config, source = write_toy(tmp_path, examples=60), save_source(tmp_path / "source")
    common = [f"student.model='{source}'", f"teacher.model='{source}'", "distill.methods=['td']"]
    first = [*common, "shrink.layers=2", "teacher.lora.r=2", "teacher.checkpoints=2"]
    result = footsteps("run", config, *(part for each in first for part in ("--set", each)))
    assert result.exit_code == 0, result.output
    cache = tmp_path / "run" / "cache"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in cache.rglob("*") if path.is_file()}
    kept = [str(cache.parent / "teacher" / path.name) for path in sorted((cache / "checkpoints").glob("checkpoint-*"))]
    kept.sort(key=lambda path: int(path.rpartition("-")[2]))
    second = [*common, "shrink.layers=3", f"teacher.checkpoints={kept}", f"cache.path='{cache}'"]
    second += [f"run.output_dir='{tmp_path}/second'"]
    result = footsteps("run", config, *(part for each in second for part in ("--set", each)))
    assert result.exit_code == 0, result.output
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    for run, layers in (("run", 2), ("second", 3)):
        saved = json.loads((tmp_path / run / "distill/td/seed-0/best/config.json").read_text())
        assert saved["num_hidden_layers"] == layers


def test_a_shrunk_student_is_healed_on_plain_texts_from_the_base_teachers_cache(
    tmp_path: Path, shared_data: Path
) -> None:
    pretrained = shared_data / "models" / "stories260K"
    texts = [
        f"Once upon a time, there was a little child named {NAMES[row % 4]}. {NAMES[row % 4]} loved to play with a "
        f"{THINGS[row % 5]}. One day, {NAMES[row % 4]} saw a big {THINGS[row * 3 % 5]} and wanted to share it."
        for row in range(60)
    ]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = tmp_path / "heal.toml"
    config.write_text(f"""
[run]
output_dir = "{tmp_path}/run"
[data]
train = "{tmp_path}/general.jsonl"
[teacher]
model = "{pretrained}"
checkpoints = ["{pretrained}"]
[student]
model = "{pretrained}"
[shrink]
layers = 3
[sft.student]
num_train_epochs = 1
[distill]
methods = ["td"]
alpha = 1.0
learning_rate = 1e-3
epochs_per_stage = 2
""")
    result = footsteps("run", config)
    assert result.exit_code == 0, result.output
    assert "test: none" in result.output
    told = (re.search(rf"^ +{name} +([0-9.]+) *$", result.output, re.MULTILINE) for name in MODELS)
    teacher, shrunk, healed = (float(found[1]) for found in told if found)
    assert shrunk > teacher + 1 > healed
    assert not (tmp_path / "run" / "evaluate").exists()
    refused = footsteps("evaluate", config)
    assert refused.exit_code == 2 and "no test examples to evaluate on; give data.test" in refused.output

"""`footsteps plan` and `run --plan`: what they print, for people and machines, and what they refuse."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cache_builder.build.build import build_cache
from cache_builder.cache.reader import open_cache
from cache_builder.data.prepare import Prepared
from tests.support.toys import load_toy, write_toy
from tools.capacity_page import PAGE, regenerated
from tools.measured_table import measured_toml
from tools.measuring import RESULTS
from trainer.cli import main
from trainer.planning.command import HARDWARE_OPTIONS
from trainer.planning.hardware import HARDWARE_FIELDS
from trainer.planning.measured import FILE, Constant, load_measured
from trainer.planning.units import format_bytes, format_seconds, parse_number

TEACHER = "configs/models/snips-teacher"
SIZES = ("--teacher", "8B", "--student", "3B", "--positions", "1e9")


def footsteps(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def as_json(*arguments: object) -> dict[str, Any]:
    result = footsteps("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: object) -> str:
    result = footsteps("plan", *arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output
    return result.output


def words(text: str) -> list[str]:
    """The words of a table, however its cells were wrapped."""
    return re.findall(r"[\w.+]+", text)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("plan"))


def test_the_plan_of_sizes_says_what_is_assumed_and_what_was_measured() -> None:
    output = footsteps("plan", *SIZES, "--gpus", "8", "--sources").output
    for words in ("cache build", "students, online", "Assumed, not measured", "mfu-train 0.35", "Given: gpus 8"):
        assert words in output
    for constant in load_measured().constants.values():
        assert constant.name in output and constant.commit in output


def test_machines_get_seconds_bytes_and_dollars_with_the_origin_of_each_input() -> None:
    facts = as_json(*SIZES, "--gpu", "h200", "--gpu-price", "4")
    assert facts["seconds"] == pytest.approx(sum(stage["seconds"] for stage in facts["stages"]))
    assert facts["money"] == pytest.approx(4 * sum(stage["gpu_hours"] for stage in facts["stages"]))
    assert facts["inputs"]["gpu_memory"] == {"value": 141e9, "origin": "given"}
    assert facts["inputs"]["mfu_train"]["origin"] == "assumed"
    assert {row["name"] for row in facts["measured"]} == set(load_measured().constants)
    assert facts["cache"]["bytes"] < facts["cache"]["bytes_at_most"]


def test_a_config_says_its_stages_steps_and_costs_without_a_model_or_a_corpus(config: Path) -> None:
    overrides = ("run.output_dir='r'", f"teacher.model='{TEACHER}'", f"student.model='{TEACHER}'")
    short = [part for override in overrides for part in ("--set", override)]
    output = footsteps("plan", config, *short).output
    stages, costs = output.split("time and money", 1)
    assert "scd+aw; seeds 0" in stages and "3 checkpoints kept" in stages
    assert "positions estimated at 4 bytes a token" in stages
    for stage in ("sft teacher", "cache build", "losses", "students", "students of sft", "online"):
        assert stage in costs
    assert not Path("r").exists()
    alone = footsteps("run", config, "--plan", *short).stdout
    assert set(words(alone.split("report")[0])) <= set(words(stages)) and "footsteps plan" in alone


def test_the_plan_of_a_tokenised_corpus_is_exact_in_files_and_above_in_bytes(config: Path, tmp_path: Path) -> None:
    teachers = []
    for number in (1, 2):
        shutil.copytree(config.parent / "teacher-init", tmp_path / f"step-{number}")
        teachers.append((f"step-{number}", str(tmp_path / f"step-{number}")))
    overrides = (f"run.output_dir='{tmp_path / 'run'}'", f"teacher.checkpoints={[path for _, path in teachers]}")
    experiment = load_toy(config, *overrides)
    prepared = Prepared(experiment)
    assert build_cache(experiment, prepared.train, prepared.tokenizer, teachers, prepared.validation)
    facts = as_json(config, *(part for override in overrides for part in ("--set", override)))
    folder = tmp_path / "run" / "cache"
    found = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts]
    cache = open_cache(str(folder))
    records = sum(
        entry.bytes for file, entry in cache.checkpoint("step-1").files.items() if file.startswith("records/c")
    )
    assert facts["corpus"]["source"] == "tokenised"
    assert facts["corpus"]["tokens"] == cache.manifest.corpus.tokens
    assert facts["corpus"]["held_out_positions"] == prepared.validation.n_positions
    assert abs(facts["cache"]["files"] - len(found)) <= 0
    assert sum(found) <= facts["cache"]["bytes_at_most"]
    assert records / cache.corpus.n_positions <= facts["cache"]["bytes_per_position_at_most"]


def test_numbers_given_override_the_config(config: Path) -> None:
    facts = as_json(config, "--positions", "1e8", "--share", "1", "--length", "100", "--checkpoints", "7")
    assert facts["corpus"]["positions"] == facts["corpus"]["tokens"] == 1e8
    assert facts["corpus"]["sequences"] == 1e6
    assert facts["cache"]["shards_per_checkpoint"] == -(-(10**8) // 128)
    seven = as_json(config, "--set", "teacher.checkpoints=7", "--positions", "1e8", "--share", "1", "--length", "100")
    assert seven["stages"] == facts["stages"]


def test_every_field_of_the_machines_is_an_option() -> None:
    assert tuple(HARDWARE_OPTIONS) == HARDWARE_FIELDS
    base = as_json(*SIZES)["inputs"]
    for name in HARDWARE_FIELDS:
        facts = as_json(*SIZES, f"--{name.replace('_', '-')}", "1")["inputs"]
        assert facts[name] == {"value": 1, "origin": "given"}
        assert {**facts, name: base[name]} == base


def test_what_costs_nothing_may_be_given_as_zero() -> None:
    facts = as_json(*SIZES, "--gpu-price", "0", "--storage-price", "0", "--loader-workers", "0")
    assert (facts["money"], facts["storage_money"]) == (0, 0)


def test_what_does_not_fit_is_noted() -> None:
    notes = " ".join(as_json("--teacher", "70B", "--student", "8B", "--positions", "1e12")["notes"])
    for words in ("cache build: ", "do not fit a GPU", "cache.shard_positions=4194304", "opening takes every process"):
        assert words in notes
    assert as_json("--teacher", "1B", "--student", "100M", "--positions", "1e7")["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--teacher", "8B"), "--student, --positions must be given"),
        ((*SIZES, "--gpu", "tpu"), "expected one of a100"),
        ((*SIZES, "--gpus", "many"), "not a positive number"),
        ((*SIZES, "--gpu-price", "-1"), "not a positive number"),
        (("--teacher", "big", "--student", "3B", "--positions", "1e9"), "such as 8B"),
        ((*SIZES, "--set", "cache.topk=3"), "cache.topk: unknown key"),
        ((*SIZES, "--share", "1.5"), "--share"),
        ((*SIZES, "--gpus", "0.5"), "--gpus 0.5: expected a whole number"),
        ((*SIZES, "--gpus", "0"), "--gpus: '0' is not a positive number"),
        ((*SIZES, "--mfu-train", "35"), "at most 1"),
        (("nowhere.toml",), "no such file"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_do(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(*arguments).replace("\n", " ")


def test_a_config_whose_data_is_not_here_asks_for_the_number_of_positions(config: Path) -> None:
    absent = ("--set", "data.train='nowhere.jsonl'")
    assert "give --positions" in refusal(config, *absent)
    assert as_json(config, *absent, "--positions", "1e6")["corpus"]["positions"] == 1e6
    assert "not to be read" in " ".join(words(footsteps("run", config, "--plan", *absent).output))


def test_numbers_are_read_and_written_as_people_do() -> None:
    assert [parse_number(text) for text in ("1e9", "80G", "8B", "1,000", "0.5")] == [1e9, 80e9, 8e9, 1000, 0.5]
    assert format_bytes(75e12) == "68.2 TiB"
    assert [format_seconds(value) for value in (0.5, 90, 7300, 86400 * 3)] == ["0.5 s", "90.0 s", "2.0 h", "3.0 days"]


# What the plan is made from, and the page that quotes it.


def rows_of(constant: Constant) -> list[dict[str, str]]:
    with (RESULTS / constant.csv).open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["commit"] == constant.commit]


def test_every_measured_figure_follows_from_the_rows_of_its_commit(tmp_path: Path) -> None:
    """Rows that are added later do not make it wrong; `python -m tools.measured_table` takes them up."""
    constants = load_measured().constants.values()
    commits = {constant.csv: constant.commit for constant in constants}
    for path in RESULTS.glob("*.csv"):
        lines = path.read_text().splitlines(keepends=True)
        wanted = commits.get(path.name) if path.name != "opening.csv" else None
        kept = [line for line in lines[1:] if wanted is None or line.startswith(f"{wanted},")]
        (tmp_path / path.name).write_text("".join([lines[0], *kept]))
    assert measured_toml(tmp_path) == FILE.read_text()
    assert all(rows_of(constant) for constant in constants)


def test_the_capacity_page_says_what_the_command_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"^\$ footsteps plan ", page, re.MULTILINE)) >= 3
    assert regenerated(page) == page, "python -m tools.capacity_page --write"

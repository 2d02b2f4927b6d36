"""`footsteps plan`: what it prints, for people and programs, and what it refuses."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cache_builder.build.build import build_cache
from cache_builder.cache.reader import open_cache
from cache_builder.data.prepare import Prepared
from tests.support.paths import ROOT
from tests.support.toys import load_toy, write_toy
from trainer.cli import main
from trainer.planning.units import format_bytes, format_hours, parse_number

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
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("plan"))


def test_a_config_says_its_stages_steps_and_bytes_without_a_model_or_a_corpus(config: Path) -> None:
    result = footsteps("plan", config, "--set", "run.output_dir='r'")
    assert result.exit_code == 0, result.output
    for words in (
        "3 checkpoints kept",
        "sft, scd+aw; seeds 0",
        "2 × 3 stages",
        "estimated at 4 bytes a token",
        "4 models",
    ):
        assert words in " ".join(result.output.split()), words
    assert "forward, one GPU: not known" in result.output
    assert not Path("r").exists()


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
    assert facts["corpus"]["source"] == "tokenised"
    assert facts["corpus"]["tokens"] == cache.manifest.corpus.tokens
    assert prepared.validation is not None
    assert facts["corpus"]["held_out_positions"] == prepared.validation.n_positions
    assert facts["cache"]["files"] == len(found)
    assert sum(found) <= facts["cache"]["bytes_at_most"]
    assert facts["rates"]["forward"]["flops_per_second"] > 0, "the build was measured"
    assert facts["stages"][1]["name"] == "cache build" and facts["stages"][1]["gpu_hours"] > 0


def test_numbers_given_override_the_config(config: Path) -> None:
    facts = as_json(config, "--positions", "1e8", "--share", "1", "--length", "100")
    assert facts["corpus"]["positions"] == facts["corpus"]["tokens"] == 1e8
    assert facts["corpus"]["sequences"] == 1e6
    assert facts["cache"]["shards_per_checkpoint"] == -(-(10**8) // 128)


def test_a_rate_that_is_given_makes_gpu_hours_of_operations() -> None:
    facts = as_json(*SIZES, "--flops", "4e14")
    for stage in facts["stages"]:
        assert stage["gpu_hours"] == (stage["flops"] / 4e14 / 3600 if stage["kind"] else None)
    assert all(stage["gpu_hours"] is None for stage in as_json(*SIZES)["stages"])


def test_settings_that_do_not_fit_the_size_are_noted() -> None:
    notes = " ".join(as_json(*SIZES[:-1], "1e12", "--set", "cache.chunk_positions=65536")["notes"])
    for words in ("cache.shard_positions=4194304", "distill.window_chunks=67", "of JSON ledgers in every process"):
        assert words in notes
    assert as_json("--teacher", "1B", "--student", "100M", "--positions", "1e7")["notes"] == []


def test_a_size_that_is_guessed_from_a_name_is_said_to_be() -> None:
    sizes = ("--teacher", "someone/Thing-8B@main", "--student", "3B", "--positions", "1e9")
    assert [note.partition(":")[0] for note in as_json(*sizes)["notes"]] == ["teacher someone/Thing-8B@main"]
    printed = " ".join(footsteps("plan", *sizes).output.split())
    assert "note: teacher someone/Thing-8B@main: parameters, layers and vocabulary are guessed" in printed
    assert "`hf download someone/Thing-8B config.json`" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--teacher", "8B"), "--student, --positions must be given"),
        ((*SIZES, "--flops", "fast"), "not a positive number"),
        ((*SIZES, "--flops", "0"), "not a positive number"),
        (("--teacher", "big", "--student", "3B", "--positions", "1e9"), "such as 8B"),
        ((*SIZES, "--set", "cache.topk=3"), "cache.topk: unknown key"),
        ((*SIZES, "--share", "1.5"), "--share"),
        (("nowhere.toml",), "no such file"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_do(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(*arguments)


def test_a_config_whose_data_is_not_here_asks_for_the_number_of_positions(config: Path) -> None:
    absent = ("--set", "data.train='nowhere.jsonl'")
    assert "give --positions" in refusal(config, *absent)
    assert as_json(config, *absent, "--positions", "1e6")["corpus"]["positions"] == 1e6


def test_numbers_are_read_and_written_as_people_do() -> None:
    assert [parse_number(text) for text in ("1e9", "80G", "8B", "1,000", "0.5")] == [1e9, 80e9, 8e9, 1000, 0.5]
    assert format_bytes(75e12) == "68.2 TiB"
    assert [format_hours(value) for value in (None, 0.05, 7.3, 1234.0)] == ["", "0.05", "7.3", "1,234"]


def test_the_capacity_page_says_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n\$ footsteps ([^`]*?)\n\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    for command, printed in blocks:
        result = footsteps(*shlex.split(command.replace("\\\n", " ")))
        lines = [line.rstrip() for line in result.stdout.splitlines()]
        assert [line for line in lines if line] == [line for line in printed.splitlines() if line], command

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.cache.reader import open_cache
from cache_builder.cli.cache import cache as cache_command
from cache_builder.errors import CacheDamagedError, CacheMismatchError, ConfigError, MissingError, UserError
from tests.support.caches import SMALL, Teaching, files_of, make_teaching
from tests.support.toys import color_examples
from tools.make_fixture_cache import FOLDER as FIXTURE_FOLDER


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., LlamaForCausalLM],
) -> Path:
    """An experiment with two ready checkpoints and a built cache."""
    folder = tmp_path_factory.mktemp("experiment")
    teaching = make_teaching(folder / "teaching", tokenizer, make_model, sequences=60)
    for name, examples in (("train", color_examples(50)), ("validation", color_examples(56)[50:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(example) for example in examples))
    experiment = {
        "run": {"output_dir": str(folder / "run")},
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")},
        "text": {"chat_template": "plain", "max_length": 64},
        "tokenizer": {"path": str(folder / "teaching" / "tokenizer")},
        "teacher": {"model": teaching.checkpoints[-1][1], "checkpoints": [place for _, place in teaching.checkpoints]},
        "cache": SMALL,
    }
    (folder / "experiment.toml").write_text(tomli_w.dumps(experiment))
    assert call("build", folder / "experiment.toml").endswith("complete\n")
    return folder / "experiment.toml"


def call(*arguments: str | Path) -> str:
    """Run a command and return what it prints; what it raises is raised here."""
    result = CliRunner().invoke(cache_command, [str(argument) for argument in arguments], catch_exceptions=False)
    if result.exit_code:
        raise RuntimeError(result.output)
    return result.stdout


def test_build_builds_the_configured_cache_and_parts_need_each_other(config: Path, tmp_path: Path) -> None:
    built = config.parent / "run" / "cache"
    assert open_cache(str(built)).checkpoints == ("step-1", "step-2")
    assert open_cache(str(built)).held_out("step-1") is not None
    there = f"cache.path={tmp_path / 'cache'}"
    assert "other parts are not" in call("build", config, "--set", there, "--part", "1/2")
    assert call("build", config, "--set", there, "--part", "0/2").endswith("complete\n")
    assert files_of(tmp_path / "cache") == files_of(built)


def test_build_adds_one_checkpoint_by_name(config: Path, tmp_path: Path) -> None:
    there = f"cache.path={tmp_path / 'cache'}"
    call("build", config, "--set", there, "--checkpoint", "step-1")
    assert open_cache(str(tmp_path / "cache")).checkpoints == ("step-1",)
    with pytest.raises(MissingError, match="there are: step-1, step-2"):
        call("build", config, "--set", there, "--checkpoint", "step-7")
    with pytest.raises(ConfigError, match="expected i/n"):
        call("build", config, "--part", "2/2")


def test_info_prints_sizes_mass_and_losses_of_every_checkpoint(config: Path) -> None:
    text = call("info", config)
    assert "50 sequences, 100 positions" in text
    facts = json.loads(call("info", config, "--json"))
    assert [row["name"] for row in facts["checkpoints"]] == ["step-1", "step-2"]
    cache = open_cache(str(config.parent / "run" / "cache"))
    for row in facts["checkpoints"]:
        assert row["loss"] == pytest.approx(cache.losses(row["name"]).sum() / 100)
        mass = row["retained_mass"]
        assert 0 < mass["p99"] <= mass["p90"] <= mass["p50"] < 1
        assert row["bytes_per_position"] == row["bytes"] / 100
        folder = config.parent / "run" / "cache" / "checkpoints" / row["name"]
        on_disk = sum(len(data) for key, data in files_of(folder).items() if key != "zarr.json")
        assert row["bytes"] == on_disk
    assert json.loads(call("info", FIXTURE_FOLDER, "--json"))["vocabulary"] == 100_000


def test_verify_counts_what_is_intact_and_names_what_is_not(config: Path, tmp_path: Path) -> None:
    intact = call("verify", config)
    assert re.search(r"\d+ files, [\d,]+ bytes, all as committed", intact)
    copy = Path(shutil.copytree(FIXTURE_FOLDER, tmp_path / "cache"))
    (copy / "notes.txt").write_text("mine")
    assert "all as committed" in call("verify", copy)
    for key in ("corpus/tokens/c/0", "checkpoints/step-2/loss/c/0"):
        (copy / key).write_bytes(b"")
    with pytest.raises(CacheDamagedError) as error:
        call("verify", copy)
    assert "2 of 42 files" in str(error.value)
    assert "corpus/tokens/c/0: 0 bytes" in str(error.value)
    assert "step-2/loss/c/0: 0 bytes" in str(error.value)


def test_audit_finds_live_and_cached_alike_and_refuses_other_weights(
    config: Path, tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    text = call("audit", config, "--sequences", "10", "--checkpoint", "step-1")
    assert "step-1: live against cached, 20 positions" in text
    kl = float(re.search(r"mean, nats\D*([\d.e-]+)", text).group(1))  # type: ignore[union-attr]
    assert 0 <= kl < 1e-5
    other = tmp_path / "step-1"
    make_model(seed=5, hidden_size=16).save_pretrained(other)
    second = Teaching(config.parent / "teaching").checkpoints[1][1]
    checkpoints = f'teacher.checkpoints=["{other}", "{second}"]'
    with pytest.raises(CacheMismatchError, match=r"step-1' at .* has weights .* was built from"):
        call("audit", config, "--checkpoint", "step-1", "--set", checkpoints)


def test_every_refusal_is_a_user_error(config: Path, tmp_path: Path) -> None:
    for arguments in (["info", tmp_path], ["verify", tmp_path / "x"], ["info", tmp_path / "x.toml"]):
        with pytest.raises(UserError, match=r"no cache at|no such file"):
            call(*arguments)

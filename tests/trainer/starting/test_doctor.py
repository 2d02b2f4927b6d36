"""`footsteps doctor` says what is there, what is not, and what to do; it exits with 2 where a run would not go."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.paths import ROOT
from tests.support.toys import write_toy
from trainer.cli import TRAIN_EXTRA, main
from trainer.starting.doctor import compare_memory


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)], catch_exceptions=False)


def lines(result: Result) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ok": [], "note": [], "fix": []}
    for line in result.output.splitlines():
        found[line[:4].strip()].append(line[6:])
    return found


def test_an_experiment_that_goes_has_nothing_to_fix(tmp_path: Path) -> None:
    result = doctor(write_toy(tmp_path))
    found = lines(result)
    assert result.exit_code == 0 and found["fix"] == []
    assert any(line.startswith("torch ") for line in found["ok"])
    assert any(line.startswith("template, on the first 3 of 108 training rows: ") for line in found["ok"])
    assert not (tmp_path / "run").exists()


def test_a_template_that_breaks_a_row_is_to_be_fixed(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    template = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    config.write_text(config.read_text().replace('chat_template = "plain"', f"chat_template = '{template}'"))
    result = doctor(config)
    assert result.exit_code == 2 and "breaks the prompt" in lines(result)["fix"][0]


def test_an_unknown_setting_is_to_be_fixed(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    config.write_text(config.read_text() + "colour = 1\n")
    result = doctor(config)
    assert result.exit_code == 2 and "colour" in result.output and "Traceback" not in result.output


def test_a_completion_that_does_not_fit_is_to_be_fixed(tmp_path: Path) -> None:
    config = write_toy(tmp_path)
    config.write_text(config.read_text().replace("max_length = 64", "max_length = 2"))
    assert "raise it" in lines(doctor(config))["fix"][0]


def test_stages_that_need_more_memory_than_there_is_are_named_with_what_to_do() -> None:
    needed = {"sft teacher": 3.0 * 2**30, "cache build": 2.0 * 2**30, "distill": 1.0 * 2**30}
    fits = compare_memory(needed, 3.0 * 2**30, "the GPU")
    assert fits.state == "ok" and fits.text.endswith("distill 1.0 GiB; the GPU has 3.0 GiB")
    too_much = compare_memory(needed, 1.5 * 2**30, "this machine")
    assert too_much.state == "note"
    assert "this machine has 1.5 GiB, too little for sft teacher and cache build: lower" in too_much.text


def test_each_stage_is_compared_with_the_machine_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = write_toy(tmp_path)
    found = [
        line for line in lines(doctor(config))["ok"] if line.startswith("memory of each stage, about: sft teacher")
    ]
    assert len(found) == 1 and "; this machine has " in found[0]
    config.write_text(config.read_text().replace(str(tmp_path / "teacher-init"), "someone/Thing-900B"))
    result = doctor(config)
    assert "too little for sft teacher and cache build" in result.output
    assert "by sizes guessed from the number in its name: someone/Thing-900B" in result.output


def test_a_token_is_told_of_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = doctor()
    assert "hub: there is a token" in result.output and "hf_secret" not in result.output


def test_a_small_install_is_told_what_it_lacks() -> None:
    lacking = sorted(TRAIN_EXTRA - {"tqdm", "yaml"})  # huggingface_hub brings these two
    program = f"""
import importlib.metadata as metadata, sys
for name in {lacking}:
    sys.modules[name] = None
version = metadata.version
def only_small(name):
    if name in {lacking}:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = only_small
from trainer.cli import main
main(["doctor"])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'pip install "footsteps[train]"' in done.stdout

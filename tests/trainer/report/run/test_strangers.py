"""A run folder from a stranger: its settings reach no environment and no network, and no damage is a traceback."""

import os
import shutil
from pathlib import Path

import pytest

from cache_builder.config import load_experiment
from cache_builder.data.digests import sha256_of
from cache_builder.errors import ConfigError
from cache_builder.redaction import redact, redacted
from cache_builder.steps import write_record
from tests.support.run_folder import make_run
from tests.support.toys import write_toy
from trainer.config import Experiment
from trainer.report.page import write_report
from trainer.report.run.run_reader import read_run


@pytest.mark.parametrize(
    "path", ["ftp://$HF_TOKEN:x@127.0.0.1:9/c", "$HOME/cache", "~/cache", "s3://bucket/c", "zip::http://h/c"]
)
def test_a_path_in_a_run_is_not_expanded_and_no_address_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "the-secret")
    monkeypatch.setenv("HOME", "/home/the-secret")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.toml").write_text(f"cache.path = '{path}'\nhub_token = 'hf_abc'\nurl = 'https://me:pw@h/x'")
    page = write_report([run_dir]).read_text(encoding="utf-8")
    assert "is not opened unless you say that you trust this run: --remote" in page
    for secret in ("the-secret", "hf_abc", "me:pw"):
        assert secret not in page


def test_a_run_that_is_trusted_has_its_variables_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run(tmp_path / "run", methods=("td",), seeds=(0,))
    shutil.move(run_dir / "cache", tmp_path / "elsewhere")
    monkeypatch.setenv("ELSEWHERE", str(tmp_path))
    config = (run_dir / "config.toml").read_text()
    (run_dir / "config.toml").write_text(config + "\n[cache]\npath = '$ELSEWHERE/elsewhere'\n")
    assert read_run(run_dir).cache is None
    assert read_run(run_dir, remote=True).cache is not None


@pytest.mark.parametrize(
    "override", ["distill.hub_token='hf_abc'", "data.train='https://me:pw@host/x.jsonl'", "cache.path='s3://k:s@h/x'"]
)
def test_a_secret_in_a_config_is_refused_before_it_is_written(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="holds a secret") as error:
        load_experiment(Experiment, write_toy(tmp_path), (override,))
    assert "hf_abc" not in str(error.value) and "pw" not in str(error.value)


def test_only_secrets_are_blotted_out() -> None:
    assert redact("see s3://key:secret@host/x?token=abc&v=1, or a@b") == "see s3://…@host/x?token=…&v=1, or a@b"
    kept = {"token": "$HF_TOKEN", "max_tokens": 3, "tokenizer": "x", "list": [{"pad_token": ""}]}
    assert redacted(kept) == kept
    assert redacted({"a": {"hub_token": "x", "password": "y"}}) == {"a": {"hub_token": "…", "password": "…"}}


@pytest.mark.parametrize(
    ("file", "record"),
    [
        ("distill/td/seed-0/plan.json", "stage.json"),
        ("distill/td/seed-0/log.json", "stage.json"),
        ("teacher/checkpoints.json", "stage.json"),
        ("evaluate/teacher/metrics.json", "inputs.json"),
        ("evaluate/teacher/predictions.jsonl", "inputs.json"),
    ],
)
def test_what_its_step_has_not_recorded_so_is_named_though_it_can_be_read(
    file: str, record: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", methods=("td",), seeds=(0,), tasks={"triage": "accuracy"})
    path = run / file
    write_record(path.with_name(record), {"files": {path.name: sha256_of(path)}})
    before = read_run(run).missing
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    said = [note for note in read_run(run).missing if note not in before]
    assert len(said) >= 1 and path.name in said[0] and "not have the bytes that its step has recorded" in said[0]
    path.with_name(record).write_text("[")
    assert any(f"{record} is damaged" in note for note in read_run(run).missing)


@pytest.mark.parametrize("part", ["evaluate/teacher/metrics.json", "config.toml", "distill/td/seed-0/log.json"])
def test_a_pipe_or_a_folder_in_a_file_s_place_is_named(tmp_path: Path, part: str) -> None:
    for make in (os.mkfifo, os.mkdir):
        run_dir = make_run(tmp_path / make.__name__, methods=("td",), seeds=(0,), tasks={"triage": "accuracy"})
        (run_dir / part).unlink()
        make(run_dir / part)
        assert any("not a plain file" in note for note in read_run(run_dir).missing)

"""The demo runs from the package alone, in any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from cache_builder.config import load_experiment
from tests.support.paths import ROOT
from trainer.config import Experiment
from trainer.starting.demo import demo_experiment

FEW = ("data.train_examples=90", "data.test_examples=12", 'distill.methods=["td"]', "cache.probe_sequences=8")
FOOTSTEPS = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from trainer.cli import main; main(sys.argv[1:])"


def test_the_demo_is_the_packaged_config_with_the_folders_of_the_user(tmp_path: Path) -> None:
    packaged = load_experiment(Experiment, ROOT / "trainer/starting/demo.toml")
    experiment = demo_experiment(tmp_path / "here")
    assert experiment.distill == packaged.distill and experiment.sft == packaged.sft
    assert experiment.teacher.model == str(tmp_path / "here" / "models" / "teacher")
    for role in ("teacher", "student"):
        copied = tmp_path / "here" / "models" / role / "config.json"
        assert copied.read_text() == (ROOT / "trainer/starting/models" / role / "config.json").read_text()


@pytest.mark.slow
def test_the_quick_demo_writes_a_report_and_a_config_that_runs_again(tmp_path: Path) -> None:
    overrides = [part for each in FEW for part in ("--set", each)]
    for arguments in (["demo", "--quick", "--output", "here", *overrides], ["run", "here/config.toml"]):
        command = [sys.executable, "-c", FOOTSTEPS, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "here/report/index.html" in done.stdout

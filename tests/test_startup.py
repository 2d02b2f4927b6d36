"""A command that needs no model waits for none of the libraries that run one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.run_folder import make_run

SLOW_TO_IMPORT = ("accelerate", "datasets", "matplotlib", "pandas", "peft", "pyarrow", "scipy", "sklearn", "torch")
SLOW_TO_IMPORT += ("transformers", "zarr")
PROGRAM = f"""
import atexit, sys
atexit.register(lambda: print("slow:", *(name for name in {SLOW_TO_IMPORT} if name in sys.modules), file=sys.stderr))
from trainer.cli import main
main(sys.argv[1:])
"""
FIXTURE = "tests/fixtures/cache_v1"


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "run --help",
        "config",
        f"cache info {FIXTURE}",
        f"cache verify {FIXTURE}",
        "cache info configs/pubmedqa-llama.toml",
        "plan --help",
        "plan --teacher 8B",
        "plan --teacher 8B --student 3B --positions 1e9 --set teacher.checkpoints=5 --flops 4e14",
        "cache push --help",
        f"cache pull {FIXTURE} {{tmp}}/copy",
    ],
)
def test_a_command_that_needs_no_model_imports_nothing_that_is_slow(command: str, tmp_path: Path) -> None:
    arguments = command.format(tmp=tmp_path).split()
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True)
    # the cache of an experiment that was never run, and a plan without a student
    refused = "configs/" in command or command.endswith("plan --teacher 8B")
    assert done.returncode == (2 if refused else 0), done.stderr
    assert done.stderr.splitlines()[-1].split() == ["slow:"]


def test_a_report_is_written_without_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    program = f"import sys; sys.modules['torch'] = None\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program, "report", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (run / "report" / "kl-matrix.png").is_file()

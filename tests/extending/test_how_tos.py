"""Each how-to of docs/extending.md, followed to the letter in a copy of the code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.how_tos import copy_code, follow


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_code(tmp_path)


def run(tree: Path, *arguments: str) -> str:
    """Run Python in the copy; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def guards(tree: Path, *arguments: str) -> str:
    return run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments)


def test_a_divergence_passes_the_tests_that_every_divergence_passes(tree: Path) -> None:
    follow("A divergence", tree)
    tests = ("tests/cache_builder/targets/test_divergences.py", "tests/trainer/loss/test_fused.py")
    said = guards(tree, *tests, "tests/trainer/methods", "-k", "hellinger or every or method")
    assert "passed" in said
    run(tree, "-c", "from trainer.methods.methods import get_method; assert get_method('hellinger+aw').divergence")


def test_a_divergence_with_a_wrong_gradient_does_not(tree: Path) -> None:
    follow("A divergence", tree)
    path = tree / "cache_builder/targets/divergences.py"
    path.write_text(path.read_text().replace("- shared_MO) / 2", "- shared_MO) / 3"))
    with pytest.raises(AssertionError, match="hellinger"):
        guards(tree, "tests/trainer/loss/test_fused.py", "-x", "-k", "hellinger and float64")


def test_a_schedule_chooses_when_its_method_is_trained(tree: Path) -> None:
    follow("A schedule", tree)
    guards(tree, "tests/trainer/methods")
    program = """
from types import SimpleNamespace
from trainer.config import DistillConfig
from trainer.methods.methods import get_method
from trainer.methods.schedules import SCHEDULES
DistillConfig(methods=["newest", "newest+aw"])
schedule = SCHEDULES[get_method("newest").schedule]
print([schedule.choose(stage, 0, SimpleNamespace(checkpoints=("a", "b", "c"))).choice for stage in range(3)])
"""
    assert run(tree, "-c", program) == "['c', 'b', 'a']\n"


def test_a_kind_of_task_is_read_and_scored(tree: Path) -> None:
    follow("A task", tree)
    guards(tree, "tests/trainer/evaluation/test_tasks.py")
    program = """
from trainer.evaluation.tasks import TaskConfig, resolve_tasks
turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "1200"}]
example = {"id": "a", "task": "count", "messages": turns}
task = resolve_tasks([example], "files", {"count": TaskConfig(kind="number")})["count"]
print(task.read("There are 1,200 of them.", example) == task.gold(example), task.metrics)
"""
    assert run(tree, "-c", program) == "True ('exact_match',)\n"


def test_a_store_is_built_into_and_read(tree: Path) -> None:
    follow("A store", tree)
    site = tree / "site"
    program = f"""
import os, shutil
os.environ["SITE_CACHES"] = {str(site)!r}
from cache_builder import open_cache
from cache_builder.sharing.copy_plan import plan_copy
from cache_builder.sharing.transfer import copy_cache
from cache_builder.storage.open import open_store
plan = plan_copy(open_store("tests/fixtures/cache_v1"), ())
copy_cache(plan, open_store("site://team/one"), jobs=2, card=False, done=lambda count: None)
print(open_cache("site://team/one").checkpoints)
"""
    assert run(tree, "-c", program) == "('step-1', 'step-2')\n"
    assert (site / "team" / "one" / "zarr.json").is_file()

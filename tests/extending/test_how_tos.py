"""Each how-to of docs/extending.md, followed to the letter in a copy of the code."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.how_tos import changed_files, copy_code, follow

LIGHT = ("--noconftest",)
"""Of tests that need no fixture of all tests', which take seconds to import."""


@dataclass(frozen=True)
class HowTo:
    """A section of the page, the tests that it names, and a test of what was added that it does not ask for."""

    section: str
    guards: tuple[str, ...]
    chosen: str
    """Which of the guards' tests, as pytest's -k has it."""
    proof: str

    @property
    def proof_file(self) -> str:
        return f"tests/test_proof_of_{self.section.replace(' ', '_').lower()}.py"


DIVERGENCE = HowTo(
    "A divergence",
    (
        "tests/cache_builder/targets/test_divergences.py",
        "tests/trainer/loss/test_fused.py",
    ),
    "hellinger or every",
    """
from trainer.methods.methods import get_method

def test_every_weighting_goes_with_it():
    assert get_method("hellinger+aw").divergence == "squared_hellinger"
""",
)
SCHEDULE = HowTo(
    "A schedule",
    ("tests/trainer/methods",),
    "methods",
    """
from types import SimpleNamespace
from trainer.config import DistillConfig
from trainer.methods.methods import get_method
from trainer.methods.schedules import SCHEDULES

def test_the_newest_checkpoint_teaches_first():
    DistillConfig(methods=["newest", "newest+aw"])
    choose = SCHEDULES[get_method("newest").schedule].choose
    evidence = SimpleNamespace(checkpoints=("a", "b", "c"))
    assert [choose(stage, 0, evidence).choice for stage in range(3)] == ["c", "b", "a"]
""",
)
TASK = HowTo(
    "A task",
    ("tests/trainer/evaluation/test_tasks.py",),
    "test_tasks",
    """
from trainer.evaluation.tasks import TaskConfig, resolve_tasks

def test_a_number_is_read_whatever_its_grouping():
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "1200"}]
    example = {"id": "a", "task": "count", "messages": turns}
    task = resolve_tasks([example], "files", {"count": TaskConfig(kind="number")})["count"]
    assert task.read("There are 1,200 of them.", example) == task.gold(example)
    assert task.metrics == ("exact_match",)
""",
)
STORE = HowTo(
    "A store",
    ("tests/cache_builder/storage/test_every_store.py",),
    "SQLite",
    """
import pytest
from cache_builder.cache.reader import open_cache
from cache_builder.errors import CacheIncompleteError
from cache_builder.storage.open import open_store
from tests.support.caches import files_of

SEQUENCES = 20

def test_a_cache_built_into_it_has_the_bytes_of_one_in_a_folder(teaching, built, tmp_path):
    url = f"sqlite://{tmp_path}/one.cache"
    assert not teaching.build(url, part=(1, 2))
    with pytest.raises(CacheIncompleteError):
        open_cache(url).losses("step-1")
    assert teaching.build(url, part=(0, 2))
    store = open_store(url)
    assert {key: store.read(key) for key in store.sizes("")} == files_of(built)
    assert len(open_cache(url).read("step-2", [7, 3])) > 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["one.cache"]
""",
)
ENGINE = HowTo(
    "An engine",
    ("tests/cache_builder/capture/test_backend.py",),
    "engine",
    """
import numpy as np
from pathlib import Path
from cache_builder.build.build import build_cache
from cache_builder.cache.reader import open_cache
from cache_builder.capture.table import write_table
from cache_builder.config import CacheExperiment

SEQUENCES = 20

def test_it_says_what_transformers_says_of_the_same_weights(teaching, built, tmp_path):
    corpora = teaching.corpus, teaching.held_out
    tables = [(name, write_table(Path(model), tmp_path / name, corpora, 300)) for name, model in teaching.checkpoints]
    values = teaching.experiment(tmp_path / "cache").model_dump()
    values["teacher"]["engine"] = "table"
    experiment = CacheExperiment.model_validate(values)
    assert build_cache(experiment, teaching.corpus, teaching.tokenizer, tables, teaching.held_out)
    ours, theirs = open_cache(str(tmp_path / "cache")), open_cache(str(built))
    for name, _ in tables:
        assert ours.checkpoint(name).identity.attn_implementation == "table"
        np.testing.assert_allclose(ours.losses(name), theirs.losses(name), rtol=1e-5)
""",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_code(tmp_path)


def run_tests(tree: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    return subprocess.run(
        command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True
    )


def check(tree: Path, *tests: str, proof: str = "") -> None:
    """Run tests in the copy, and a proof that what was added does what it should."""
    path = tree / "tests/test_proof.py"
    if proof:
        path.write_text(proof, encoding="utf-8")
    done = run_tests(tree, *tests, *([str(path)] if proof else []))
    path.unlink(missing_ok=True)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def check_together(tree: Path, how_tos: tuple[HowTo, ...], *options: str) -> None:
    """Follow several how-tos in one copy, whose tests run in one process: a process's imports take seconds."""
    for how_to in how_tos:
        follow(how_to.section, tree)
        (tree / how_to.proof_file).write_text(how_to.proof, encoding="utf-8")
    files = [file for how_to in how_tos for file in (*how_to.guards, how_to.proof_file)]
    chosen = " or ".join(["proof", *(how_to.chosen for how_to in how_tos)])
    done = run_tests(tree, *files, "-k", chosen, *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.findall(r"^(tests/\S+)::\S+ PASSED", done.stdout, re.MULTILINE)
    for file in files:
        assert any(each.startswith(file) for each in passed), (file, done.stdout)


@pytest.mark.parametrize("how_to", [DIVERGENCE, SCHEDULE, TASK, STORE, ENGINE], ids=lambda how_to: how_to.section)
def test_a_how_to_names_every_file_that_it_changes(how_to: HowTo, tree: Path) -> None:
    assert follow(how_to.section, tree) == changed_files(tree)


def test_a_divergence_a_schedule_and_a_kind_of_task_pass_the_tests_that_every_other_passes(tree: Path) -> None:
    check_together(tree, (DIVERGENCE, SCHEDULE, TASK), *LIGHT)


def test_a_store_and_an_engine_pass_the_tests_that_every_other_passes_and_build_caches(tree: Path) -> None:
    check_together(tree, (STORE, ENGINE))


def test_a_divergence_with_a_wrong_gradient_does_not(tree: Path) -> None:
    follow("A divergence", tree)
    path = tree / "cache_builder/targets/divergences.py"
    path.write_text(path.read_text().replace("- shared_MO) / 2", "- shared_MO) / 3"))
    with pytest.raises(AssertionError, match="hellinger"):
        check(tree, "tests/trainer/loss/test_fused.py", "-x", "-k", "hellinger and float64", *LIGHT)


@pytest.mark.slow
def test_a_field_of_the_record_goes_from_the_logits_to_an_export_and_old_caches_open(tree: Path) -> None:
    named = follow("A field of the record", tree)
    proof = """
from dataclasses import replace
import pyarrow.parquet as pq
import pytest
from cache_builder.cache.reader import open_cache
from cache_builder.errors import CacheDamagedError
from cache_builder.format.manifest import seal
from cache_builder.format.records import RecordLayout, decode_records, encode_records
from cache_builder.format.size import record_bytes
from cache_builder.interchange.exporting import export_cache
from tools.make_fixture_cache import FOLDER

SEQUENCES = 20

def test_a_cache_without_the_field_keeps_its_bytes():
    old = open_cache(str(FOLDER))
    assert old.manifest.version == 1 and seal(old.manifest) == (FOLDER / "zarr.json").read_bytes()
    assert old.read(old.checkpoints[0], [0]).gold_rank.shape[1] == 0

def test_what_is_stored_is_counted_exported_and_checked(teaching, tmp_path):
    assert teaching.build(tmp_path / "cache", gold_rank=True)
    cache = open_cache(str(tmp_path / "cache"))
    layout, rows = RecordLayout.of(cache.manifest.targets), range(len(cache.corpus))
    assert record_bytes(layout.top_k, layout.tail_samples, gold_rank=True) == layout.n_planes
    export_cache(cache, tmp_path / "table.parquet")
    ranks = pq.read_table(tmp_path / "table.parquet")["gold_rank"].to_pylist()
    targets = cache.read(cache.checkpoints[-1], rows)
    assert [rank for row in ranks for rank in row] == targets.gold_rank.tolist() and targets.gold_rank.any()
    with pytest.raises(CacheDamagedError, match="rank beyond the vocabulary"):
        decode_records(layout, encode_records(layout, replace(targets, gold_rank=targets.gold_rank + 300)), 300)
"""
    guards = (
        "format/test_manifest.py",
        "format/test_properties.py",
        "targets/test_sparse.py",
        "capture/test_gold_rank.py",
    )
    check(tree, *(f"tests/cache_builder/{guard}" for guard in guards), proof=proof)
    assert changed_files(tree) == named


@pytest.mark.slow  # half a minute: whole pages are drawn in the copy
def test_a_plot_is_drawn_for_desks_and_phones_and_shown_on_the_page(tree: Path) -> None:
    named = follow("A plot", tree)
    guards = (f"tests/trainer/report/test_{name}.py" for name in ("plots", "page"))
    check(tree, *guards, "-k", "held_out or complete", *LIGHT)
    assert changed_files(tree) == named

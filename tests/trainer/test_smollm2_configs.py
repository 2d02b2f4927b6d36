"""The ready experiments with SmolLM2: a GPU's are planned, and a second student names what the first run makes."""

from pathlib import Path

import pytest

from cache_builder.config import load_experiment
from cache_builder.data.splits import load_splits
from tests.support.paths import ROOT
from trainer.config import Experiment
from trainer.planning.command import make_plan

FOLDER = ROOT / "configs" / "smollm2"
SECOND = {"snips-12": "snips", **{f"gpu/{data}-135m": f"gpu/{data}-360m" for data in ("snips", "clinc150", "pubmedqa")}}
"""A student that trains from another one's cache, and that one."""


def load(name: str) -> Experiment:
    return load_experiment(Experiment, FOLDER / f"{name}.toml")


@pytest.mark.parametrize(("second", "first"), SECOND.items())
def test_a_second_student_names_the_checkpoints_and_the_cache_that_the_first_run_makes(
    second: str, first: str, shared_data: Path
) -> None:
    ours, theirs = load(second), load(first)
    sequences = len(load_splits(theirs.data, theirs.run.seed)["train"])
    steps, keep = theirs.sft.teacher.steps(sequences, theirs.sft.teacher.num_train_epochs), theirs.teacher.checkpoints
    assert isinstance(keep, int)
    kept = [f"{theirs.output_dir}/teacher/checkpoint-{round(steps * (index + 1) / keep)}" for index in range(keep)]
    assert ours.teacher.checkpoints == kept
    assert ours.cache_url == theirs.cache_url and ours.output_dir != theirs.output_dir
    for section in ("data", "text", "tokenizer", "evaluate", "distill"):
        assert getattr(ours, section) == getattr(theirs, section)
    for options in ("top_k", "tail_blocks", "probe_sequences", "shard_positions"):
        assert getattr(ours.cache, options) == getattr(theirs.cache, options)
    assert ours.teacher.model == theirs.teacher.model and ours.teacher.dtype == theirs.teacher.dtype


@pytest.mark.parametrize("path", sorted(FOLDER.glob("gpu/*.toml")), ids=lambda path: path.stem)
def test_a_gpus_experiment_is_planned_from_its_models_names(path: Path, shared_data: Path) -> None:
    plan = make_plan(load(f"gpu/{path.stem}"), {})
    assert plan.teacher.parameters == 1_700_000_000
    assert plan.student.parameters in (360_000_000, 135_000_000)
    assert plan.checkpoints == 5 and all(stage.flops >= 0 for stage in plan.stages())

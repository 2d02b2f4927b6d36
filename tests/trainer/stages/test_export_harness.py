"""lm-evaluation-harness, given the exported tasks, says of every row what `footsteps evaluate` says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cache_builder.config import save_experiment
from cache_builder.models.loading import load_model
from tests.support.toys import COLORS
from trainer.cli import main
from trainer.evaluation.evaluate import evaluate_model
from trainer.evaluation.tasks import resolve_tasks

GENERATED = ("tasks.color.kind='exact'",)
CHOSEN = ("tasks.color.kind='classification'", f"tasks.color.choices={list(COLORS)}")
WAYS = {"exact": GENERATED, "written choice": CHOSEN, "likelihood": (*CHOSEN, "tasks.color.method='likelihood'")}


def exported(experiment: Any) -> Path:
    save_experiment(experiment, experiment.output_dir / "config.toml")
    result = CliRunner().invoke(main, ["export", "lm-eval", str(experiment.output_dir)])
    assert result.exit_code == 0, result.output
    return experiment.output_dir / "lm-eval"


@pytest.mark.parametrize("way", WAYS)
def test_a_task_has_all_test_rows_with_the_prompts_of_training(toy: Any, way: str) -> None:
    experiment, _, prepared = toy(*WAYS[way])
    rows = [json.loads(line) for line in (exported(experiment) / "color.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [example["id"] for example in prepared.examples["test"]]
    assert all(len(row["continuations"]) == (len(COLORS) if way == "likelihood" else 0) for row in rows)


@pytest.mark.harness
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
def test_the_harness_scores_each_row_as_footsteps_does(toy: Any, tmp_path: Path, way: str) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    experiment, _, prepared = toy(*WAYS[way])
    folder, judged = exported(experiment), tmp_path / "judged"
    shutil.copytree(experiment.output_dir / "student" / "best", judged)
    model = load_model(experiment.student.model_copy(update={"model": str(judged)}), 0)
    with torch.no_grad():  # rows are then answered differently, which so little training does not do
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=1.0)
    model.save_pretrained(judged)
    examples, name = prepared.examples["test"], "footsteps_color"
    tasks = resolve_tasks(examples, "files", experiment.tasks)
    arguments = model, prepared.tokenizer, examples, tasks, experiment.evaluate, tmp_path, "student"
    ours = evaluate_model(*arguments, text=experiment.text)["tasks"]["color"]
    lines = (tmp_path / "evaluate/student/predictions.jsonl").read_text().splitlines()
    harness = simple_evaluate(
        HFLM(pretrained=str(judged), device="cpu", batch_size=1, add_bos_token=False),
        tasks=[name],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    metric = ours["primary"]
    theirs = {sample["doc"]["id"]: sample[metric][1] for sample in harness["samples"][name]}
    rows = [json.loads(line) for line in lines]
    assert theirs == {row["id"]: row["parsed"] for row in rows} and len({row["output"] for row in rows}) > 1
    if way != "likelihood":
        written = {sample["doc"]["id"]: sample["resps"][0][0] for sample in harness["samples"][name]}
        assert {row["id"]: row["output"].strip() for row in rows} == {id: text.strip() for id, text in written.items()}
    assert harness["results"][name][f"{metric},none"] == pytest.approx(ours["metrics"][metric]["value"])

"""Train and judge one student of a cell by the program's own stages, from what its cell shares with others.

    FOLDER/<data>-n<noise>/*.jsonl                                    the notes
    FOLDER/<data>-n<noise>-c<checkpoints>/                            corpus, tokenizer, teacher, cache
    FOLDER/…-<size>/                                                  + student (SFT), losses, crossfit
    FOLDER/…-<size>-e<epochs>-<start>-<aw>-<metric>-a<alpha>/         + distill, evaluate; the rest are links

Each is an ordinary run folder: `footsteps report` reads the last.
"""

import json
import tomllib
from dataclasses import replace
from functools import cache as remembered
from pathlib import Path
from typing import Any

import numpy as np

from cache_builder.atomic import write_json
from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.config import ModelConfig, save_experiment
from cache_builder.data.prepare import Prepared
from cache_builder.steps import read_record
from tools.study.cells import SIZES, Cell
from tools.study.data import SHIFTED, write_notes
from trainer.config import Experiment
from trainer.evaluation.evaluate import evaluate_model
from trainer.evaluation.tasks import resolve_tasks
from trainer.methods.methods import get_method
from trainer.methods.schedules import best_checkpoint
from trainer.methods.weighting import WEIGHTINGS
from trainer.stages.crossfit import write_crossfit_losses
from trainer.stages.distill import distill
from trainer.stages.sft import sft_student, sft_teacher
from trainer.stages.student_losses import load_on_device, student_sft_folder, write_student_losses

CONFIGS = {
    "demo": "trainer/starting/demo.toml",
    "snips": "configs/snips-slots.toml",
    "clinc150": "configs/clinc150.toml",
}
SHARED_BY_SIZE = ("corpus", "tokenizer", "teacher", "cache")
SHARED_BY_CELL = (*SHARED_BY_SIZE, "student", "losses", "crossfit")
REFERENCES = ("teacher", "student_sft")
Line = dict[str, str]


def result(folder: Path, cell: Cell, seed: int) -> Line:
    """Train the cell's student with the seed, unless that is done, and return its scores."""
    experiment, prepared, cache = _cell(folder, replace(cell, method="td"), cell.aw_source == "crossfit")
    student = distill(experiment, cell.method, seed, cache, prepared)
    stage, plan = read_record(student / "stage.json"), json.loads((student / "plan.json").read_text(encoding="utf-8"))
    name = f"{cell.method}/seed-{seed}/best"
    scores = _scores(experiment, prepared, name, _at(experiment.student, student / "best"))
    log = json.loads((student / "log.json").read_text(encoding="utf-8"))
    adaptive = WEIGHTINGS[get_method(cell.method).weighting].adaptive
    return {
        "steps": str(stage["steps"]),
        "best_step": str(stage["best_step"]),
        "held_out": f"{stage['best_loss']:.4f}",
        "chosen": " ".join(str(each["choice"]).removeprefix("checkpoint-") for each in plan["stages"]),
        "mean_weight": f"{np.mean([e['aw_mean'] for e in log if 'aw_mean' in e]):.3f}" if adaptive else "",
        **scores,
    }


def references(folder: Path, cell: Cell) -> dict[str, Line]:
    """Return the scores of the best checkpoint of the cell's teacher, and of its student SFT."""
    experiment, prepared, cache = _cell(folder, replace(cell, method="td", aw_source="train"), False)
    best = _best(experiment, cache)
    models = {
        "teacher": _at(experiment.teacher, Path(dict(teacher_checkpoints(experiment))[best])),
        "student_sft": _at(experiment.student, student_sft_folder(experiment)),
    }
    held_out = {
        "teacher": cache.held_out(best),
        "student_sft": read_record(experiment.output_dir / "student" / "stage.json")["best_loss"],
    }
    return {
        name: {
            "steps": "",
            "best_step": "",
            "held_out": f"{held_out[name]:.4f}",
            "chosen": best.removeprefix("checkpoint-") if name == "teacher" else "",
            "mean_weight": "",
            **_scores(experiment, prepared, name, model),
        }
        for name, model in models.items()
    }


@remembered
def _cell(folder: Path, cell: Cell, crossfit: bool) -> tuple[Experiment, Prepared, Cache]:
    base = folder / f"{cell.data}-n{100 * cell.noise:g}-c{cell.checkpoints}"
    sized = base.with_name(f"{base.name}-{cell.size}")
    run = base.with_name(
        f"{sized.name}-e{cell.epochs_per_stage}-{cell.start}-{cell.aw_source}-{cell.metric}-a{cell.alpha:g}"
    )
    for path, source, shared in ((sized, base, SHARED_BY_SIZE), (run, sized, SHARED_BY_CELL)):
        path.mkdir(parents=True, exist_ok=True)
        for name in shared:
            if not (path / name).is_symlink():
                (path / name).symlink_to(Path("..") / source.name / name)
    _teach(_experiment(folder, base, cell))
    student = _experiment(folder, sized, cell)
    prepared, cache = Prepared(student), open_cache(student.cache_url)
    sft_student(student, prepared)
    write_student_losses(student, cache, prepared.tokenizer.pad_token_id)
    if crossfit:
        write_crossfit_losses(student, prepared, cache)
    experiment = _experiment(folder, run, cell)
    save_experiment(experiment, run / "config.toml")
    return experiment, Prepared(experiment), cache


def _teach(experiment: Experiment) -> None:
    """Fine-tune the teacher and build its cache, unless that is done."""
    prepared = Prepared(experiment)
    sft_teacher(experiment, prepared)
    build_cache(experiment, prepared.train, prepared.tokenizer, teacher_checkpoints(experiment), prepared.validation)


def _experiment(folder: Path, run: Path, cell: Cell) -> Experiment:
    """Return the data's own config with the cell's factors."""
    values: dict[str, Any] = tomllib.loads(Path(CONFIGS[cell.data]).read_text(encoding="utf-8"))
    values["run"] = {"output_dir": str(run)}
    values["teacher"]["checkpoints"] = cell.checkpoints
    values["distill"] |= {
        "methods": [cell.method],
        "epochs_per_stage": cell.epochs_per_stage,
        "init": cell.start,
        "aw_source": cell.aw_source,
        "schedule_metric": cell.metric,
        "alpha": cell.alpha,
        "save_steps": 100,
    }
    values["evaluate"]["bootstrap_samples"] = 100
    if cell.data == "demo":
        notes = folder / f"demo-n{100 * cell.noise:g}"
        if not (notes / "test.jsonl").is_file():
            write_notes(notes, cell.noise)
        values["data"] = {split: str(notes / f"{split}.jsonl") for split in ("train", "validation", "test")}
        values["student"]["model"] = str(_student(folder, cell.size))
        values["sft"]["student"]["learning_rate"] = SIZES[cell.size].sft_rate
        values["distill"]["learning_rate"] = SIZES[cell.size].distill_rate
    return Experiment.model_validate(values)


def _student(folder: Path, size: str) -> Path:
    """Write the demo's student with another hidden size; without weights, so that a seed makes them."""
    config = json.loads(Path("trainer/starting/models/student/config.json").read_text(encoding="utf-8"))
    width = SIZES[size].hidden_size
    path = folder / f"student-{size}"
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", {**config, "hidden_size": width, "intermediate_size": width * 8 // 3})
    return path


def _scores(experiment: Experiment, prepared: Prepared, name: str, model: ModelConfig) -> Line:
    """Judge a model on the test examples; in-domain and shifted scores are means over tasks of the primary metrics."""
    done = experiment.output_dir / "evaluate" / name / "metrics.json"
    if not done.is_file():
        examples = prepared.examples["test"]
        evaluate_model(
            load_on_device(model, experiment.run.seed),
            prepared.tokenizer,
            examples,
            resolve_tasks(examples, experiment.data.source, experiment.tasks),
            experiment.evaluate,
            experiment.output_dir,
            name,
            text=experiment.text,
            method=name.split("/")[0],
        )
    tasks = json.loads(done.read_text(encoding="utf-8"))["tasks"]
    score = {task: each["metrics"][each["primary"]]["value"] for task, each in tasks.items()}
    return {"test": _mean(score, False), "shifted": _mean(score, True)} | {
        "tasks": json.dumps({task: round(value, 4) for task, value in sorted(score.items())})
    }


def _mean(score: dict[str, float], shifted: bool) -> str:
    values = [value for task, value in score.items() if task.endswith(SHIFTED) == shifted]
    return f"{np.mean(values):.4f}" if values else ""


def _best(experiment: Experiment, cache: Cache) -> str:
    held_out = {name: cache.held_out(name) for name in cache.checkpoints}
    return best_checkpoint(cache.checkpoints, held_out, experiment.distill.best)


def _at(model: ModelConfig, location: Path) -> ModelConfig:
    return model.model_copy(update={"model": str(location)})

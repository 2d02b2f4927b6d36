"""`footsteps init`: a first config that runs, and that says in comments what was found.

rows ──▶ shape, columns ──▶ examples ──▶ template, lengths ──▶ choices ──▶ experiment.toml
"""

import tomllib
from dataclasses import dataclass, replace

import numpy as np

from cache_builder.build.build import teacher_checkpoints
from cache_builder.config import DataConfig, make_experiment
from cache_builder.data.examples import Example, Split
from cache_builder.data.splits import load_splits
from cache_builder.data.tokenizer import checkpoint_tokenizer
from trainer.config import Experiment
from trainer.evaluation.tasks import KNOWN, TaskConfig, check_answers
from trainer.planning.command import make_plan
from trainer.planning.units import format_bytes, format_count
from trainer.starting.config_text import Findings, config_text
from trainer.starting.models import (
    check_checkpoint,
    find_template,
    measure,
    model_facts,
    shared_tokenizer,
    trained_tokenizer,
)
from trainer.starting.rows import LOOKED_AT, Found, Places, look_at

MEASURED = 500
"""Rows whose lengths are measured, spread over those that are looked at."""
CHOICES = 300
"""Different answers at most, for a task to be a choice between them."""
TIMES_EACH = 5
"""How often each answer must occur on the average, for a task to be a choice between them."""
SHORT_CHARACTERS = 110
USUAL_GPU_BYTES = 24 << 30
"""Of a teacher whose weights, gradients and moments take more, adapters are fine-tuned."""
FREE_TEXT_WORDS = 12


@dataclass(frozen=True)
class FirstConfig:
    """What `footsteps init` writes and says."""

    text: str
    notes: list[str]


def first_config(
    places: Places, teacher: str, student: str, output_dir: str, checkpoints: tuple[str, ...] = ()
) -> FirstConfig:
    """Return a config for the rows and models, checked against its schema, and its rows against its tasks.

    `checkpoints` are folders of the teacher's fine-tuning where that is done, oldest first.

    Raises:
        UserError: rows, models and settings do not fit together; the message says which.
    """
    for folder in checkpoints:
        check_checkpoint(folder)
    rows = look_at(places)
    splits = load_splits(DataConfig.model_validate(rows.settings), seed=0)
    models = model_facts(teacher), model_facts(student)
    sample = [splits["train"][row] for row in _spread(len(splits["train"]))]
    own = checkpoint_tokenizer(checkpoints)
    speaking = models[0] if own is None else replace(models[0], location=own, has_tokenizer=True)
    tokenizer = shared_tokenizer(speaking, models[1])
    vocabulary = None
    if tokenizer is None:
        vocabulary = min(model.vocabulary for model in models)
        tokenizer = trained_tokenizer(splits["train"], vocabulary)
    template = find_template(tokenizer, sample)
    findings = Findings(
        train=places.train,
        output_dir=output_dir,
        rows=rows,
        counts={split: len(splits[split]) for split in ("train", "validation", "test")},
        teacher=models[0],
        student=models[1],
        trained_vocabulary=vocabulary,
        template=template,
        lengths=measure(tokenizer, sample, template),
        tasks={name: _task(examples) for name, examples in _by_task(splits, rows).items()},
        checkpoints=checkpoints,
        tokenizer_path=own,
    )
    experiment = _experiment(findings)
    if checkpoints:
        teacher_checkpoints(experiment)
    elif models[0].has_weights and (why := _too_large(experiment)):
        findings = replace(findings, adapters=why)
        experiment = _experiment(findings)
    check_answers(splits["test"], experiment.data.source, experiment.tasks)
    return FirstConfig(config_text(findings), findings.notes())


def _experiment(findings: Findings) -> Experiment:
    return make_experiment(Experiment, tomllib.loads(config_text(findings)), (), "the config found")


def _too_large(experiment: Experiment) -> str | None:
    """Say what fine-tuning all of the teacher's weights would take, where a usual GPU does not hold it."""
    plan = make_plan(experiment, {"positions": "1"})  # how many there are changes nothing here
    memory = next(each for each in plan.memory() if each.name == "sft teacher")
    kept = memory.weights + memory.gradients + memory.adam
    if kept <= USUAL_GPU_BYTES:
        return None
    return (
        f"fine-tuned are adapters: the teacher's own {format_count(plan.teacher.parameters)} weights, with their "
        f"gradients and Adam's moments, would take {format_bytes(kept)}; where there is room for that, leave this out"
    )


def _spread(count: int) -> list[int]:
    """Return rows whose lengths are measured, evenly spaced over those that are looked at."""
    return [int(row) for row in np.unique(np.linspace(0, min(count, LOOKED_AT) - 1, MEASURED).astype(int))]


def _first(split: Split) -> list[Example]:
    return [split[row] for row in range(min(len(split), LOOKED_AT))]


def _by_task(splits: dict[str, Split], rows: Found) -> dict[str, list[Example]]:
    """Return the examples that tell how a task is judged, where neither the rows nor the table of tasks does."""
    known = KNOWN.get(rows.settings.get("source", "files"), {})
    tasks: dict[str, list[Example]] = {example["task"]: [] for example in splits["test"]}
    for example in [*splits["test"], *_first(splits["train"])]:
        if example["task"] in tasks:
            tasks[example["task"]].append(example)
    return {
        name: examples
        for name, examples in tasks.items()
        if name not in known and not any({"choices", "text"} & example.keys() for example in examples)
    }


def _task(examples: list[Example]) -> TaskConfig:
    """Tell a task by its answers: a choice where few occur again and again, a text where they are long."""
    answers = [example.get("answer", example["messages"][-1]["content"].strip()) for example in examples]
    texts = [answer for answer in answers if isinstance(answer, str)]
    if len(texts) < len(answers):
        return TaskConfig()
    different = sorted(set(texts))
    short = all(answer and "\n" not in answer and len(answer) <= SHORT_CHARACTERS for answer in different)
    if short and 2 <= len(different) <= min(CHOICES, len(texts) // TIMES_EACH):
        return TaskConfig(choices=different)
    if any("\n" in text for text in texts) or np.mean([len(text.split()) for text in texts]) > FREE_TEXT_WORDS:
        return TaskConfig(kind="text")
    return TaskConfig()

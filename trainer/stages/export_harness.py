"""A run's tasks for lm-evaluation-harness: prompts as the students were trained, scored as `footsteps evaluate` does.

RUN/lm-eval/<task>.yaml      output_type: generate_until, or multiple_choice where likelihoods are compared
            <task>.jsonl     a test row a line: the whole prompt as text; choices with their end of turn
            footsteps_scores.py
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PreTrainedTokenizerBase

from cache_builder.atomic import write_text
from cache_builder.config import TextConfig
from cache_builder.data.chat import encode_prompt
from cache_builder.data.examples import Example
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, DataError
from trainer.config import Experiment
from trainer.evaluation.likelihood import choice_sequences
from trainer.evaluation.tasks import Task, resolve_tasks
from trainer.stages.student_losses import student_sft_folder

SCORES = "footsteps_scores"


def export_tasks(experiment: Experiment, prepared: Prepared) -> Path:
    """Write every task of the test examples, and return the folder, which is the harness's `--include_path`.

    Raises:
        MissingError: the student has not been fine-tuned.
        ConfigError: a task's name cannot be a file's.
        DataError: a prompt, as text, is not tokenised as it was in training.
    """
    folder = experiment.output_dir / "lm-eval"
    folder.mkdir(exist_ok=True)
    positions = AutoConfig.from_pretrained(student_sft_folder(experiment)).max_position_embeddings
    examples, tokenizer = prepared.examples["test"], prepared.tokenizer
    tasks = resolve_tasks(examples, experiment.data.source, experiment.tasks)
    write_text(
        folder / f"{SCORES}.py", "from trainer.evaluation.harness import aggregate, process_results  # noqa: F401\n"
    )
    stops = [str(tokenizer.decode([token])) for token in prepared.deployment.stop_ids]
    for name, task in tasks.items():
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"task {name!r} cannot be a task of the harness: letters, digits, _ and - only")
        method = task.method or experiment.evaluate.method
        new_tokens = 0 if method == "likelihood" else task.max_new_tokens or experiment.evaluate.max_new_tokens
        text = experiment.text.model_copy(
            update={"max_length": min(experiment.text.max_length, positions - new_tokens)}
        )
        rows = [
            _document(task, example, tokenizer, text, likelihood=method == "likelihood")
            for example in examples
            if example["task"] == name
        ]
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_text(folder / f"{name}.yaml", _task_file(name, task, folder, method, new_tokens, stops))
    return folder


def _document(
    task: Task, example: Example, tokenizer: PreTrainedTokenizerBase, text: TextConfig, *, likelihood: bool
) -> dict[str, Any]:
    labels = task.labels(example) if likelihood else []
    if likelihood:
        prompt, completions = choice_sequences(example, labels, tokenizer, text)
    else:
        prompt, completions = encode_prompt(example, tokenizer, text.chat_template, text.max_length, text.train_on), []
    written = str(tokenizer.decode(prompt))
    if tokenizer(written, add_special_tokens=False)["input_ids"] != prompt:
        raise DataError(
            f"example {example['id']!r}: its prompt, written out as text, is tokenised otherwise than in training, so "
            "the harness would judge another prompt"
        )
    return {
        "id": example["id"],
        "prompt": written,
        "continuations": [str(tokenizer.decode(ids)) for ids in completions],
        "labels": labels,
        "choices": list(example.get("choices") or task.choices),
        "parser": task.parser,
        "metric": task.metrics[0],
        "gold": task.gold(example),
    }


def _task_file(name: str, task: Task, folder: Path, method: str, new_tokens: int, stops: list[str]) -> str:
    values: dict[str, Any] = {
        "task": f"footsteps_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((folder / f"{name}.jsonl").resolve())}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",
        "metadata": {"version": 1},
    }
    if method == "likelihood":
        values |= {"output_type": "multiple_choice", "doc_to_choice": "{{continuations}}", "doc_to_target": 0}
    else:
        settings = {"until": stops, "do_sample": False, "max_gen_toks": new_tokens}
        values |= {"output_type": "generate_until", "doc_to_target": "{{gold}}", "generation_kwargs": settings}
    scored = (
        f"process_results: !function {SCORES}.process_results\n"
        f"metric_list:\n  - metric: {task.metrics[0]}\n    aggregation: !function {SCORES}.aggregate\n"
        "    higher_is_better: true\n"
    )
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + scored

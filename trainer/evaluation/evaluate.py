"""Judge one model on the test examples of every task, and keep each of its answers.

examples ─▶ by task ─▶ outputs ─▶ parsed ─▶ scores ─▶ evaluate/<model>/predictions.jsonl
                                                 └──▶ evaluate/<model>/metrics.json      (its presence means done)
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cache_builder.atomic import write_text
from cache_builder.config import TextConfig
from cache_builder.data.chat import encode_prompt
from cache_builder.data.examples import Example
from cache_builder.errors import ConfigError, DataError
from cache_builder.narration import manner
from trainer.evaluation.answers import Answer
from trainer.evaluation.baselines import ahead, baseline_answers, score
from trainer.evaluation.eval_mode import in_eval_mode
from trainer.evaluation.generation import GREEDY, Outputs, find_stop_ids, generate, ignored_settings
from trainer.evaluation.likelihood import likeliest
from trainer.evaluation.metrics import is_row_metric, row_scores
from trainer.evaluation.tasks import EvaluateConfig, Task


@dataclass(frozen=True)
class TaskOutputs:
    """One task's rows with what became of them."""

    task: Task
    examples: list[Example]
    prompts: list[str]
    outputs: Outputs
    parsed: list[Answer | None]
    gold: list[Answer]
    decoding: dict[str, Any]
    """How the answers were taken: the method and, where they were written, every setting of it."""

    def result(self, bootstrap_samples: int) -> dict[str, Any]:
        """Return the task's part of metrics.json."""
        primary, baselines = self.task.metrics[0], baseline_answers(self.task, self.examples, self.gold)
        return {
            "rows": len(self.examples),
            "unparsable": sum(answer is None for answer in self.parsed),
            "primary": primary,
            "decoding": self.decoding,
            "metrics": self._metrics(self.parsed, bootstrap_samples),
            "baselines": {
                name: {
                    "metrics": self._metrics(answers, bootstrap_samples),
                    "ahead": ahead(primary, self.parsed, answers, self.gold, bootstrap_samples),
                }
                for name, answers in baselines.items()
            },
        }

    def _metrics(self, answers: Sequence[Answer | None], bootstrap_samples: int) -> dict[str, dict[str, float]]:
        """Return value, low and high of each of the task's metrics."""
        return {name: score(name, answers, self.gold, bootstrap_samples) for name in self.task.metrics}

    def predictions(self) -> list[dict[str, Any]]:
        """Return the rows of predictions.jsonl."""
        primary = self.task.metrics[0]
        scores = row_scores(primary, self.parsed, self.gold) if is_row_metric(primary) else None
        return [
            {
                "id": example["id"],
                "task": self.task.name,
                "prompt": self.prompts[row],
                "output": self.outputs.texts[row],
                "parsed": self.parsed[row],
                "answer": self.gold[row],
                "score": float(scores.score[row]) if scores else None,
                "weight": float(scores.weight[row]) if scores else None,
            }
            for row, example in enumerate(self.examples)
        ]


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    tasks: Mapping[str, Task],
    settings: EvaluateConfig,
    output_dir: str | Path,
    model_name: str,
    *,
    text: TextConfig,
    method: str | None = None,
    seed: int | None = None,
    which: str | None = None,
    split: str = "test",
    console: Console | None = None,
) -> dict[str, Any]:
    """Judge a model, write `<output_dir>/evaluate/<model_name>/`, and return what metrics.json holds.

    Raises:
        DataError: there are no examples, or a row's answer does not fit its task.
        ConfigError: prompts and answers do not fit the model's positions.
    """
    if not len(examples):
        raise DataError(f"there are no {split} examples to evaluate on; give data.{split}")
    by_task: dict[str, list[Example]] = {name: [] for name in tasks}
    for example in examples:
        by_task[example["task"]].append(example)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal or manner() != "text",
    )
    with bar, in_eval_mode(model):
        row_count = bar.add_task(f"evaluate {model_name}", total=len(examples))
        evaluated = [
            answer_task(model, tokenizer, tasks[name], rows, settings, text, lambda rows: bar.advance(row_count, rows))
            for name, rows in by_task.items()
            if rows
        ]
    seconds = sum(part.outputs.seconds for part in evaluated)
    result = {
        "model": model_name,
        "method": method,
        "seed": seed,
        "which": which,
        "split": split,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        "seconds": seconds,
        "tokens_per_second": sum(part.outputs.tokens for part in evaluated) / seconds if seconds else 0.0,
        "ignored_generation_config": ignored_settings(model, len(tokenizer)),
        "tasks": {part.task.name: part.result(settings.bootstrap_samples) for part in evaluated},
    }
    folder = Path(output_dir) / "evaluate" / model_name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for part in evaluated for row in part.predictions()]
    (folder / "metrics.json").unlink(missing_ok=True)
    write_text(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    write_text(folder / "metrics.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def answer_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: list[Example],
    settings: EvaluateConfig,
    text: TextConfig,
    advance: Callable[[int], None] = lambda rows: None,
) -> TaskOutputs:
    """Let a model in eval mode answer a task's rows, and read its answers."""
    gold = [task.gold(example) for example in examples]
    decoding: dict[str, Any] = {"method": task.method or settings.method}
    if decoding["method"] == "likelihood":
        outputs = likeliest(
            model,
            tokenizer,
            examples,
            [task.labels(example) for example in examples],
            text=text.model_copy(update={"max_length": _prompt_limit(model, text.max_length, 0)}),
            advance=advance,
        )
        parsed: list[Answer | None] = list(outputs.texts)
    else:
        max_new_tokens = task.max_new_tokens or settings.max_new_tokens
        limit = _prompt_limit(model, text.max_length, max_new_tokens)
        stop_ids = find_stop_ids(model, tokenizer, examples[0], text)
        outputs = generate(
            model,
            tokenizer,
            [encode_prompt(example, tokenizer, text.chat_template, limit, text.train_on) for example in examples],
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            batch_size=settings.batch_size,
            advance=advance,
        )
        parsed = [task.read(output, example) for output, example in zip(outputs.texts, examples, strict=True)]
        decoding |= {**GREEDY, "max_new_tokens": max_new_tokens, "stop_ids": stop_ids}
        if outputs.padded_mass is not None:
            decoding["padded_mass"] = outputs.padded_mass
    prompts = [str(tokenizer.decode(ids)) for ids in outputs.prompts]
    return TaskOutputs(task, examples, prompts, outputs, parsed, gold, decoding)


def _prompt_limit(model: PreTrainedModel, max_length: int, max_new_tokens: int) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    limit = max_length if positions is None else min(max_length, positions - max_new_tokens)
    if limit < 2:
        raise ConfigError(
            f"evaluate.max_new_tokens is {max_new_tokens}, but the model has only {positions} positions; lower it"
        )
    return limit

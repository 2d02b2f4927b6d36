"""How good a state of a training is at its tasks, on validation data: what `select_by = "metric"` chooses by.

validation examples ─▶ each process its part ─▶ answers of all ─▶ each task's primary metric ─▶ their mean

Test examples are never handed to this file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cache_builder.config import TextConfig
from cache_builder.data.examples import Example
from cache_builder.errors import ConfigError
from trainer.evaluation.answers import Answer
from trainer.evaluation.evaluate import answer_task
from trainer.evaluation.metrics import scorer
from trainer.evaluation.tasks import EvaluateConfig, Task, TaskConfig, check_answers

Given = list[tuple[str, int, Answer | None]]
"""(task, row, answer) of the rows that a process has answered."""


@dataclass(frozen=True)
class ValidationTasks:
    """The validation rows of each task, and how they are answered."""

    tokenizer: PreTrainedTokenizerBase
    tasks: dict[str, Task]
    rows: dict[str, list[Example]]
    settings: EvaluateConfig
    text: TextConfig

    def score(
        self,
        model: PreTrainedModel,
        part: tuple[int, int] = (0, 1),
        gather: Callable[[Given], Given] = lambda answers: answers,
    ) -> float:
        """Return the mean over tasks of the primary metric, of a model in eval mode.

        Args:
            part: (this process, processes); each answers its share of the rows.
            gather: joins what all processes have answered.
        """
        process, processes = part
        answered: Given = []
        for name, examples in self.rows.items():
            mine = range(process, len(examples), processes)
            if mine:
                own = [examples[row] for row in mine]
                outputs = answer_task(model, self.tokenizer, self.tasks[name], own, self.settings, self.text)
                answered += [(name, row, answer) for row, answer in zip(mine, outputs.parsed, strict=True)]
        answers = {(name, row): answer for name, row, answer in gather(answered)}
        return float(np.mean([self._primary(name, answers) for name in self.tasks]))

    def _primary(self, name: str, answers: Mapping[tuple[str, int], Answer | None]) -> float:
        task, examples = self.tasks[name], self.rows[name]
        given = [answers[name, row] for row in range(len(examples))]
        score = scorer(task.metrics[0], given, [task.gold(example) for example in examples])
        return score(np.arange(len(examples)))

    def describe(self) -> dict[str, Any]:
        """Return everything that the score depends on beside the model and the validation data."""
        return {
            "tasks": {name: asdict(task) for name, task in self.tasks.items()},
            "evaluate": self.settings.model_dump(include={"max_new_tokens", "method"}),
        }


def validation_tasks(
    tokenizer: PreTrainedTokenizerBase,
    validation: Sequence[Example],
    source: str,
    configs: Mapping[str, TaskConfig],
    settings: EvaluateConfig,
    text: TextConfig,
) -> ValidationTasks:
    """Return how states of a training are judged; a section of `configs` whose task has no validation row is not used.

    Raises:
        ConfigError: nothing is held out.
        DataError: a row's answer does not fit its task, or is none.
    """
    if not len(validation):
        raise ConfigError(
            'select_by = "metric" and best = "metric" need validation examples; give data.validation, or a '
            "data.validation_fraction above 0, or choose by loss"
        )
    rows: dict[str, list[Example]] = {}
    for example in validation:
        rows.setdefault(example["task"], []).append(example)
    present = {name: config for name, config in configs.items() if name in rows}
    tasks = check_answers(validation, source, present)
    return ValidationTasks(tokenizer, tasks, rows, settings, text)

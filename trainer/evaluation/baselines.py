"""What a model that has learned nothing would score: the rows of a table that every result must beat.

    kind                               baselines
    classification, multiple_choice    majority   the answer that most of these rows have
    exact, text                        majority   the same;  prompt  the question, given back as the output
    entities                           empty      no entity in any row;  prompt  the whole question as the one entity

The majority is that of the evaluated rows, the best that any constant answer can be on them.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cache_builder.data.examples import Example
from trainer.evaluation.answers import Answer
from trainer.evaluation.metrics import MetricName, scorer
from trainer.evaluation.statistics import interval
from trainer.evaluation.tasks import Task


def baseline_answers(task: Task, examples: Sequence[Example], gold: Sequence[Answer]) -> dict[str, list[Answer | None]]:
    """Return each baseline's answers to the task's rows."""
    questions = [_question(example) for example in examples]
    if task.kind == "entities":
        return {"empty": [[] for _ in gold], "prompt": [[question] for question in questions]}
    most = Counter(str(answer) for answer in gold).most_common(1)[0][0]
    answers: dict[str, list[Answer | None]] = {"majority": [most for _ in gold]}
    if task.kind in ("exact", "text"):
        answers["prompt"] = [
            task.read(question, example) for question, example in zip(questions, examples, strict=True)
        ]
    return answers


def score(
    metric: MetricName, parsed: Sequence[Answer | None], gold: Sequence[Answer], bootstrap_samples: int
) -> dict[str, float]:
    """Return a metric's value and its 95 % bootstrap interval over rows."""
    of_rows = scorer(metric, parsed, gold)
    low, high = interval(of_rows, len(gold), bootstrap_samples)
    return {"value": of_rows(np.arange(len(gold))), "low": low, "high": high}


def ahead(
    metric: MetricName,
    parsed: Sequence[Answer | None],
    baseline: Sequence[Answer | None],
    gold: Sequence[Answer],
    bootstrap_samples: int,
) -> dict[str, float]:
    """Return how far the answers are ahead of a baseline's, and the 95 % interval of that, resampling rows in pairs."""
    ours, theirs = scorer(metric, parsed, gold), scorer(metric, baseline, gold)
    low, high = interval(lambda rows: ours(rows) - theirs(rows), len(gold), bootstrap_samples)
    rows = np.arange(len(gold))
    return {"value": ours(rows) - theirs(rows), "low": low, "high": high}


def _question(example: Example) -> str:
    return next((turn["content"] for turn in reversed(example["messages"]) if turn["role"] == "user"), "")

"""The two functions that an exported task of lm-evaluation-harness scores its rows with: this project's own.

document, what a model gave ─▶ process_results ─▶ (metric, answer, gold) of a row ─▶ aggregate ─▶ the metric
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.evaluation.answers import Answer, parse
from trainer.evaluation.metrics import MetricName, scorer

Row = tuple[MetricName, Answer | None, Answer]


def process_results(document: dict[str, Any], results: Sequence[Any]) -> dict[str, Row]:
    """Read a row's answer: the likeliest of its labels, the first of equal ones, or what was written.

    Args:
        results: (log-probability, is greedy) of each label, or the text.
    """
    if document["labels"]:
        answer: Answer | None = document["labels"][int(np.argmax([logp for logp, *_ in results]))]
    else:
        answer = parse(document["parser"], results[0], document["choices"])
    metric: MetricName = document["metric"]
    return {metric: (metric, answer, document["gold"])}


def aggregate(rows: Sequence[Row]) -> float:
    """Return the metric over all rows."""
    return scorer(rows[0][0], [answer for _, answer, _ in rows], [gold for *_, gold in rows])(np.arange(len(rows)))

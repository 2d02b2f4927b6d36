"""The demo's notes with a chosen share of wrong training answers, and a second, shifted part of the test set.

    train       3,000 notes of three findings, so many answers wrong        validation    300, none wrong
    test        600 like them, tasks `department` …, and 600 with four findings, tasks `department-shifted` …

Four findings are never trained on: longer notes, and more that is not to be listened to.
"""

import json
from pathlib import Path

from cache_builder.atomic import write_text
from cache_builder.data.examples import Example
from cache_builder.data.sources.demo import TASKS, TEST_EXAMPLES, TRAIN_EXAMPLES, VALIDATION_EXAMPLES, generate

SHIFTED = "-shifted"
SHIFTED_FINDINGS = 4
SEED = 0


def write_notes(folder: Path, noise: float) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl; no note is in two of them, noise is in the first alone."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    shifted = generate("shifted", TEST_EXAMPLES, TASKS, SEED, seen, mistakes=0.0, findings=SHIFTED_FINDINGS)
    test = generate("test", TEST_EXAMPLES, TASKS, SEED, seen, mistakes=0.0)
    validation = generate("validation", VALIDATION_EXAMPLES, TASKS, SEED, seen, mistakes=0.0)
    train = generate("train", TRAIN_EXAMPLES, TASKS, SEED, seen, mistakes=noise)
    for example in shifted:
        example["task"] += SHIFTED
    for split, examples in (("train", train), ("validation", validation), ("test", [*test, *shifted])):
        write_text(folder / f"{split}.jsonl", _lines(examples))


def _lines(examples: list[Example]) -> str:
    return "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)

"""JMED-LLM: Japanese medical multiple choice and entity extraction, with the official prompts.

    datasets/all/<pool>.csv     everything      datasets/<task>.csv     the official evaluation set, 100 rows of it

    split_by      training                                    test
    official      the pools without the official rows         the official sets
    row           80 % of each pool by seed, as in the paper  20 %; its documents occur in training too: it leaks
    group         80 % of each pool's documents by seed       the other documents

Held-out examples are taken from training, a tenth of it unless `data.validation_fraction` says otherwise, so 72 % of a
pool is trained on; with "group", whole documents.
"""

import ast
import csv
import io
import math
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache_builder.config import DataConfig
from cache_builder.data.examples import Example
from cache_builder.data.sources import benchmark_folder, check_counts, chosen_tasks, limited, read_text, turns
from cache_builder.errors import ConfigError, DataError

CHOICE_SYSTEM = (
    "与えられた医学に関する質問と選択肢から、最も適切な回答を選択してください。"
    "なお、回答には選択肢のアルファベット（例：A）のみを含め、他には何も含めないことを厳守してください。"
)
ENTITY_SYSTEM = (
    "与えられた医学に関する質問から、最も適切な回答をしてください。"
    "なお、回答にはPythonのリスト形式（例：['回答1', '回答2']）のみを含め、他には何も含めないことを厳守してください。"
)
TEST_FRACTION = 0.2


@dataclass(frozen=True)
class File:
    """A CSV file, and how many rows it has of each answer (choices) or of each tag (entities)."""

    name: str
    counts: dict[str, int]


POOLS = {
    "jmmlu_med": File("all/JMMLU-Med.csv", {"A": 137, "B": 165, "C": 162, "D": 217}),
    "crade": File("all/CRADE.csv", {"A": 1320, "B": 61, "C": 79, "D": 170}),
    "rrtnm": File("all/RRTNM.csv", {"A": 116, "B": 67, "C": 83, "D": 26, "E": 32}),
    "smdis": File("all/SMDIS.csv", {"A": 1914, "B": 13446}),
    "nrner": File("all/NRNER.csv", {"d": 895, "m-key": 451, "m-val": 193}),
    "crner": File("all/CRNER.csv", {"d": 147, "m-key": 84, "m-val": 34}),
    "rrner": File("all/RRNER.csv", {"d": 72}),
}
OFFICIAL = {
    "jmmlu_med": File("jmmlu_med.csv", dict.fromkeys("ABCD", 25)),
    "crade": File("crade.csv", dict.fromkeys("ABCD", 25)),
    "rrtnm": File("rrtnm.csv", {"A": 35, "B": 36, "C": 13, "D": 13, "E": 3}),
    "smdis": File("smdis.csv", {"A": 50, "B": 50}),
    "nrner": File("nrner.csv", {"d": 50, "m-key": 25, "m-val": 25}),
    "jcsts": File("jcsts.csv", {"A": 17, "B": 17, "C": 17, "D": 17, "E": 16, "F": 16}),
    "mrner_disease": File("mrner_disease.csv", {"d": 100}),
    "mrner_medicine": File("mrner_medicine.csv", {"m-key": 66, "m-val": 34}),
}
TASKS = tuple(dict.fromkeys([*POOLS, *OFFICIAL]))


def files(config: DataConfig) -> list[Path]:
    """Return the pools and the official sets that are there."""
    folder = benchmark_folder(config) / "datasets"
    known = [folder / file.name for file in (*POOLS.values(), *OFFICIAL.values())]
    return [path for path in known if path.is_file()]


def load(config: DataConfig, seed: int) -> dict[str, list[Example]]:
    """Read the chosen tasks and split them as `data.split_by` says.

    Raises:
        ConfigError, MissingError: `data.path` does not lead to the files, or a task has no pool to split.
        DataError: a file is damaged or partial.
    """
    folder = benchmark_folder(config) / "datasets"
    official = config.split_by == "official"
    tasks = chosen_tasks(config, TASKS) if official or config.tasks else list(POOLS)
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    if official:
        splits["test"] = [row for task in tasks if task in OFFICIAL for row in _read(folder, task, OFFICIAL[task])]
        sets = [_read(folder, task, file) for task, file in OFFICIAL.items()]
        judged = {_prompt(row) for rows in sets for row in rows}
        pools = [_read(folder, task, POOLS[task]) for task in tasks if task in POOLS]
        splits["train"] = [row for rows in pools for row in rows if _prompt(row) not in judged]
        return limited(splits, config, seed)
    for task in tasks:
        if task not in POOLS:
            raise ConfigError(f'data.tasks: {task!r} has no pool to split; use split_by = "official" for it')
        rows = _read(folder, task, POOLS[task])
        if config.split_by == "row":
            train, test = _by_row(rows, TEST_FRACTION, seed)
        else:
            train, test = _by_document(rows, TEST_FRACTION, seed)
            train, held_out = _by_document(train, config.validation_fraction, seed)
            splits["validation"] += held_out
        splits["train"] += train
        splits["test"] += test
    return limited(splits, config, seed)


def _read(folder: Path, task: str, file: File) -> list[Example]:
    path = folder / file.name
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
    label = "answer" if "optionA" in (rows[0] if rows else {}) else "tag"
    check_counts(path, "rows", (row.get(label) or "" for row in rows), file.counts)
    return [_example(path, task, index, row) for index, row in enumerate(rows)]


def _example(path: Path, task: str, index: int, row: dict[str, str]) -> Example:
    where = f"{path}, row {index + 1}"
    name, question = f"{task}-{path.parent.name}-{index:05d}", row["question"]
    example: Example = {"id": name, "task": task, "messages": [], "group": _document(question)}
    if "optionA" in row:
        options = [row.get(f"option{letter}") or "" for letter in string.ascii_uppercase[:6]]
        choices = [option for option in options if option]
        if options[: len(choices)] != choices or row["answer"] not in string.ascii_uppercase[: len(choices)]:
            raise DataError(f"{where}: the answer {row['answer']!r} is none of its options; get the file again")
        listed = "".join(f"{letter}. {text}\n" for letter, text in zip(string.ascii_uppercase, choices, strict=False))
        example["messages"] = turns(f"質問: {question}\n選択肢:\n{listed}", row["answer"], CHOICE_SYSTEM)
        example["choices"] = choices
    else:
        try:
            example["answer"] = [str(entity) for entity in ast.literal_eval(row["answer"])]
        except (ValueError, SyntaxError) as error:
            raise DataError(f"{where}: the answer is not a Python list ({error}); get the file again") from None
        example["messages"] = turns(question, row["answer"], ENTITY_SYSTEM)
    return example


def _document(question: str) -> str:
    """Return the text that a question is about; a question without one stands for itself."""
    _, found, document = question.partition("？\n「")
    return document.rstrip("」\n 　") if found else question


def _prompt(example: Example) -> str:
    return example["messages"][1]["content"]


def _by_row(rows: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Return two parts, the second with its fraction of the rows, rounded up."""
    chosen = np.random.default_rng([seed, 0x20]).permutation(len(rows))[: math.ceil(fraction * len(rows))]
    taken = set(chosen.tolist())
    parts: tuple[list[Example], list[Example]] = [], []
    for index, row in enumerate(rows):
        parts[index in taken].append(row)
    return parts


def _by_document(rows: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Return two parts without a common document, the second with at least its fraction of the rows."""
    sizes = Counter(row["group"] for row in rows)
    documents, wanted = sorted(sizes), math.ceil(fraction * len(rows))
    taken: set[str] = set()
    for index in np.random.default_rng([seed, 0x21]).permutation(len(documents)):
        if wanted <= 0:
            break
        taken.add(documents[index])
        wanted -= sizes[documents[index]]
    return [row for row in rows if row["group"] not in taken], [row for row in rows if row["group"] in taken]

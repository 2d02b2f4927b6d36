"""PubMedQA's labelled part: is the answer of a paper's title yes, no or maybe, by its abstract without the conclusion?

    data/ori_pqal.json            1,000 papers by PMID
    data/test_ground_truth.json     500 of them are the official test set; the others are for training

Both halves have 276 yes, 169 no and 55 maybe. Held-out examples are taken from the training half.
"""

from pathlib import Path
from typing import Any

from cache_builder.config import DataConfig
from cache_builder.data.examples import Example
from cache_builder.data.sources import benchmark_folder, check_counts, chosen_tasks, limited, read_json, turns
from cache_builder.errors import DataError

TASKS = ("pubmedqa",)
CHOICES = ["yes", "no", "maybe"]
COUNTS = {"yes": 276, "no": 169, "maybe": 55}
INSTRUCTION = "Answer the question from the abstract with yes, no or maybe."


def files(config: DataConfig) -> list[Path]:
    """Return the papers and the test set's labels."""
    folder = benchmark_folder(config) / "data"
    return [folder / "ori_pqal.json", folder / "test_ground_truth.json"]


def load(config: DataConfig, seed: int) -> dict[str, list[Example]]:
    """Read the official split.

    Raises:
        ConfigError, MissingError: `data.path` does not lead to the files.
        DataError: a file is damaged or partial.
    """
    chosen_tasks(config, TASKS)
    papers_file, truth_file = files(config)
    papers, truth = _mapping(papers_file), _mapping(truth_file)
    check_counts(truth_file, "test labels", map(str, truth.values()), COUNTS)
    examples = {pmid: _example(papers_file, pmid, paper) for pmid, paper in papers.items()}
    splits = {
        "train": [example for pmid, example in examples.items() if pmid not in truth],
        "validation": [],
        "test": [example for pmid, example in examples.items() if pmid in truth],
    }
    for split in ("train", "test"):
        check_counts(papers_file, f"{split} papers", map(_answer, splits[split]), COUNTS)
    differing = [example["id"] for example in splits["test"] if truth[example["id"]] != _answer(example)]
    if differing:
        raise DataError(
            f"{papers_file.parent}: ori_pqal.json and test_ground_truth.json disagree on {len(differing)} papers, "
            f"the first is {differing[0]}; get both files again"
        )
    return limited(splits, config, seed)


def _example(path: Path, pmid: str, paper: Any) -> Example:
    try:
        question, answer = paper["QUESTION"], paper["final_decision"]
        sections = list(zip(paper["LABELS"], paper["CONTEXTS"], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: paper {pmid} is not as published ({error!r}); get the file again") from None
    abstract = "\n".join(f"{label}: {content}" for label, content in sections)
    return {
        "id": pmid,
        "task": "pubmedqa",
        "messages": turns(f"{INSTRUCTION}\n\n{abstract}\n\nQuestion: {question}", answer),
        "choices": CHOICES,
    }


def _answer(example: Example) -> str:
    return example["messages"][-1]["content"]


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object by PMID, got {type(content).__name__}; get the file again")
    return content

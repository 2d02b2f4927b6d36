"""CLINC150: which of 150 intents has an utterance, or is it out of scope?

data/data_full.json     train 15,000 (100 an intent)   val 3,000 (20)   test 4,500 (30)   out of scope 100, 100, 1,000
"""

from pathlib import Path
from typing import Any

from cache_builder.config import DataConfig
from cache_builder.data.examples import Example
from cache_builder.data.sources import benchmark_folder, check_counts, chosen_tasks, limited, read_json, turns
from cache_builder.errors import DataError

TASKS = ("clinc150",)
OUT_OF_SCOPE = "out of scope"
PARTS = {
    "train": (("train", 100), ("oos_train", 100)),
    "validation": (("val", 20), ("oos_val", 100)),
    "test": (("test", 30), ("oos_test", 1000)),
}
"""Split → the file's parts and how many utterances each of their labels has."""
INTENTS = 150


def files(config: DataConfig) -> list[Path]:
    """Return the one file that is read."""
    return [benchmark_folder(config) / "data" / "data_full.json"]


def load(config: DataConfig, seed: int) -> dict[str, list[Example]]:
    """Read the official split, out-of-scope utterances included.

    Raises:
        ConfigError, MissingError: `data.path` does not lead to the file.
        DataError: the file is damaged or partial.
    """
    chosen_tasks(config, TASKS)
    (path,) = files(config)
    content = read_json(path)
    rows = {part: _rows(path, content, part) for parts in PARTS.values() for part, _ in parts}
    intents = sorted({label for _, label in rows["train"]})
    if len(intents) != INTENTS:
        raise DataError(f"{path}: {len(intents)} intents in `train`, expected {INTENTS}; get the file again")
    for parts in PARTS.values():
        for part, count in parts:
            labels = ["oos"] if part.startswith("oos") else intents
            check_counts(
                path, f"utterances in `{part}`", (label for _, label in rows[part]), dict.fromkeys(labels, count)
            )
    choices = [*map(_readable, intents), OUT_OF_SCOPE]
    splits = {
        split: [
            _example(f"{part}-{row:05d}", text, label, choices)
            for part, _ in parts
            for row, (text, label) in enumerate(rows[part])
        ]
        for split, parts in PARTS.items()
    }
    return limited(splits, config, seed)


def _rows(path: Path, content: Any, part: str) -> list[tuple[str, str]]:
    try:
        return [(str(text), str(label)) for text, label in content[part]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: `{part}` is not a list of [text, intent] ({error!r}); get the file again") from None


def _example(name: str, text: str, label: str, choices: list[str]) -> Example:
    return {
        "id": name,
        "task": "clinc150",
        "messages": turns(f"Utterance: {text}\nIntent:", _readable(label)),
        "choices": choices,
    }


def _readable(label: str) -> str:
    return OUT_OF_SCOPE if label == "oos" else label.replace("_", " ")

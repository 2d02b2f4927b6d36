"""SNIPS: which of seven intents has an utterance, and which slots does it fill?

<intent>/train_<intent>_full.json     13,784 utterances     <intent>/validate_<intent>.json     100 each: the test set
{"data": [{"text": "play "}, {"text": "Aspro Mavro", "entity": "track"}, …]}

intent   play Aspro Mavro  →  PlayMusic                  classification
slots    play Aspro Mavro  →  ['track: Aspro Mavro']     entities
"""

from pathlib import Path
from typing import Any

from cache_builder.config import DataConfig
from cache_builder.data.examples import Example
from cache_builder.data.sources import benchmark_folder, check_counts, chosen_tasks, limited, read_json, turns
from cache_builder.errors import DataError

TASKS = ("intent", "slots")
FOLDER = "2017-06-custom-intent-engines"
TRAIN_COUNTS = {
    "AddToPlaylist": 1942,
    "BookRestaurant": 1973,
    "GetWeather": 2000,
    "PlayMusic": 2000,
    "RateBook": 1956,
    "SearchCreativeWork": 1954,
    "SearchScreeningEvent": 1959,
}
TEST_COUNTS = dict.fromkeys(TRAIN_COUNTS, 100)
INTENTS = list(TRAIN_COUNTS)
ENCODINGS = ("utf-8", "latin-1")
"""train_PlayMusic_full.json is published in latin-1, the other files in UTF-8."""


def files(config: DataConfig) -> list[Path]:
    """Return each intent's training and validation file."""
    folder = _folder(config)
    return [folder / intent / name for intent in INTENTS for name in _names(intent)]


def load(config: DataConfig, seed: int) -> dict[str, list[Example]]:
    """Read the training files, and the validation files as the test set; held-out examples come from the former.

    Raises:
        ConfigError, MissingError: `data.path` does not lead to the files.
        DataError: a file is damaged or partial.
    """
    tasks = chosen_tasks(config, TASKS)
    folder = _folder(config)
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for intent in INTENTS:
        for split, file, counts in zip(("train", "test"), _names(intent), (TRAIN_COUNTS, TEST_COUNTS), strict=True):
            path = folder / intent / file
            utterances = _utterances(path, intent)
            check_counts(path, "utterances", [intent] * len(utterances), {intent: counts[intent]})
            for row, pieces in enumerate(utterances):
                for task in tasks:
                    splits[split].append(_example(f"{split}-{intent}-{row:04d}-{task}", task, intent, pieces))
    return limited(splits, config, seed)


def _folder(config: DataConfig) -> Path:
    folder = benchmark_folder(config)
    return folder / FOLDER if (folder / FOLDER).is_dir() else folder


def _names(intent: str) -> tuple[str, str]:
    return f"train_{intent}_full.json", f"validate_{intent}.json"


def _utterances(path: Path, intent: str) -> list[list[tuple[str, str | None]]]:
    """Read each utterance as (text, slot or None) pieces."""
    content: Any = read_json(path, ENCODINGS)
    try:
        return [[(piece["text"], piece.get("entity")) for piece in row["data"]] for row in content[intent]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not utterances of {intent} ({error!r}); get the file again") from None


def _example(name: str, task: str, intent: str, pieces: list[tuple[str, str | None]]) -> Example:
    text = " ".join("".join(piece for piece, _ in pieces).split())
    if task == "intent":
        messages = turns(f"Utterance: {text}\nIntent:", intent)
        return {"id": name, "task": task, "messages": messages, "choices": INTENTS, "group": text}
    slots = [f"{slot}: {' '.join(piece.split())}" for piece, slot in pieces if slot is not None]
    messages = turns(f"Utterance: {text}\nSlots:", str(slots))
    return {"id": name, "task": task, "messages": messages, "answer": slots, "group": text}

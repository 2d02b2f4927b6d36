"""A user's own tasks, from a table and a few lines of TOML to judged answers."""

import json
from pathlib import Path

import pytest

from cache_builder.config import DataConfig
from cache_builder.data.splits import load_splits
from cache_builder.errors import ConfigError, DataError, MissingError
from trainer.evaluation.tasks import TaskConfig, resolve_tasks


def config(rows: dict[str, object], **options: object) -> DataConfig:
    return DataConfig.model_validate({"source": "rows", "rows": rows, "validation_fraction": 0, **options})


@pytest.fixture
def notes(tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "notes.csv"
    path.write_text('note,department\n"dry cough, fever",lungs\nred {spots},skin\n')
    return {
        "train": str(path),
        "test": str(path),
        "prompt": "Note: {note}\nDepartment?",
        "answer": "{department}",
        "choices": ["lungs", "skin"],
        "system": "Be brief.",
    }


def test_rows_become_questions_with_answers(notes: dict[str, object]) -> None:
    splits = load_splits(config({"triage": notes}), 0)
    assert splits["train"][0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Note: dry cough, fever\nDepartment?"},
        {"role": "assistant", "content": "lungs"},
    ]
    assert splits["train"][1]["messages"][1]["content"] == "Note: red {spots}\nDepartment?"
    task = resolve_tasks(splits["test"], "rows", {"triage": TaskConfig(metrics=["macro_f1"])})["triage"]
    assert (task.kind, task.metrics, task.gold(splits["test"][1])) == ("classification", ("macro_f1",), "skin")


def test_a_column_of_lists_makes_an_entity_task(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "cough and rash", "found": ["cough", "rash"]}) + "\n")
    splits = load_splits(config({"found": {"train": str(path), "prompt": "{text}", "answer": "{found}"}}), 0)
    assert splits["train"][0]["answer"] == ["cough", "rash"]
    assert splits["train"][0]["messages"][1]["content"] == "['cough', 'rash']"
    assert resolve_tasks(splits["train"], "rows", {})["found"].kind == "entities"


def test_several_tasks_are_read_and_can_be_chosen(notes: dict[str, object]) -> None:
    other = {**notes, "prompt": "{note}?", "choices": None}
    splits = load_splits(config({"triage": notes, "free": other}), 0)
    assert [example["task"] for example in splits["train"]] == ["triage", "triage", "free", "free"]
    assert len({example["id"] for example in splits["train"]}) == 4
    chosen = load_splits(config({"triage": notes, "free": other}, tasks=["free"]), 0)
    assert {example["task"] for example in chosen["train"]} == {"free"}


def test_what_does_not_fit_is_refused_with_its_place(notes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"notes\.csv, line 2 has no column 'text', which .* names; it has note, dep"):
        load_splits(config({"triage": {**notes, "prompt": "{text}"}}), 0)
    with pytest.raises(MissingError, match=r"data\.rows\.triage\.train .*nowhere\.csv: no such file"):
        load_splits(config({"triage": {**notes, "train": str(tmp_path / "nowhere.csv")}}), 0)
    with pytest.raises(ConfigError, match=r"no section \[data\.rows\.NAME\]"):
        load_splits(config({}), 0)
    with pytest.raises(DataError, match=r"data\.rows\.triage\.train .*, line 2: the answer is empty"):
        load_splits(config({"triage": {**notes, "answer": " "}}), 0)

"""The study's data, its order, and the arithmetic of its tables."""

import json
from pathlib import Path

from cache_builder.data.sources import demo
from tools.study.cells import BLOCKS, SEEDS, Cell, students
from tools.study.data import SHIFTED, write_notes


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def right_answer(row: dict) -> str | None:
    """Restate the rule of one question: the dose of the drug, changed by the patient's age."""
    note, question = row["messages"][0]["content"].split("\n")
    if question != "dose ?":
        return None
    drug, patient = note.split("takes ")[1].split(" ")[0], note.split(" ")[0]
    full = 4 * (1 + demo.DRUGS.index(drug) % 6)
    return f"{ {'child': full // 2, 'adult': full, 'elder': full * 3 // 4}[patient] } mg"


def wrong_share(rows: list[dict]) -> float:
    judged = [(row["messages"][1]["content"], right_answer(row)) for row in rows if right_answer(row)]
    return sum(answer != right for answer, right in judged) / len(judged)


def test_noise_is_in_the_training_answers_alone_and_in_so_many_of_them(tmp_path: Path) -> None:
    for noise, low, high in ((0.0, 0.0, 0.0), (0.25, 0.2, 0.3)):
        write_notes(tmp_path / str(noise), noise)
        splits = {split: rows_of(tmp_path / str(noise) / f"{split}.jsonl") for split in ("train", "validation", "test")}
        assert low <= wrong_share(splits["train"]) <= high
        assert wrong_share(splits["validation"]) == wrong_share(splits["test"]) == 0
        prompts = [row["messages"][0]["content"] for rows in splits.values() for row in rows]
        assert len(set(prompts)) == len(prompts)
    for split in ("validation", "test"):
        assert rows_of(tmp_path / "0.0" / f"{split}.jsonl") == rows_of(tmp_path / "0.25" / f"{split}.jsonl")


def test_the_shifted_half_of_the_test_set_has_longer_notes_and_tasks_of_its_own(tmp_path: Path) -> None:
    write_notes(tmp_path, 0.0)
    test, train = rows_of(tmp_path / "test.jsonl"), rows_of(tmp_path / "train.jsonl")
    findings = {
        shifted: {
            row["messages"][0]["content"].count(" , ") + 1 for row in test if row["task"].endswith(SHIFTED) == shifted
        }
        for shifted in (False, True)
    }
    assert findings == {False: {3}, True: {4}}
    assert {row["messages"][0]["content"].count(" , ") + 1 for row in train} == {3}


def test_a_seed_of_a_block_is_complete_before_the_next_and_no_student_comes_twice() -> None:
    order = list(students(list(BLOCKS)))
    assert len(set(order)) == len(order)
    first = [seed for cell, seed in order if cell in BLOCKS[next(iter(BLOCKS))]][
        : SEEDS * len(BLOCKS[next(iter(BLOCKS))])
    ]
    assert first == sorted(first)
    assert all(isinstance(cell, Cell) for cell, _ in order)

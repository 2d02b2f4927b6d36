"""The study's data, its order, and the arithmetic of its tables."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cache_builder.data.sources import demo
from tools.study import __main__ as study
from tools.study.cells import BLOCKS, SEEDS, SIZES, Cell, students
from tools.study.data import SHIFTED, write_notes
from tools.study.plots import draw_all
from tools.study.students import REFERENCES, _experiment
from tools.study.tables import Difference, groups, label, paired, read, table


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


def line(cell: Cell, seed: str, test: float) -> dict[str, str]:
    return cell.columns() | {
        "seed": seed,
        "test": f"{test:.4f}",
        "shifted": f"{test - 0.1:.4f}",
        "held_out": "0.1200",
        "chosen": "8 16",
    }


def test_a_difference_is_that_of_the_paired_t_test_over_the_seeds_that_both_have() -> None:
    ours = {"0": 90.0, "1": 92.5, "2": 91.0, "7": 50.0}
    theirs = {"0": 89.0, "1": 90.0, "2": 90.5, "9": 99.0}
    difference = paired(ours, theirs)
    reference = stats.ttest_rel([90.0, 92.5, 91.0], [89.0, 90.0, 90.5])
    assert difference is not None and difference.seeds == 3
    assert difference.mean == pytest.approx(np.mean([1.0, 2.5, 0.5]))
    assert difference.p_value == pytest.approx(reference.pvalue)
    assert (difference.low, difference.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert paired(ours, {"0": 1.0}) is None


def test_rows_that_never_differ_are_a_comparison_whose_difference_is_nothing() -> None:
    scores = {"0": 90.0, "1": 92.5}
    assert paired(scores, scores) == Difference(2, 0.0, 0.0, 0.0, 1.0)


def test_a_larger_student_trains_at_the_rates_that_were_found_for_it(tmp_path: Path) -> None:
    for size, each in SIZES.items():
        experiment = _experiment(tmp_path, tmp_path / size, Cell(size=size))
        assert experiment.sft.student.learning_rate == each.sft_rate
        assert experiment.distill.learning_rate == each.distill_rate
        config = json.loads((Path(experiment.student.model) / "config.json").read_text())
        assert config["hidden_size"] == each.hidden_size


def test_every_table_has_the_reference_that_its_methods_are_compared_with() -> None:
    rows = [{**cell.columns(), "seed": str(seed)} for cell, seed in students(list(BLOCKS))]
    for group, of_it in groups(rows).items():
        assert "td" in {label(row) for row in of_it}, group


def test_a_student_with_a_row_is_not_trained_again_wherever_the_csv_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"held_out": "0.1", "chosen": "8", "test": "0.9", "shifted": "0.8"}
    trained: list[int] = []
    monkeypatch.setattr(study, "references", lambda folder, cell: dict.fromkeys(REFERENCES, scores))
    monkeypatch.setattr(study, "result", lambda folder, cell, seed: trained.append(seed) or scores)
    monkeypatch.setattr("sys.argv", ["study", "runs", "--csv", "mine.csv", "--blocks", "in-order", "--seeds", "2"])
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            study.main()
    assert trained == [0, 1]
    assert [row["seed"] for row in read(tmp_path / "mine.csv")] == ["", "", "0", "1"]


def test_a_table_keeps_cells_apart_and_corrects_its_p_values_together(tmp_path: Path) -> None:
    scores = {"td": (0.90, 0.91, 0.92), "scd": (0.93, 0.94, 0.96), "sft": (0.88, 0.91, 0.89)}
    rows = [
        line(Cell(method=name), str(seed), value) for name, all_ in scores.items() for seed, value in enumerate(all_)
    ]
    rows += [line(Cell(method="td", epochs_per_stage=2), "0", 0.5), line(Cell(method="td", alpha=1.0), "0", 0.7)]
    rows += [line(Cell(method="teacher"), "", 0.95)]
    found = groups(rows)
    assert [len(each) for each in found.values()] == [10, 1]
    assert label(rows[-2]) == "td, α = 1"
    group = next(iter(found))
    text = table(found[group], group, rows)
    assert "| teacher |  | 95.0 |" in text
    assert "| `scd` | 3 | 94.3 ± 1.5 | +3.3 [+1.9, +4.8] |" in text
    scd, sft = (stats.ttest_rel(scores[name], scores["td"]).pvalue for name in ("scd", "sft"))
    assert f"| {2 * min(scd, sft):.3f} |" in text and f"| {max(scd, sft):.3f} |" in text
    assert "| `td` | 3 | 91.0 ± 1.0 | −3.3 [−4.8, −1.9] |" in table(found[group], group, rows, "scd")
    paths = draw_all(rows, tmp_path)
    assert [path.name for path in paths] == ["study-demo-n25-c4-small-e6-base.png"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")

"""The check for GPUs runs on a CPU, and fails where what it checks is wrong."""

import time
from typing import Any

import pytest
import torch

from tools import gpu_check
from tools.gpu_check import PARTS, Check, correctness, main
from tools.measuring import Deadline, measure


def new_check() -> Check:
    return Check(torch.device("cpu"), quick=True, deadline=Deadline(time.monotonic() + 60))


def test_bfloat16_is_close_to_float64_plain_padded_and_packed() -> None:
    check = new_check()
    correctness(check)
    assert check.failed == []
    assert {row["case"] for row in check.rows} == {"plain", "padded vocabulary", "packed"}


def test_a_loss_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_check.distillation_loss

    def wrong(hidden: Any, head: Any, targets: Any, label: Any, divergence_weight: Any, ce_weight: Any) -> Any:
        scale = 1.1 if hidden.dtype == torch.bfloat16 else 1.0
        return right(hidden, head, targets, label, divergence_weight, scale * ce_weight)

    monkeypatch.setattr(gpu_check, "distillation_loss", wrong)
    check = new_check()
    correctness(check)
    assert any("ce gradient" in failure for failure in check.failed)
    assert not any("gold" in failure for failure in check.failed)


def test_sequences_that_are_mixed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "packing_of", lambda model, setting: "rows")
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    monkeypatch.setattr("cache_builder.models.lm_head._VERIFIED_ROWS", 1)
    check = new_check()
    correctness(check)
    assert any("packed" in failure and "gold" in failure for failure in check.failed)
    assert not any("plain" in failure for failure in check.failed)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the program; return its status, and the rows that it would append."""
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr("sys.argv", ["gpu_check", "--device", "cpu", *arguments])
    monkeypatch.setattr(gpu_check, "append_rows", lambda name, found: rows.extend(found))
    return main(), rows


@pytest.mark.slow
def test_every_part_runs_to_its_end_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    status, rows = run_main(monkeypatch)
    assert status == 0
    assert {row["part"] for row in rows} == set(PARTS)
    assert not [row for row in rows if "left out" in row["value"]]
    assert {row["quick"] for row in rows} == {True}


def test_what_there_is_no_time_for_is_said_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    status, rows = run_main(monkeypatch, "--minutes", "0")
    assert status == 0
    assert [(row["part"], row["value"]) for row in rows] == [(name, "left out: time over") for name in PARTS]


def test_a_part_stops_between_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    check = new_check()
    padded = gpu_check.collate

    def late(*arguments: Any) -> Any:
        check.deadline.ends = time.monotonic()
        return padded(*arguments)

    monkeypatch.setattr(gpu_check, "collate", late)
    correctness(check)
    left_out = [row["case"] for row in check.rows if row["value"] == "left out: time over"]
    assert left_out == ["padded vocabulary", "packed"]
    assert {row["case"] for row in check.rows if row["what"] == "ce loss, nats"} == {"plain"}


def test_a_measurement_leaves_out_what_it_has_no_time_or_no_memory_for() -> None:
    deadline, ran = Deadline(), []

    def exhausting() -> None:
        raise torch.OutOfMemoryError

    def ending() -> None:
        ran.append("last")
        deadline.ends = time.monotonic()

    variants = {"first": lambda: ran.append("first"), "large": exhausting, "last": ending, "late": exhausting}
    measured = measure(variants, 3, torch.device("cpu"), deadline=deadline)
    assert [each.variant for each in measured] == ["first", "last"]
    assert deadline.left_out == [("large", "out of memory"), ("late", "time over")]
    assert ran == ["first", "first", "last", "first", "last"]

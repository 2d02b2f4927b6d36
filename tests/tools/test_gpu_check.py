"""The check for GPUs runs on a CPU, and fails where what it checks is wrong."""

import time
from typing import Any

import pytest
import torch

from tools import gpu_check
from tools.gpu_check import Check, correctness


def new_check() -> Check:
    return Check(torch.device("cpu"), quick=True, ends=time.monotonic() + 60)


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

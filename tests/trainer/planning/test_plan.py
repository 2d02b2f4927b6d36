"""Operations, memory and rates of a plan: hand-computed, and as what changes them should change them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cache_builder.atomic import write_json
from cache_builder.build.costs import BuildCost
from trainer.loop.order import RowStream
from trainer.planning.command import make_plan, read_experiment
from trainer.planning.corpus_size import tokenised_size
from trainer.planning.plan import Memory, Plan
from trainer.planning.rates import given_rates, measured_rates
from trainer.planning.tables import gpu_hours

SIZES: dict[str, str | None] = {"teacher": "8B", "student": "3B", "positions": "1e9"}
NOTHING_HELD_OUT = "data.validation_fraction=0.0"


def plan(*overrides: str, **options: str) -> Plan:
    given = {**SIZES, **options}
    return make_plan(read_experiment(None, ("teacher.checkpoints=5", *overrides), given), given)


def flops(found: Plan) -> dict[str, float]:
    return {stage.name: stage.flops for stage in found.stages()}


def memory(found: Plan) -> dict[str, Memory]:
    return {each.name: each for each in found.memory()}


def test_every_checkpoint_and_the_probe_pass_over_the_corpus() -> None:
    """The anchor fixes the probe's ids in a pass of its own; then each checkpoint runs over all, and over the probe."""
    options = ("cache.probe_sequences=1000", NOTHING_HELD_OUT)
    one_shard = (*options, "cache.shard_positions=1000000000", "cache.chunk_positions=1000000000")
    one, three = (plan(*one_shard, f"teacher.checkpoints={count}", positions="1e6").build_flops() for count in (1, 3))
    probed = 1000 / 3906
    assert three / one == pytest.approx((3 * (1 + probed) + probed) / (1 + 2 * probed), rel=1e-3)
    cut = plan(*options, "teacher.checkpoints=1", "cache.shard_positions=4096", positions="1e6").build_flops()
    assert cut / one == pytest.approx((1 + 244 / 3906 + 2 * probed) / (1 + 2 * probed), rel=1e-3)


def test_what_is_held_out_is_run_by_each_checkpoint_and_between_the_epochs() -> None:
    with_it, without = flops(plan()), flops(plan(NOTHING_HELD_OUT))
    assert with_it["cache build"] == pytest.approx(without["cache build"] * 10 / 9, rel=1e-3)
    assert without["distill"] < with_it["distill"] < 1.1 * without["distill"]


def test_a_student_is_its_steps_and_one_pass_for_its_losses() -> None:
    found = plan(NOTHING_HELD_OUT, "distill.seeds=[0,1]")
    body, head = found.student.body_flops(2e9, 512), found.student.head_flops(1e9)
    stages = {stage.name: stage for stage in found.stages()}
    assert stages["distill"].flops == pytest.approx(2 * (5 * 2 * 3 * (body + head) + body + head))
    assert stages["distill"].size == f"2 × 5 stages × {3_906_250 * 2 // 8 + 1:,} steps"
    assert stages["losses"].flops == pytest.approx(body + head)


def test_given_checkpoints_are_not_fine_tuned() -> None:
    found = plan("teacher.checkpoints=['a', 'b']")
    assert (found.checkpoints, "sft teacher" in flops(found), "sft teacher" in memory(found)) == (2, False, False)


def test_what_is_recomputed_and_what_is_not_trained_change_the_operations() -> None:
    whole, lean, lora = (
        flops(plan(NOTHING_HELD_OUT, *more))["distill"]
        for more in ((), ("distill.gradient_checkpointing=true",), ("student.lora={r=8}",))
    )
    body = plan().student.body_flops(2e9, 512)
    assert lean - whole == pytest.approx(5 * 2 * body)
    assert whole - lora == pytest.approx(5 * 2 * body)


def test_memory_counts_weights_gradients_and_both_moments_by_the_number_type() -> None:
    found = memory(plan())
    assert found["cache build"].weights == 2 * 8e9  # bfloat16
    student = found["distill"]
    assert (student.weights, student.gradients, student.adam) == (4 * 3e9, 4 * 3e9, 8 * 3e9)
    assert found["sft teacher"].adam == 2 * 4 * 8e9, "trained weights and moments are float32, whatever is read"
    half = memory(plan("student.dtype='bfloat16'"))["distill"]
    assert half == student, "the plan's student computes in bfloat16 by bf16 = true"
    assert memory(plan("teacher.tensor_parallel=4"))["cache build"].weights == 2 * 8e9 / 4
    quantised = plan("teacher.quantization='4bit'", "teacher.device_map='auto'")
    assert memory(quantised)["cache build"].weights == 4e9
    assert memory(plan("student.lora={r=8}"))["distill"].adam == 0
    lean = memory(plan("distill.gradient_checkpointing=true"))["distill"]
    assert lean.activations < student.activations / 5
    assert student.total == student.weights * 4 + student.activations + student.logits


@pytest.mark.parametrize("micro_batch", [1, 8, 32])
def test_the_padding_of_a_tokenised_corpus_is_that_of_its_batches_in_training_order(micro_batch: int) -> None:
    lengths = np.random.default_rng(1).integers(20, 500, 6_400)
    corpus: Any = SimpleNamespace(
        token_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        position_offsets=np.concatenate([[0], np.cumsum(lengths // 2)]),
        n_positions=int((lengths // 2).sum()),
        sample_ids=SimpleNamespace(offsets=np.array([0, 10])),
    )
    stream = RowStream(corpus.position_offsets, 4096, 256, 0)
    batches = lengths[list(stream.rows(0, 6_400))].reshape(-1, micro_batch)
    size = tokenised_size(corpus, micro_batch)
    assert size.padding == pytest.approx(micro_batch * batches.max(1).sum() / lengths.sum(), rel=0.01)
    assert size.attention_length == pytest.approx((lengths**2).sum() / lengths.sum())


# GPU hours.


def test_gpu_hours_are_operations_by_the_rate_that_is_given() -> None:
    found = plan()
    for stage in found.stages():
        expected = stage.flops / 4e14 / 3600 if stage.kind else None
        assert gpu_hours(stage, given_rates(4e14)) == expected
    assert [gpu_hours(stage, {}) for stage in found.stages()] == [None] * 7


def note(run: Path, name: str, positions: int, seconds: float) -> None:
    cost = BuildCost(checkpoint="a", cache="", part=(0, 1), device="a CPU", positions=positions, seconds=seconds)
    (run / "build" / "a").mkdir(parents=True, exist_ok=True)
    write_json(run / "build" / "a" / f"{name}.json", cost.model_dump())


def training(folder: Path, sequences_per_second: float, sequences_per_step: int) -> None:
    folder.mkdir(parents=True)
    rate = {"train_runtime": 5.0, "train_samples_per_second": sequences_per_second}
    (folder / "log.json").write_text(json.dumps([{"loss": 1.0, "step": 1}, rate]))
    (folder / "inputs.json").write_text(json.dumps({"training": {"sequences_per_step": sequences_per_step}}))


def test_a_run_that_has_begun_gives_the_rates_that_it_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = plan(f"run.output_dir='{run}'", NOTHING_HELD_OUT)
    assert measured_rates(found) == {}
    note(run, "x", 600, 1.0)
    note(run, "y", 200, 1.0)
    training(run / "student", 1.0, 8)
    rates = measured_rates(found)
    assert rates["forward"].flops_per_second == pytest.approx(found.build_flops() / 5e9 * 400)
    assert "a CPU" in rates["forward"].source
    per_sequence = 3 * (found.student.body_flops(512, 512) + found.student.head_flops(256))
    assert rates["training"].flops_per_second == pytest.approx(per_sequence)


def test_what_two_processes_trained_together_is_half_for_each(tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = plan(f"run.output_dir='{run}'", NOTHING_HELD_OUT)
    training(run / "distill" / "td" / "seed-0", 4.0, 16)
    training(run / "student", 100.0, 8)
    per_sequence = 3 * (found.student.body_flops(512, 512) + found.student.head_flops(256))
    assert measured_rates(found)["training"].flops_per_second == pytest.approx(2 * per_sequence)


@pytest.mark.parametrize("text", ["", "[]", "{", '[{"train_samples_per_second": "fast"}]', '{"a": 1}'])
def test_a_log_that_cannot_be_read_gives_no_rate(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run" / "student"
    training(folder, 1.0, 8)
    (folder / "log.json").write_text(text)
    assert measured_rates(plan(f"run.output_dir='{tmp_path / 'run'}'")) == {}

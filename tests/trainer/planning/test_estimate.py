"""Files and bytes predicted of a cache, against caches that are built; and what a plan's arithmetic promises."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import PreTrainedTokenizerBase

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.format.size import ArraySize, CacheSize, recommended_layout
from cache_builder.format.zarr_shards import ArraySpec, encode_shard
from cache_builder.storage.local import LocalStore
from tests.support.caches import make_teaching
from tools.synthetic_cache import Synthetic, write_synthetic_cache
from trainer.loop.order import RowStream, epoch_order
from trainer.planning.command import make_plan, read_experiment
from trainer.planning.estimate import Estimate, Planner, estimate
from trainer.planning.hardware import Hardware
from trainer.planning.measured import load_measured
from trainer.planning.model_size import model_size
from trainer.planning.workload import tokenised_size

SIZES = {"teacher": "8B", "student": "3B", "positions": "1e9", "checkpoints": 5}


def size_of(cache: Cache) -> CacheSize:
    """What would have been predicted of a cache that is there."""
    manifest = cache.manifest
    rows = cache.probe_rows
    ids = [cache.corpus.sample_ids.read(row) for row in range(len(cache.corpus))]
    return CacheSize(
        sequences=manifest.corpus.sequences,
        tokens=manifest.corpus.tokens,
        positions=manifest.corpus.positions,
        checkpoints=len(cache.checkpoints),
        top_k=manifest.targets.top_k,
        tail_samples=manifest.targets.tail_samples,
        shard_positions=manifest.layout.shard_positions,
        chunk_positions=manifest.layout.chunk_positions,
        probe_sequences=manifest.probe.sequences,
        probe_positions=int(np.diff(cache.corpus.position_offsets)[rows].sum()),
        probe_top_k=manifest.probe.top_k,
        sample_id_bytes=sum(map(len, ids)),
    )


def files_of(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts]


def plan(**options: Any) -> Estimate:
    given = {**SIZES, **options}
    return make_plan(read_experiment(None, given.pop("overrides", ()), given), given, from_config=False).estimate


def seconds(found: Estimate) -> dict[str, float]:
    return {stage.name: stage.seconds for stage in [*found.stages, *found.online]}


# The cache's files.


def test_a_built_cache_has_the_files_that_were_predicted_and_no_more_bytes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make_model: Any
) -> None:
    teaching = make_teaching(tmp_path / "teaching", tokenizer, make_model, sequences=40)
    assert teaching.build(tmp_path / "cache")
    found, size = files_of(tmp_path / "cache"), size_of(open_cache(str(tmp_path / "cache")))
    assert size.records.shards > 1
    assert len(found) == size.files
    assert sum(found) <= size.max_bytes


@pytest.mark.parametrize("shard_positions", [4096, 65_536])
def test_a_larger_cache_is_within_its_bound_and_not_far_below(tmp_path: Path, shard_positions: int) -> None:
    synthetic = Synthetic(1500, shard_positions=shard_positions, checkpoints=("a", "b"))
    write_synthetic_cache(LocalStore(tmp_path), synthetic)
    cache = open_cache(str(tmp_path))
    found, size = files_of(tmp_path), size_of(cache)
    assert len(found) == size.files
    assert sum(found) <= size.max_bytes <= 2 * sum(found)
    assert cache.checkpoint_bytes("a") <= sum(array.max_bytes for array in size.checkpoint)


@pytest.mark.parametrize(
    ("entries", "planes", "shard", "chunk"),
    [(9_000, 116, 65_536, 4_096), (4_096, 3, 65_536, 4_096), (1, 40, 65_536, 4_096), (5_000, 3, 1_024, 64)],
)
def test_bytes_that_do_not_compress_are_within_the_bound_of_their_array(
    entries: int, planes: int, shard: int, chunk: int
) -> None:
    spec = ArraySpec((planes, entries), "uint8", shard, chunk, 1)
    noise = np.random.default_rng(0).integers(0, 256, spec.shape, np.uint8)
    stored = sum(len(encode_shard(spec, noise[:, slice(*spec.span(shard))]).data) for shard in range(spec.n_shards))
    size = ArraySize("noise", planes, entries, shard, chunk, planes)
    assert size.raw_bytes < stored <= size.max_shard_bytes
    slack = 80 * size.chunks + size.raw_bytes // 256 + 16 * planes
    assert stored > size.max_shard_bytes - slack  # the index and the checksums are counted, not hidden in the slack


def test_the_ledgers_have_the_bytes_that_were_predicted(tmp_path: Path) -> None:
    synthetic = Synthetic(400, shard_positions=256, chunk_positions=32)
    write_synthetic_cache(LocalStore(tmp_path), synthetic)
    written = sum(
        (tmp_path / group / "zarr.json").stat().st_size for group in ("corpus", "probe", "checkpoints/step-1")
    )
    assert size_of(open_cache(str(tmp_path))).ledger_bytes == pytest.approx(written, rel=0.05)


def test_the_recommended_layout_grows_with_the_corpus_and_is_one_that_a_config_takes() -> None:
    layouts = [recommended_layout(10**power) for power in (6, 9, 10, 11, 12, 14)]
    assert layouts[0] == layouts[1] == (65_536, 4_096)
    assert layouts == sorted(layouts) and layouts[-1] == (2**22, 2**16)
    assert all(shard % chunk == 0 for shard, chunk in layouts)


# The arithmetic.


def test_twice_the_gpus_take_half_of_the_computing_and_cost_the_same() -> None:
    one, two = plan(bandwidth="1e15"), plan(bandwidth="1e15", gpus="2")
    hardware = Hardware()
    for name, found in (("cache build", one.stages[0]), ("students", one.stages[2])):
        other = next(stage for stage in two.stages if stage.name == name)
        assert other.beside["compute"] == pytest.approx(found.beside["compute"] / 2)
        assert other.gpu_hours == pytest.approx(found.gpu_hours, rel=0.05)
    assert two.money(two.stages, hardware) == pytest.approx(one.money(one.stages, hardware), rel=0.05)


def test_a_cache_pays_as_soon_as_the_teacher_would_run_more_often_than_there_are_checkpoints() -> None:
    """One epoch per stage runs the teacher as often as a build does, so that only what a build does besides differs."""

    def difference(methods: list[str], epochs: int) -> float:
        overrides = (f"distill.methods={methods}", f"distill.epochs_per_stage={epochs}", "data.validation_fraction=0.0")
        found = plan(overrides=overrides, bandwidth="1e15")
        return sum(stage.seconds for stage in found.online) - sum(stage.seconds for stage in found.stages)

    once = difference(["td"], 1)
    passes = seconds(plan(overrides=("data.validation_fraction=0.0",), bandwidth="1e15"))["cache build"]
    assert -0.03 * passes < once < 0
    assert difference(["td"], 2) == pytest.approx(passes + 2 * once, rel=0.05)
    assert difference(["td", "cd"], 1) == pytest.approx(passes + 2 * once, rel=0.05)


def test_students_without_a_teacher_read_nothing_and_cost_the_same_either_way() -> None:
    found = plan(overrides=("distill.methods=['sft']",), bandwidth="1")
    assert [stage.name for stage in found.stages][-1] == "students of sft"
    assert found.stages[-1].seconds == pytest.approx(found.online[-1].seconds)


def test_a_slow_store_is_named_as_the_bottleneck_of_building_and_of_training() -> None:
    found = {stage.name: stage for stage in plan(bandwidth="1e3").stages}
    assert found["cache build"].bottleneck == "write bandwidth"
    assert found["students"].bottleneck == "read bandwidth"
    fast = plan(gpu_flops="1e22", bandwidth="1e15", gpus="4").stages[0]
    assert fast.bottleneck == "encoding"
    assert fast.beside["encoding"] == pytest.approx(5 * 1e9 / (4 * load_measured()["write_rate"]))


def test_many_readers_each_meet_a_part_of_the_chunks_and_few_meet_all() -> None:
    one = plan(gpus="1", gpus_per_node="1").stages[-1].beside["read bandwidth"]
    two = plan(gpus="2", gpus_per_node="1").stages[-1].beside["read bandwidth"]
    many = plan(gpus="1000", gpus_per_node="1").stages[-1].beside["read bandwidth"]
    rows_of_a_chunk = 1 + 4096 * 3_906_250 / 1e9
    assert two == pytest.approx(2 * one, rel=1e-4)
    assert many == pytest.approx(rows_of_a_chunk * one, rel=0.02)


@pytest.mark.parametrize("processes", [2, 8, 32])
def test_the_share_of_chunks_that_a_process_meets_is_that_of_the_real_order_and_sampler(
    processes: int,
) -> None:
    lengths = np.random.default_rng(0).integers(50, 300, 20_000)
    offsets, chunk = np.concatenate([[0], np.cumsum(lengths)]), 4096
    order = [int(row) for row in epoch_order(offsets, chunk, 256, seed=0, epoch=0)]
    batches = BatchSampler(SequentialSampler(order), 8, drop_last=False)
    met = []
    for process in range(processes):
        rows = np.array([order[at] for batch in BatchSamplerShard(batches, processes, process) for at in batch])
        chunks = [np.arange(offsets[row] // chunk, (offsets[row + 1] - 1) // chunk + 1) for row in rows]
        met.append(len(np.unique(np.concatenate(chunks))) / -(-int(offsets[-1]) // chunk))
    experiment = read_experiment(None, ("cache.shard_positions=4096",), SIZES)
    options = {**SIZES, "positions": str(offsets[-1]), "share": "1", "length": str(lengths.mean())}
    found = make_plan(experiment, options)
    planner = Planner(found.workload, found.teacher, found.student, found.hardware, found.measured, 0.0)
    assert np.mean(met) == pytest.approx(planner.chunks_met(processes), rel=0.05)


def test_every_checkpoint_and_the_probe_pass_over_the_corpus() -> None:
    """The anchor fixes the probe's ids in a pass of its own; then each checkpoint runs over all, and over the probe."""
    options = ("cache.probe_sequences=1000", "data.validation_fraction=0.0", "cache.shard_positions=1000000000")
    overrides = (*options, "cache.chunk_positions=1000000000")
    flops = {n: plan(checkpoints=n, positions="1e6", overrides=overrides).stages[0].flops for n in (1, 3)}
    probed = 1000 / 3906
    assert flops[3] / flops[1] == pytest.approx((3 * (1 + probed) + probed) / (1 + 2 * probed), rel=1e-3)
    cut = plan(checkpoints=1, positions="1e6", overrides=(*options[:2], "cache.shard_positions=4096")).stages[0].flops
    assert cut / flops[1] == pytest.approx((1 + 244 / 3906 + 2 * probed) / (1 + 2 * probed), rel=1e-3)


def test_what_is_held_out_is_run_by_each_checkpoint_and_between_the_epochs() -> None:
    with_it, without = plan(), plan(overrides=("data.validation_fraction=0.0",))
    assert with_it.stages[0].flops == pytest.approx(without.stages[0].flops * 10 / 9, rel=1e-3)
    assert without.stages[2].flops < with_it.stages[2].flops < 1.1 * without.stages[2].flops


def test_the_cache_is_its_records_and_what_is_stored_beside_them() -> None:
    found = make_plan(read_experiment(None, (), SIZES), dict(SIZES))
    size, cache = found.workload.cache, found.estimate
    beside = 8 * size.sequences + size.probe_positions * (2 * 256 + 4)
    assert cache.checkpoint_bytes == pytest.approx(1e9 * 75.354 + beside)
    corpus = 5 * size.tokens + 2 * 8 * (size.sequences + 1) + 24 * size.sequences + 8 + 8 * 512
    assert cache.cache_bytes == pytest.approx(5 * cache.checkpoint_bytes + corpus + 4 * 256 * size.probe_positions)


def test_loader_workers_read_while_the_device_computes() -> None:
    waiting, ahead = plan(), plan(loader_workers="4")
    assert waiting.stages[-1].after["decoding"] > 0 and not ahead.stages[-1].after
    assert ahead.stages[-1].seconds < waiting.stages[-1].seconds


def test_memory_counts_weights_gradients_and_both_moments_by_the_number_type() -> None:
    by_name = {memory.name: memory.parts for memory in plan().memory}
    assert by_name["cache build"]["weights"] == 2 * 8e9  # bfloat16
    student = by_name["student"]
    assert (student["weights"], student["gradients"], student["Adam"]) == (4 * 3e9, 4 * 3e9, 8 * 3e9)
    assert by_name["student, online"]["teacher"] == 2 * 8e9
    tuned = make_plan(read_experiment(None, (), SIZES), dict(SIZES)).estimate.memory[0]
    assert (tuned.name, tuned.parts["Adam"]) == ("sft teacher", 2 * 2 * 8e9)
    half = plan(overrides=("student.dtype='bfloat16'",)).memory[1].parts
    assert half["Adam"] == student["Adam"] / 2
    shared = plan(overrides=("teacher.tensor_parallel=4",), gpus="8", bandwidth="1e15")
    assert shared.memory[0].parts["weights"] == 2 * 8e9 / 4
    assert shared.stages[0].beside["encoding"] == pytest.approx(5e9 / (2 * load_measured()["write_rate"]))
    assert (
        plan(overrides=("teacher.quantization='4bit'", "teacher.device_map='auto'")).memory[0].parts["weights"] == 4e9
    )
    lora = make_plan(read_experiment(None, ("student.lora={r=8}",), SIZES), dict(SIZES))
    assert (lora.estimate.memory[2].parts["Adam"], lora.workload.distill.passes) == (0, 2)
    lean = plan(overrides=("distill.gradient_checkpointing=true",))
    assert lean.memory[1].parts["activations"] < student["activations"] / 5
    assert seconds(lean)["students"] > 1.2 * seconds(plan())["students"]


@pytest.mark.parametrize("micro_batch", [1, 8, 32])
def test_the_padding_of_a_tokenised_corpus_is_that_of_its_batches_in_training_order(micro_batch: int) -> None:
    lengths = np.random.default_rng(1).integers(20, 500, 6_400)
    corpus = SimpleNamespace(
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


def test_a_student_is_its_steps_and_one_pass_for_its_losses() -> None:
    """A head that was measured cheaper than a stock one still has its operations; what is dearer counts as measured."""
    found = make_plan(read_experiment(None, ("data.validation_fraction=0.0",), SIZES), dict(SIZES), from_config=False)
    for factor in (0.5, 1.5):
        constants = dict(found.measured.constants)
        constants["distil_head_factor"] = replace(constants["distil_head_factor"], value=factor)
        measured = replace(found.measured, constants=constants)
        student = estimate(found.workload, found.teacher, found.student, Hardware(), measured).stages[-1]
        body = found.student.body_flops(2e9, 512)
        head = found.student.head_flops(1e9)
        steps = 5 * 2 * 3 * (body + max(1.0, factor) * head)
        assert student.flops == pytest.approx(steps + body + measured["capture_head_factor"] * head)


def test_padding_is_computed_and_costs_time() -> None:
    found = make_plan(read_experiment(None, (), SIZES), dict(SIZES))
    padded = replace(found.workload, corpus=replace(found.workload.corpus, padding=1.5))
    sizes = (model_size("8B"), model_size("3B"), Hardware(), load_measured())
    assert seconds(estimate(padded, *sizes))["students"] > 1.4 * seconds(estimate(found.workload, *sizes))["students"]


def test_fewer_slots_are_fewer_bytes_and_measured_settings_are_quoted() -> None:
    measured = load_measured()
    known, how = measured.bytes_per_position(16, 1.0, 8, 128)
    assert (known, how) == (75.354, "measured with these settings")
    sizes = [measured.bytes_per_position(k, 1.0, 6, 128)[0] for k in (4, 8, 16, 32)]
    assert sizes == sorted(sizes) and sizes[0] < 0.5 * sizes[-1]
    for row in measured.targets:
        without = replace(measured, targets=tuple(other for other in measured.targets if other != row))
        if row.top_p == 1.0:
            guess, _ = without.bytes_per_position(row.top_k, 1.0, row.tail_samples, row.logp_steps_per_nat)
            assert guess == pytest.approx(row.bytes_per_position, rel=0.06)


def test_no_plan_expects_more_bytes_than_there_are_before_compression() -> None:
    found = make_plan(read_experiment(None, ("cache.top_k=1", "cache.tail_samples=0"), SIZES), dict(SIZES))
    assert found.estimate.checkpoint_bytes <= 1.2 * found.workload.cache.records.raw_bytes
    teacher, student = model_size("8B"), model_size("3B")
    assert estimate(found.workload, teacher, student, Hardware(), load_measured()).cache_bytes > 0

"""Training: accumulated = whole, the right teacher in every batch, and no silent NaN."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_builder.cache.reader import Cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheMismatchError, ModelError, TrainingError
from tests.support.interruption import stops_at
from tests.support.paths import ROOT
from tests.support.students import assert_same_bits, weights
from tests.support.toys import without_dropout
from trainer.config import Experiment
from trainer.loop.dataset import CachedRows
from trainer.stages import distill as distilling
from trainer.stages.distill import DistillTrainer, distill


def assert_close_weights(folder: Path, expected: Path) -> None:
    """Compare two students' last weights to what rounding may change in so many steps."""
    ours = weights(folder)
    for name, values in weights(expected).items():
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=2e-5, err_msg=name)


def test_length_grouped_batches_are_resumed_and_accumulated_like_others(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped, runs = ("distill.length_grouped=true", "distill.save_steps=6"), []
    getitems = CachedRows.__getitems__
    for micro in (8, 2):
        seen: list[int] = []

        def recording(self: CachedRows, items: Any, seen: list[int] = seen) -> Any:
            seen.extend(row for _, row in items)
            return getitems(self, items)

        sizes = (
            f"distill.per_device_train_batch_size={micro}",
            f"distill.gradient_accumulation_steps={8 // micro}",
        )
        experiment, cache, prepared = toy(*grouped, *sizes)
        with monkeypatch.context() as patch:
            patch.setattr(CachedRows, "__getitems__", recording)
            runs.append((distill(experiment, "td", 0, cache, prepared), seen))
    assert runs[0][1] == runs[1][1]
    lengths = np.diff(cache.corpus.token_offsets)[runs[0][1]].reshape(-1, 8)
    assert np.ptp(lengths, axis=1).mean() < 0.5 * np.ptp(lengths.T, axis=1).mean()
    stopped = toy(*grouped)
    with stops_at(20):
        distill(stopped[0], "td", 0, *stopped[1:])
    assert_same_bits(runs[0][0], distill(stopped[0], "td", 0, *stopped[1:]))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # its name in every 5.x
def test_gradient_checkpointing_changes_memory_and_not_the_weights(toy: Any, trained: Any) -> None:
    experiment, cache, prepared = toy("distill.gradient_checkpointing=true")
    without_dropout(experiment)
    assert_close_weights(distill(experiment, "td", 0, cache, prepared), trained("td", dropout=False))


def test_packed_batches_train_to_the_weights_of_padded_ones(toy: Any, trained: Any) -> None:
    experiment, cache, prepared = toy("distill.packing=true", "distill.logging_steps=1")
    without_dropout(experiment)
    packed, padded = distill(experiment, "td+aw", 0, cache, prepared), trained("td+aw", dropout=False)
    assert_close_weights(packed, padded)
    losses = [
        [entry["loss"] for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]
        for folder in (packed, padded)
    ]
    np.testing.assert_allclose(*losses, rtol=0, atol=2e-5)


def test_packing_a_student_that_would_mix_sequences_is_refused_by_name(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, cache, prepared = toy("distill.packing=true")
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(ModelError, match=r"mixes packed sequences: .* set packing = false"):
        distill(experiment, "td", 0, cache, prepared)


@pytest.mark.slow
def test_compiled_layers_train_to_the_weights_of_plain_ones(
    toy: Any, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss stays out of torch.compile: nothing of it is traced, so nothing of it breaks a graph."""
    experiment, cache, prepared = toy("distill.torch_compile_backend='aot_eager'")
    without_dropout(experiment)
    assert_close_weights(distill(experiment, "td", 0, cache, prepared), trained("td", dropout=False))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert "raph break" not in caplog.text


def test_bf16_by_its_name_computes_in_bfloat16_and_keeps_the_weights_in_float32(toy: Any, trained: Any) -> None:
    experiment, cache, prepared = toy("distill.bf16=true")
    plain, mixed = weights(trained("td")), weights(distill(experiment, "td", 0, cache, prepared))
    assert all(values.dtype == np.float32 for values in mixed.values())
    distance = max(np.abs(plain[name] - values).max() for name, values in mixed.items())
    assert 1e-5 < distance < 0.2


def test_neftunes_noise_reaches_training_and_not_the_held_out_loss(toy: Any) -> None:
    runs = [toy(*noise, "distill.learning_rate=1e-9") for noise in ((), ("distill.neftune_noise_alpha=20.0",))]
    logs = []
    for experiment, cache, prepared in runs:
        without_dropout(experiment)
        logs.append(json.loads((distill(experiment, "td", 0, cache, prepared) / "log.json").read_text()))
    plain, noisy = ([entry["loss"] for entry in log if "loss" in entry] for log in logs)
    assert all(abs(one - other) > 1e-3 for one, other in zip(plain, noisy, strict=True))
    held_out = [[entry["eval_loss"] for entry in log if "eval_loss" in entry] for log in logs]
    np.testing.assert_allclose(*held_out, rtol=0, atol=1e-4)


def test_the_log_goes_to_tensorboard_by_its_name(toy: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experiment, cache, prepared = toy("distill.report_to=['tensorboard']", "distill.logging_steps=5")
    folder = distill(experiment, "td+aw", 0, cache, prepared)
    (events,) = folder.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events)).Reload()
    logged = [entry["kl"] for entry in json.loads((folder / "log.json").read_text()) if "kl" in entry]
    assert [event.value for event in accumulator.Scalars("train/kl")] == pytest.approx(logged)
    assert "eval/loss" in accumulator.Tags()["scalars"]
    assert "train/aw_mean" in accumulator.Tags()["scalars"]


def test_accumulated_micro_batches_give_the_whole_batchs_gradient(toy: Any, trained: Any) -> None:
    """Pitfall 4; sequences of different lengths, so that dividing per micro-batch would show."""
    divided = "distill.per_device_train_batch_size=2", "distill.gradient_accumulation_steps=4"
    experiment, cache, prepared = toy(*divided)
    without_dropout(experiment)
    assert_close_weights(distill(experiment, "td+aw", 0, cache, prepared), trained("td+aw", dropout=False))


def test_loader_workers_change_nothing_and_every_batch_has_its_stages_teacher(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 15: a prefetched batch must not carry the teacher of the stage before."""
    folders = []
    compute_loss = DistillTrainer.compute_loss
    checked = []

    def checking(self: DistillTrainer, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        stage = self.state.global_step // self.machine.steps_per_stage
        expected = self.cache.read(self.cache.checkpoints[stage], inputs["rows_B"].tolist())
        np.testing.assert_array_equal(inputs["targets"].logp.numpy(), expected.logp)
        checked.append(stage)
        return compute_loss(self, model, inputs, *args, **options)

    monkeypatch.setattr(DistillTrainer, "compute_loss", checking)
    for workers in (0, 2):
        experiment, cache, prepared = toy(f"distill.dataloader_num_workers={workers}")
        folders.append(distill(experiment, "cd", 0, cache, prepared))
    assert_same_bits(*folders)
    assert set(checked) == {0, 1, 2}


def test_rows_reach_a_worker_that_is_not_forked(toy: Any) -> None:
    """macOS and Python 3.14 start workers anew, with what can be pickled; a function within a function cannot."""
    _, cache, _ = toy()
    weights = {
        name: np.random.default_rng(seed).random(len(cache.corpus)) for seed, name in enumerate(cache.checkpoints)
    }
    rows = CachedRows(cache, 0, lambda name: weights[name])
    there = pickle.loads(pickle.dumps(rows))
    for name in cache.checkpoints:
        here, sent = (each.__getitems__([(name, row) for row in (5, 2, 9)]) for each in (rows, there))
        torch.testing.assert_close(vars(sent.pop("targets")), vars(here.pop("targets")), rtol=0, atol=0)
        torch.testing.assert_close(sent, here, rtol=0, atol=0)


@pytest.mark.slow
def test_workers_that_are_not_forked_change_nothing(toy: Any) -> None:
    spawned = "distill.dataloader_num_workers=1", "distill.dataloader_multiprocessing_context='spawn'"
    runs = [toy("distill.epochs_per_stage=1", *settings) for settings in ((), spawned)]
    assert_same_bits(*(distill(experiment, "td+aw", 0, cache, prepared) for experiment, cache, prepared in runs))


def test_the_optimizer_starts_afresh_and_the_learning_rate_again_at_each_stage(toy: Any) -> None:
    experiment, cache, prepared = toy("distill.logging_steps=1")
    folder = distill(experiment, "cd", 0, cache, prepared)
    log = json.loads((folder / "log.json").read_text())
    steps = json.loads((folder / "plan.json").read_text())["steps_per_stage"]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert len(rates) == 3 * steps
    np.testing.assert_allclose(rates[:steps], rates[steps : 2 * steps])
    np.testing.assert_allclose(rates[:steps], rates[2 * steps :])
    assert max(rates) == pytest.approx(3e-3)


def test_a_non_finite_loss_stops_training_and_names_the_examples(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cache, prepared = toy()
    getitems = CachedRows.__getitems__

    def poisoned(self: CachedRows, items: Any) -> Any:
        batch = getitems(self, items)
        batch["targets"].logp[0, 0] = torch.nan
        return batch

    monkeypatch.setattr(CachedRows, "__getitems__", poisoned)
    with pytest.raises(TrainingError, match="'color-"):
        distill(experiment, "td", 0, cache, prepared)


def test_a_stage_made_with_other_settings_is_refused_by_their_name(toy: Any) -> None:
    experiment, cache, prepared = toy()
    distill(experiment, "sft", 0, cache, prepared)
    changed = load_toy_like(experiment, "distill.learning_rate=1e-3")
    with pytest.raises(CacheMismatchError, match="learning_rate"):
        distill(changed, "sft", 0, cache, prepared)


def load_toy_like(experiment: Experiment, override: str) -> Experiment:
    values = experiment.model_dump()
    section, _, rest = override.partition(".")
    key, _, value = rest.partition("=")
    values[section][key] = json.loads(value)
    return Experiment.model_validate(values)


def test_another_corpus_than_the_caches_is_refused_by_name(toy: Any) -> None:
    experiment, cache, _ = toy()
    elsewhere = experiment.model_copy(
        update={
            "text": experiment.text.model_copy(update={"max_length": 63}),
            "run": experiment.run.model_copy(update={"output_dir": str(experiment.output_dir / "other")}),
        }
    )
    (elsewhere.output_dir).mkdir()
    (elsewhere.output_dir / "tokenizer").symlink_to((experiment.output_dir / "tokenizer").resolve())
    examples_cut = Prepared(elsewhere)
    examples_cut.train.fingerprint = "0" * 64
    with pytest.raises(CacheMismatchError, match="corpus"):
        distilling.check_cache(cache, examples_cut, elsewhere)


def test_the_schedule_of_the_learning_rate_takes_its_own_settings(toy: Any) -> None:
    shape = "distill.lr_scheduler_type='cosine_with_min_lr'", "distill.lr_scheduler_kwargs={min_lr_rate = 0.5}"
    experiment, cache, prepared = toy(*shape, "distill.warmup_ratio=0", "distill.logging_steps=1")
    log = json.loads((distill(experiment, "td", 0, cache, prepared) / "log.json").read_text())
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert min(rates) == pytest.approx(0.5 * experiment.distill.learning_rate, rel=0.05)


def test_a_schedule_without_the_settings_that_it_needs_is_refused_by_name(toy: Any) -> None:
    experiment, cache, prepared = toy("distill.lr_scheduler_type='warmup_stable_decay'")
    with pytest.raises(TrainingError, match=r"'warmup_stable_decay' does not go with .* = None: .*num_decay_steps"):
        distill(experiment, "td", 0, cache, prepared)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.support.toys import DROPOUT, load_toy, without_dropout
from cache_builder.data.prepare import Prepared
from cache_builder.cache.reader import open_cache
from trainer.stages.distill import distill
experiment = load_toy(Path({config!r}), *{overrides!r})
distill(experiment, "td+aw", 0, open_cache(experiment.cache_url), Prepared(experiment))
"""


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(toy: Any, trained: Any, built_toy: Path, tmp_path: Path) -> None:
    both, _, _ = toy()
    without_dropout(both)
    script = tmp_path / "two.py"
    overrides = [
        f"run.output_dir='{both.output_dir}'",
        f"student.model='{both.student.model}'",
        "distill.per_device_train_batch_size=4",
        "distill.use_cpu=true",
    ]
    config = str(built_toy / "experiment.toml")
    script.write_text(SCRIPT.format(root=str(ROOT), config=config, overrides=overrides))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close_weights(both.output_dir / "distill" / "td+aw" / "seed-0", trained("td+aw", dropout=False))


def test_a_temperature_warns_with_the_mass_that_the_support_keeps(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Pitfall 23."""
    experiment, cache, prepared = toy("distill.temperature=4.0")
    distill(experiment, "td", 0, cache, prepared)
    messages = capsys.readouterr().err
    assert "temperature = 4" in messages and "% of checkpoint-" in messages


def test_weights_that_have_lost_their_meaning_are_warned_of(
    toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, cache, prepared = toy()
    monkeypatch.setattr(Cache, "losses", lambda self, name: np.full(len(self.corpus), 1e-6))
    distill(experiment, "td+aw", 0, cache, prepared)
    assert "has become plain distillation" in capsys.readouterr().err


def test_deepspeed_is_refused_because_a_stage_cannot_clear_its_optimizer(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    experiment, cache, prepared = toy()
    with pytest.raises(TrainingError, match="DeepSpeed owns its optimizer"):
        distill(experiment, "td", 0, cache, prepared)

"""Steps with a live teacher are measured beside the same steps from the cache, and both compute the same loss."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_builder.cache.reader import Cache
from cache_builder.config import save_experiment
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, MissingError
from cache_builder.format.records import dequantise, quantise
from cache_builder.targets.divergences import forward_kl, reverse_kl, taid
from cache_builder.targets.outcomes import temper
from cache_builder.targets.sparse import Targets
from tools import live_teacher
from tools.dense_divergence import allowed_error, dense_divergence
from tools.live_replay import Stage, check, replay
from trainer.config import Experiment
from trainer.report.run.run_costs import Agreement, read_live
from trainer.stages.distill import distill

POSITIONS, VOCAB_SIZE, TOP_K, SAMPLES = 4000, 40, 6, 4
Toy = Callable[..., tuple[Experiment, Cache, Prepared]]


def random_log_probabilities(seed: int, sharpness: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits_MV = sharpness * torch.randn(POSITIONS, VOCAB_SIZE, generator=generator, dtype=torch.float64)
    return torch.log_softmax(logits_MV, dim=1)


def cached(logp_MV: torch.Tensor, steps_per_nat: int) -> Targets:
    """What a cache would give back of p."""
    logp_MK, ids_MK = logp_MV.topk(TOP_K)
    tail_MV = logp_MV.exp().scatter(1, ids_MK, 0.0)
    samples_MS = torch.multinomial(tail_MV, SAMPLES, replacement=True, generator=torch.Generator().manual_seed(2))
    rounded = dequantise(quantise(logp_MK.numpy(), steps_per_nat), steps_per_nat)
    entropy_M = -(logp_MV.exp() * logp_MV).sum(1)
    logp_MK = torch.from_numpy(rounded).double()
    return Targets(ids_MK, logp_MK, samples_MS, tail_MV.sum(1).log(), logp_MK[:, 0], entropy_M)


def sampled_forward_kl(targets: Targets, logq_MV: torch.Tensor) -> torch.Tensor:
    """The estimate that the loss uses, written down plainly."""
    support_M = (targets.logp.exp() * logq_MV.gather(1, targets.ids)).sum(1)
    tail_M = targets.log_tail.exp() * logq_MV.gather(1, targets.samples).mean(1)
    return -support_M - tail_M - targets.entropy


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "taid"])
def test_the_dense_divergence_is_that_of_outcomes_which_are_the_whole_vocabulary(
    divergence: str, temperature: float
) -> None:
    logp_MV, logq_MV = random_log_probabilities(0, 2.0), random_log_probabilities(1, 1.0)
    p_MV, q_MV = temper(logp_MV, temperature), temper(logq_MV, temperature)
    expected = {
        "forward_kl": lambda: forward_kl(p_MV, q_MV),
        "reverse_kl": lambda: reverse_kl(p_MV, q_MV),
        "taid": lambda: taid(p_MV, q_MV, 0.3),
    }[divergence]()[0]
    taid_t = 0.3 if divergence == "taid" else None
    found = dense_divergence(logp_MV, logq_MV, divergence, taid_t, temperature)
    torch.testing.assert_close(found, expected * temperature**2)


def test_the_samples_error_has_the_spread_that_is_allowed() -> None:
    logp_MV, logq_MV = random_log_probabilities(0, 1.0), random_log_probabilities(1, 2.0)
    targets = cached(logp_MV, 8_000)
    allowed = allowed_error(logp_MV, logq_MV, targets, 8_000, "forward_kl")
    error_M = sampled_forward_kl(targets, logq_MV) - dense_divergence(logp_MV, logq_MV, "forward_kl")
    standard_M = error_M / allowed.variance_M.sqrt()
    assert not allowed.one_sided
    assert abs(float(standard_M.mean())) < 4 / POSITIONS**0.5
    assert float(standard_M.std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "taid"])
def test_coarse_codes_stay_within_their_bound_and_use_a_fair_part_of_it(divergence: str) -> None:
    logp_MV, logq_MV = random_log_probabilities(0, 1.5), random_log_probabilities(1, 2.0)
    steps_per_nat = 4
    exact, coarse = cached(logp_MV, 8_000), cached(logp_MV, steps_per_nat)
    taid_t = 0.5 if divergence == "taid" else None
    no_samples = [replace(targets, samples=targets.samples[:, :0]) for targets in (exact, coarse)]
    bound_M = allowed_error(logp_MV, logq_MV, no_samples[1], steps_per_nat, divergence, taid_t).codes_M

    def on_outcomes(targets: Targets) -> torch.Tensor:
        logq_MK = logq_MV.gather(1, targets.ids)
        q_tail_M = logq_MV.exp().scatter(1, targets.ids, 0.0).sum(1).log()
        logp_MO = torch.log_softmax(torch.cat([targets.logp, targets.log_tail[:, None]], 1), 1)
        logq_MO = torch.cat([logq_MK, q_tail_M[:, None]], 1)
        if divergence == "taid":
            return taid(logp_MO, logq_MO, 0.5)[0]
        return (forward_kl if divergence == "forward_kl" else reverse_kl)(logp_MO, logq_MO)[0]

    change_M = (on_outcomes(no_samples[1]) - on_outcomes(no_samples[0])).abs()
    assert (change_M <= bound_M).all()
    assert (change_M / bound_M).max() > 0.03
    dense_M = dense_divergence(logp_MV, logq_MV, divergence, taid_t)
    assert (on_outcomes(no_samples[1]) <= dense_M + bound_M).all()


def test_an_agreement_is_judged_on_both_sides_unless_the_cache_is_a_lower_bound() -> None:
    def agreement(difference: float, one_sided: bool) -> Agreement:
        return Agreement(
            loss_cache=1 + difference, loss_live=1, sampling_error=0.01, codes=0.005, arithmetic=0.005,
            one_sided=one_sided, sequences=1,
        )  # fmt: skip

    assert agreement(0.049, False).holds and not agreement(0.051, False).holds
    assert not agreement(-0.051, False).holds and agreement(-0.5, True).holds and not agreement(0.051, True).holds


@pytest.fixture
def trained(toy: Toy) -> Callable[..., Path]:
    """Train one method of the toy and return the run's folder."""

    def train(method: str) -> Path:
        experiment, cache, prepared = toy(f'distill.methods=["{method}"]')
        distill(experiment, method, 0, cache, prepared)
        save_experiment(experiment, experiment.output_dir / "config.toml")
        return experiment.output_dir

    return train


@pytest.mark.parametrize("method", ["scd+aw", "taid"])
def test_both_ways_compute_the_same_loss_and_another_checkpoint_does_not(
    trained: Callable[..., Path], method: str
) -> None:
    run = trained(method)
    stage = Stage(run, method, 0)
    found = Agreement(**check(stage, 4)["agreement"])
    assert found.holds and found.loss_live > 0
    assert found.one_sided == (method == "taid")
    others = [name for name in stage.cache.checkpoints if name != stage.checkpoint]
    shutil.copytree(run / "teacher", run / "another", symlinks=False)
    (run / "teacher").unlink()
    (run / "another").rename(run / "teacher")
    shutil.rmtree(run / "teacher" / stage.checkpoint)
    shutil.copytree(run / "teacher" / others[0], run / "teacher" / stage.checkpoint)
    (run / "teacher" / "stage.json").unlink()  # whose digests refuse the exchange
    wrong = Agreement(**check(stage, 4)["agreement"])
    if method == "scd+aw":
        assert not wrong.holds
    assert abs(wrong.difference) > 3 * abs(found.difference)


def test_steps_are_the_same_rows_and_the_first_losses_agree(trained: Callable[..., Path], tmp_path: Path) -> None:
    stage = Stage(trained("td"), "td", 0)
    losses, rows = {}, {}
    for live in (False, True):
        trainer = stage.trainer(tmp_path / str(live), stage.student(), live=live)
        trainer.machine.teacher = stage.checkpoint
        rows[live] = list(trainer.sampler)[:16]
        if live:
            trainer.live = stage.teacher()
        inputs = trainer._prepare_inputs(trainer.rows.__getitems__(rows[live][:8]))
        trainer.model.eval()
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(8))
        losses[live] = loss.item()
        assert ("targets" in inputs) != live
    assert rows[False] == rows[True]
    assert losses[True] == pytest.approx(losses[False], rel=0.01)
    measured = replay(stage, 4, live=True)
    assert len(measured["seconds"]) >= 1 and min(measured["seconds"]) > 0 and measured["peak_memory_mib"] > 0


def test_a_method_without_a_teacher_or_a_plan_is_refused(toy: Toy) -> None:
    experiment, _, _ = toy()
    save_experiment(experiment, experiment.output_dir / "config.toml")
    with pytest.raises(ConfigError, match="'sft' has no teacher"):
        Stage(experiment.output_dir, "sft", 0)
    with pytest.raises(MissingError, match="td/seed-0: the method's plan is not there"):
        Stage(experiment.output_dir, "td", 0)


@pytest.mark.slow
def test_the_program_measures_in_processes_and_keeps_other_methods(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("td")
    command = ["live_teacher", str(run), "--method", "td", "--steps", "4", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", command)
    live_teacher.main()
    assert "times the time" in capsys.readouterr().out
    (first,) = read_live(run)
    assert first.agreement.holds and first.time_ratio > 0 and len(first.live.rounds) == 1
    assert first.teacher_parameters > first.student_parameters
    live_teacher.save(run, first.model_copy(update={"method": "rkl"}))
    live_teacher.save(run, first.model_copy(update={"steps": 99}))
    assert [(m.method, m.steps) for m in read_live(run)] == [("rkl", 4), ("td", 99)]
    values = json.loads((run / "live_teacher.json").read_text())
    values["measurements"][0]["time_ratio"] = float("nan")
    (run / "live_teacher.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="finite"):
        read_live(run)
    assert np.isfinite(first.time_ratio)

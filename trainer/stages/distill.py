"""Train one student by one method from a cache; no teacher is loaded.

for each stage:   probe the student ─▶ the schedule picks a checkpoint ─▶ its targets teach T epochs ─▶ student

distill/<method>/seed-<s>/   best/ last/ (models)   plan.json   log.json   losses.safetensors (on the training data)
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cache_builder.atomic import write_json
from cache_builder.cache.info import retained_mass, sampled_targets
from cache_builder.cache.reader import Cache
from cache_builder.cache.verify import check_corpus
from cache_builder.capture.capture import probe_logp
from cache_builder.capture.probe import run_probe
from cache_builder.data.batching import Batch
from cache_builder.data.prepare import Prepared
from cache_builder.data.rendering.templates import template_fingerprint
from cache_builder.data.tokenizer import tokenizer_fingerprint
from cache_builder.errors import CacheMismatchError
from cache_builder.models.loading import check_vocabulary, weights_fingerprint
from cache_builder.steps import finish_stage, stage_result
from cache_builder.targets.divergences import DIVERGENCES
from cache_builder.targets.outcomes import retained_mass_at_least
from cache_builder.targets.tail import choose_tail
from cache_builder.targets.tensors import to_torch
from trainer.config import DistillConfig, Experiment, StudentConfig
from trainer.loop.dataset import CachedRows
from trainer.loop.order import RowStream
from trainer.loop.settings import LoopSettings, Watch
from trainer.loop.state import drop_resume_state
from trainer.loop.trainer import SequenceTrainer
from trainer.losses_file import write_losses
from trainer.methods.methods import Method, get_method
from trainer.methods.requirements import check_method, kept_by, tail_of
from trainer.methods.schedules import SCHEDULES, Metric, StageChoice, risk_terms
from trainer.methods.weighting import WEIGHTINGS, adaptive_weights
from trainer.precision import for_training
from trainer.processes import is_main_process, only_run_in, say_skipped
from trainer.stages.best_teacher import best_teacher
from trainer.stages.crossfit import AwLosses, read_aw_losses
from trainer.stages.lora import load_student, merge_saved
from trainer.stages.schedule_terms import Outcomes, Terms, outcomes, probe_terms, student_kl, teacher_kl
from trainer.stages.selection import selection, training_result
from trainer.stages.shrink import student_at_start
from trainer.stages.student_losses import student_sft_folder

LEARNED_BY_HEART = 4.0
"""Tail mass × passes from which samples are warned of. Measured: no harm at .6; at 71 the KL to the full teacher was
1.80 nats, against .16 from the bucket."""


class DistillTrainer(SequenceTrainer):
    """`SequenceTrainer` whose stages are taught by checkpoints of a cache."""

    def __init__(self, method: Method, cache: Cache, best: str, rows: CachedRows, experiment: Experiment, **loop: Any):
        self.method, self.cache, self.best, self.experiment = method, cache, best, experiment
        super().__init__(rows=rows, **loop)

    def choose_teacher(self, stage: int) -> StageChoice:
        """Decide by the method's schedule."""
        choice = SCHEDULES[self.method.schedule].choose(stage, stage * self.machine.steps_per_stage, self)
        if choice.choice is None:
            return choice
        self._log_weights(choice.choice)
        self._warn_of_the_margin(choice)
        if self.settings.temperature > 1.0:
            self._warn_of_temperature(choice.choice)
        if self.settings.tail is not None and self.settings.tail.sample_weight:
            self._warn_of_samples(choice.choice, self.settings.tail.sample_weight)
        return choice

    def plan(self) -> dict[str, Any]:
        """Return what `plan.json` says: who taught each stage, and what was compared for it."""
        config = self.experiment.distill
        metric = SCHEDULES[self.method.schedule].metric or config.schedule_metric
        return {
            "method": self.method.name,
            "seed": self.settings.seed,
            "checkpoints": list(self.checkpoints),
            "best": self.best,
            "metric": metric,
            "selected_by": config.select_by if self.validation else None,
            "steps_per_stage": self.machine.steps_per_stage,
            "stages": [stage.to_json(metric) for stage in self.saved.plan],
        }

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The cache's complete checkpoints, oldest first."""
        return self.cache.checkpoints

    def terms(self, metric: Metric | None = None) -> Terms:
        """Return both terms of the schedule for every checkpoint, by the metric or the experiment's own."""
        return METRICS[metric or self.experiment.distill.schedule_metric](self)

    def kl_terms(self) -> Terms:
        """Return KL(p_best‖p_j) and KL(q‖p_j), means over the probe's positions."""
        return probe_terms(self.cache, self.best, self._probe_student(), student_kl)

    def forward_kl_terms(self) -> Terms:
        """Return KL(p_best‖p_j) and KL(p_j‖q), means over the probe's positions."""
        return probe_terms(self.cache, self.best, self._probe_student(), teacher_kl)

    def _probe_student(self) -> Outcomes:
        """Return the student's log-probabilities on the probe's ids, f64 [P, R], and of the rest, f64 [P]."""

        def read(_: np.ndarray, batch: Batch, ids_mR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self.read(batch, lambda model, batch: probe_logp(model, batch, self.vocab_size, ids_mR))

        cache = self.cache
        probe = run_probe(read, cache.corpus, cache.probe_rows, cache.probe_ids, self.evaluation_batching)
        return outcomes(*probe)

    def risk_terms(self) -> Terms:
        """Return §5.1's terms, all three risks as mean loss per position on all of the training data: no sample."""
        positions = self.cache.corpus.n_positions
        risks = {name: float(self.cache.losses(name).sum()) / positions for name in self.cache.checkpoints}
        losses = self.corpus_losses(self.cache.corpus)
        return *risk_terms(risks, float(losses.sum()) / positions), None

    def _log_weights(self, teacher: str) -> None:
        """Log how the stage's sequences are weighed, and warn where the weights have lost their meaning."""
        assert isinstance(self.rows, CachedRows)
        weights = self.rows.weights_of(teacher)
        names = ("aw_p10", "aw_p50", "aw_p90")
        quantiles = dict(zip(names, np.quantile(weights, (0.1, 0.5, 0.9)).tolist(), strict=True))
        mean = float(weights.mean())
        self.log({"stage": float(len(self.saved.plan)), "aw_mean": mean, **quantiles})
        if WEIGHTINGS[self.method.weighting].adaptive and not 0.1 <= mean <= 0.9:
            plain = "plain distillation" if mean > 0.5 else "plain fine-tuning"
            self._warn(
                f"the mean weight of {teacher} is {mean:.3f}, outside [0.1, 0.9]: adaptive weighting has become "
                f"{plain}; one of the two models has memorised the training data, so fine-tune it for fewer epochs"
            )

    def _warn_of_the_margin(self, choice: StageChoice) -> None:
        """Say where the probe is too small to tell the chosen checkpoint from the next one."""
        if choice.margin is not None and choice.margin_error is not None and choice.margin < choice.margin_error:
            self._warn(
                f"stage {choice.stage}: {choice.choice} is {choice.margin:.2g} nats ahead of the next one, less "
                f"than its standard error, {choice.margin_error:.2g}; other sequences might choose the other. Raise "
                "cache.probe_sequences to tell them apart"
            )

    def _warn_of_temperature(self, teacher: str) -> None:
        """Say how much of the mass the support keeps at the temperature: a top-k cache does not know the rest."""
        if self.cache.manifest.imported is not None and self.cache.manifest.imported.tail == "none":
            self._warn(
                f"distill.temperature = {self.settings.temperature:g}: how much of {teacher}'s mass the imported "
                "tokens hold is not known"
            )
            return
        temperature, top_k = self.settings.temperature, self.cache.manifest.targets.top_k
        chunks = map(to_torch, sampled_targets(self.cache, teacher))
        kept = torch.cat(
            [retained_mass_at_least(chunk.logp, chunk.log_tail, self.vocab_size, temperature) for chunk in chunks]
        ).mean()
        self._warn(
            f"distill.temperature = {temperature:g}: the cache keeps the top {top_k} tokens, which at this temperature "
            f"hold at least {kept:.1%} of {teacher}'s mass"
        )

    def _warn_of_samples(self, teacher: str, sample_weight: float) -> None:
        """Say where a checkpoint's draws from the tail are seen so often that the student learns them by heart."""
        stages = 1 + sum(stage.choice == teacher for stage in self.saved.plan)
        passes = stages * self.settings.epochs_per_stage
        retained = retained_mass(self.cache, teacher)
        assert retained is not None  # an imported cache without a tail has no samples either
        mass = (1 - retained["mean"]) * sample_weight
        # Once: at the stage that crosses the line.
        if (passes - self.settings.epochs_per_stage) * mass < LEARNED_BY_HEART <= passes * mass:
            self._warn(
                f"the tail samples of {teacher} stand for {mass:.2g} of its mass and are seen {passes} times by the "
                "end of this stage: the same few tokens, which a student learns by heart instead of the tail; use "
                'distill.tail = "blocks" or "bucket", or fewer epochs'
            )

    def _warn(self, message: str) -> None:
        if self.is_world_process_zero():
            Console(stderr=True).print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)


def distill(
    experiment: Experiment,
    method_name: str,
    seed: int,
    cache: Cache,
    prepared: Prepared,
    watch: Watch | None = None,
) -> Path:
    """Train one student into `<output_dir>/distill/<method>/seed-<seed>`; a finished one is kept.

    Raises:
        CacheMismatchError: the cache was built with another tokenizer, template, length or corpus.
    """
    method = get_method(method_name)
    base = student_at_start(experiment, prepared)
    start, config = for_training(_start(experiment, base), experiment.distill)
    tokenizer = prepared.tokenizer
    check_cache(cache, prepared, experiment)
    check_method(cache, method, config.aw_source)
    takes_samples = config.takes_samples(method.name)
    setting = config.tail if method.divergence else "auto"
    tail = tail_of(cache, method.name, setting, takes_samples, config.tail_lambda)
    best = best_teacher(experiment, prepared, cache)
    chosen_by = selection(experiment, prepared, config.select_by)
    losses = read_aw_losses(experiment, cache) if WEIGHTINGS[method.weighting].adaptive else None
    folder = experiment.output_dir / "distill" / method.name / f"seed-{seed}"
    inputs = {
        "method": vars(method),
        "seed": seed,
        "start": start.model_dump(),
        "weights": weights_fingerprint(start.model, seed),
        "base": weights_fingerprint(base.model, seed),
        "training": config.result_options("methods", "seeds", "tail", "tail_lambda"),
        # None where it is what there was before there was a choice, so that older folders are still the same runs'
        "tail": None
        if tail == choose_tail("auto", replace(kept_by(cache), blocks=0), takes_samples)
        else tail.record(),
        "cache": cache.fingerprint,
        "checkpoints": {name: cache.checkpoint(name).identity.weights_fingerprint for name in cache.checkpoints},
        "best": best,
        "validation": prepared.validation.fingerprint if prepared.validation else None,
        "student_losses": float(losses.student_N.sum()) if losses is not None else None,
        "selection": chosen_by.describe() if chosen_by else None,
    }
    with only_run_in(folder, "training this student"):
        if stage_result(folder, inputs) is not None:
            say_skipped(folder)
            return folder

        model = load_student(start, seed)
        check_vocabulary(model, tokenizer, start.model)
        trainer = DistillTrainer(
            method=method,
            cache=cache,
            best=best,
            experiment=experiment,
            model=model,
            tokenizer=prepared.deployment.tokenizer,
            rows=CachedRows(cache, tokenizer.pad_token_id, weigher(method, config, losses, len(cache.corpus))),
            validation=prepared.validation,
            settings=LoopSettings(
                config=config,
                output_dir=folder,
                seed=seed,
                stages=len(cache.checkpoints),
                epochs_per_stage=config.epochs_per_stage,
                **divergence_settings(method, config),
                temperature=config.temperature,
                tail=tail,
                deployment=prepared.deployment,
                selection=chosen_by,
                watch=watch,
            ),
            stream=RowStream(
                cache.corpus.position_offsets, cache.manifest.layout.chunk_positions, config.window_chunks, seed
            ),
        )
        saved = trainer.run()
        final_losses = trainer.corpus_losses(cache.corpus)
        if trainer.is_world_process_zero():
            write_losses(folder / "losses.safetensors", final_losses, cache.fingerprint)
            write_json(folder / "plan.json", trainer.plan())
            merge_saved(folder, start, seed, prepared.deployment.finish)
            drop_resume_state(folder, trainer.settings.save_at)
            finish_stage(folder, training_result(folder, trainer.machine.total_steps, saved))
        trainer.accelerator.wait_for_everyone()
        return folder


def check_cache(cache: Cache, prepared: Prepared, experiment: Experiment) -> None:
    """Refuse a cache that was built from something else than this experiment's text; an imported one brings its own.

    Raises:
        CacheMismatchError: tokenizer, chat template or corpus differ; the message names which.
    """
    tokenizer = prepared.tokenizer
    cache.check_tokenizer(tokenizer_fingerprint(tokenizer), len(tokenizer))
    manifest = cache.manifest
    if is_main_process():
        _check_corpus_once(cache)
    if manifest.imported is not None:
        return
    for what, here, there in (
        (
            "chat template",
            template_fingerprint(tokenizer, experiment.text.chat_template),
            manifest.chat_template_fingerprint,
        ),
        ("corpus (examples, or text.max_length)", prepared.train.fingerprint, manifest.corpus.fingerprint),
    ):
        if here != there:
            raise CacheMismatchError(
                f"cache {cache.url} was built with {what} {there[:12]}…, this experiment has {here[:12]}…; "
                "use the same settings or build another cache"
            )


def _check_corpus_once(cache: Cache) -> None:
    """Compare a cache's sequences with the fingerprint that it claims, once per process: it may be a stranger's."""
    key = cache.url, cache.fingerprint
    if key not in _corpora_checked:
        check_corpus(cache)
        _corpora_checked.add(key)


_corpora_checked: set[tuple[str, str]] = set()


def _start(experiment: Experiment, base: StudentConfig) -> StudentConfig:
    if experiment.distill.init == "base":
        return base
    return experiment.student.model_copy(update={"model": str(student_sft_folder(experiment))})


def weigher(
    method: Method, config: DistillConfig, losses: AwLosses | None, sequences: int
) -> Callable[[str], np.ndarray]:
    """Return a function from a checkpoint to each sequence's weight of the divergence, f64 [n]; it remembers."""

    @functools.cache
    def weights_of(checkpoint: str) -> np.ndarray:
        if losses is None:
            return np.full(sequences, config.alpha)
        weights = adaptive_weights(losses.student_N, losses.teacher(checkpoint), config.aw_sharpness)
        return WEIGHTINGS[method.weighting].weights(weights, config.hard_aw_delta)

    return weights_of


def divergence_settings(method: Method, config: DistillConfig) -> dict[str, Any]:
    """Return `divergence` and its `parameter` for the loop; without a divergence its weight is zero anyway."""
    if method.divergence is None:
        return {"divergence": "forward_kl", "parameter": None}
    setting = DIVERGENCES[method.divergence].setting
    return {"divergence": method.divergence, "parameter": None if setting is None else getattr(config, setting)}


METRICS = {
    "kl": DistillTrainer.kl_terms,
    "risk": DistillTrainer.risk_terms,
    "forward_kl": DistillTrainer.forward_kl_terms,
}
"""How a schedule's two terms are measured, by the metric that its row names or `distill.schedule_metric`."""

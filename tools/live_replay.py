"""The first stage of a method, replayed with its teacher live in memory or from the cache; `live_teacher.py` runs it.

replay  Trainer steps, as `footsteps distill` does them or with the live teacher's logits and the dense divergence
check   both losses of one student on the same batches, and how far codes and samples may set them apart
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from cache_builder.build.build import teacher_checkpoints
from cache_builder.cache.reader import open_cache
from cache_builder.config import load_experiment
from cache_builder.data.batching import Batch
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError, MissingError
from cache_builder.memory import peak_memory_mib, reset_peak_memory
from cache_builder.models.loading import check_vocabulary, is_model_folder, load_model
from tools.dense_divergence import allowed_error, dense_divergence, log_probabilities
from tools.measuring import parameters
from trainer.config import Experiment
from trainer.loop.dataset import CachedRows
from trainer.loop.order import RowStream
from trainer.loop.settings import LoopSettings
from trainer.loop.trainer import BATCH_KEYS
from trainer.loss.forward import Objective
from trainer.methods.methods import get_method
from trainer.methods.schedules import StageChoice
from trainer.methods.weighting import WEIGHTINGS
from trainer.report.run.run_costs import Agreement
from trainer.stages.crossfit import read_aw_losses
from trainer.stages.distill import DistillTrainer, check_cache, divergence_settings, weigher
from trainer.stages.lora import load_student
from trainer.stages.student_losses import student_sft_folder

SKIPPED_STEPS = 2
ARITHMETIC = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Share of the loss that other batches and another order of sums may change, by the teacher's or student's dtype."""


class Clock(TrainerCallback):
    """Notes when each step ends, and stops after `steps`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        control.should_training_stop = control.should_training_stop or state.global_step >= self.steps


class LiveRows(CachedRows):
    """The same rows and weights, without the cache's targets."""

    def __getitems__(self, items: list[tuple[str | None, int]]) -> dict[str, Any]:
        batch = super().__getitems__([(None, row) for _, row in items])
        teacher = str(items[0][0])
        weights_B = self.weights_of(teacher)[batch["rows_B"].numpy()].astype(np.float32)
        return {**batch, "divergence_weight_B": torch.from_numpy(weights_B)}


class Replay(DistillTrainer):
    """The first stage of a method, taught as its plan says."""

    checkpoint: str

    def choose_teacher(self, stage: int) -> StageChoice:
        return StageChoice(stage, stage * self.machine.steps_per_stage, self.checkpoint)


class LiveReplay(Replay):
    """The same, with the teacher in memory."""

    live: PreTrainedModel

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        batch = {key: inputs[key] for key in BATCH_KEYS if key in inputs}
        with torch.no_grad():
            logp_MV = log_probabilities(self.live, Batch(**batch), self.vocab_size)  # type: ignore[typeddict-item]
        logq_MV = model(**batch, read=lambda student, batch: log_probabilities(student, batch, self.vocab_size))
        weights_B, sequence_M = inputs["divergence_weight_B"], inputs["sequence_M"]
        share_M = 1.0 / (num_items_in_batch * torch.bincount(sequence_M, minlength=len(weights_B))[sequence_M])
        parameter = self.saved.taid.t if self.saved.taid else self.settings.parameter
        divergence_M = dense_divergence(
            logp_MV, logq_MV, self.settings.divergence, parameter, self.settings.temperature
        )
        ce_M = -logq_MV.gather(1, inputs["label_M"][:, None])[:, 0]
        loss = ((weights_B[sequence_M] * divergence_M + (1 - weights_B[sequence_M]) * ce_M) * share_M).sum()
        self.machine.step_divergence = self.machine.step_divergence + (divergence_M.detach() * share_M).sum()
        return loss * self.accelerator.num_processes


class Stage:
    """What both ways share: the run's settings, data and cache, and who taught the method's first stage."""

    def __init__(self, run: Path, method: str, seed: int) -> None:
        self.experiment = load_experiment(Experiment, run / "config.toml", (f"run.output_dir={json.dumps(str(run))}",))
        self.method, self.seed, self.config = get_method(method), seed, self.experiment.distill
        if self.method.divergence is None:
            raise ConfigError(f"method {method!r} has no teacher, so there is none to keep in memory")
        self.folder = run / "distill" / method / f"seed-{seed}"
        if not (self.folder / "plan.json").is_file():
            raise MissingError(f"{self.folder}: the method's plan is not there; run `footsteps distill CONFIG` first")
        plan = json.loads((self.folder / "plan.json").read_text())
        self.checkpoint, self.best = str(plan["stages"][0]["choice"]), str(plan["best"])
        self.prepared = Prepared(self.experiment)
        self.cache = open_cache(self.experiment.cache_url)
        check_cache(self.cache, self.prepared, self.experiment)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vocab_size = len(self.prepared.tokenizer)

    def teacher(self) -> PreTrainedModel:
        """Load the checkpoint that taught the stage."""
        model = load_model(
            self.experiment.teacher, self.seed, dict(teacher_checkpoints(self.experiment))[self.checkpoint]
        )
        check_vocabulary(model, self.prepared.tokenizer, self.checkpoint)
        return model.to(self.device).eval().requires_grad_(False)  # type: ignore[arg-type]

    def student(self, folder: Path | None = None) -> PreTrainedModel:
        """Load the student as its training starts, or from a folder."""
        start = self.experiment.student
        if folder is None and self.config.init == "sft":
            folder = student_sft_folder(self.experiment)
        return load_student(start if folder is None else start.model_copy(update={"model": str(folder)}), self.seed)

    def weights(self, checkpoint: str) -> np.ndarray:
        """Return every sequence's weight of the teacher, as `footsteps distill` gives it."""
        adaptive = WEIGHTINGS[self.method.weighting].adaptive
        losses = read_aw_losses(self.experiment, self.cache) if adaptive else None
        return weigher(self.method, self.config, losses, len(self.cache.corpus))(checkpoint)

    def trainer(self, folder: Path, student: PreTrainedModel, *, live: bool) -> Replay:
        """Make the stage's trainer, on rows with the cache's targets or without."""
        known = {self.checkpoint: self.weights(self.checkpoint)}
        rows = (LiveRows if live else CachedRows)(
            self.cache, int(self.prepared.tokenizer.pad_token_id), known.__getitem__
        )
        trainer = (LiveReplay if live else Replay)(
            method=self.method,
            cache=self.cache,
            best=self.best,
            experiment=self.experiment,
            model=student,
            tokenizer=self.prepared.tokenizer,
            rows=rows,
            validation=None,
            settings=LoopSettings(
                config=self.config.model_copy(update={"report_to": []}),
                output_dir=folder,
                seed=self.seed,
                stages=len(self.cache.checkpoints),
                epochs_per_stage=self.config.epochs_per_stage,
                **divergence_settings(self.method, self.config),
                temperature=self.config.temperature,
            ),
            stream=RowStream(
                self.cache.corpus.position_offsets,
                self.cache.manifest.layout.chunk_positions,
                self.config.window_chunks,
                self.seed,
            ),
        )
        trainer.checkpoint = self.checkpoint
        return trainer


def replay(stage: Stage, steps: int, *, live: bool) -> dict[str, Any]:
    """Do the steps one way; return the seconds between them and the peak of memory, MiB."""
    reset_peak_memory()
    before_mib = peak_memory_mib()
    with tempfile.TemporaryDirectory() as folder:
        student = stage.student()
        trainer = stage.trainer(Path(folder), student, live=live)
        if isinstance(trainer, LiveReplay):
            trainer.live = stage.teacher()
        clock = Clock(min(steps, trainer.machine.steps_per_stage))
        trainer.add_callback(clock)
        trainer.train()
    seconds = np.diff(clock.ends)[min(SKIPPED_STEPS, len(clock.ends) - 2) :].tolist()
    return {"seconds": seconds, "peak_memory_mib": peak_memory_mib() - before_mib, "parameters": parameters(student)}


def batches_of(trainer: Replay, steps: int) -> Iterator[dict[str, Any]]:
    """Yield the first steps' micro-batches, with targets, in the order in which they are trained on."""
    trainer.machine.teacher, size = trainer.checkpoint, trainer.args.per_device_train_batch_size
    items = list(trainer.sampler)[: steps * trainer.settings.config.sequences_per_step]
    for start in range(0, len(items), size):
        yield trainer.rows.__getitems__(items[start : start + size])


def check(stage: Stage, steps: int) -> dict[str, Any]:
    """Compare both losses of the student SFT, or of the student at its start, on the steps' batches.

    Not of the distilled student: it has been fitted to these very samples, so they are no longer a fair draw for it.
    """
    fine_tuned = stage.experiment.output_dir / "student" / "best"
    student = stage.student(fine_tuned if is_model_folder(fine_tuned) else None).to(stage.device)  # type: ignore[arg-type]
    teacher, config = stage.teacher(), stage.config
    divergence, parameter = divergence_settings(stage.method, config).values()
    options = stage.cache.manifest.targets
    steps_per_nat, share_steps = options.logp_steps_per_nat, options.blocks and options.blocks.steps_per_nat
    sums, sequences, one_sided = np.zeros(4), 0, False
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        trainer = stage.trainer(Path(folder), student, live=False)
        student.eval()
        for inputs in batches_of(trainer, steps):
            inputs = trainer._prepare_inputs(inputs)
            batch: Any = {key: inputs[key] for key in BATCH_KEYS if key in inputs}
            targets, sequence_M = inputs["targets"], inputs["sequence_M"]
            positions_B = torch.bincount(sequence_M, minlength=len(inputs["rows_B"]))
            share_M = 1.0 / positions_B[sequence_M]
            kl_share_M = inputs["divergence_weight_B"][sequence_M] * share_M
            objective = Objective(
                targets, kl_share_M, share_M - kl_share_M, divergence, parameter, temperature=config.temperature
            )
            cached = student(**batch, objective=objective)
            logp_MV = log_probabilities(teacher, batch, stage.vocab_size)
            logq_MV = log_probabilities(student, batch, stage.vocab_size)
            divergence_M = dense_divergence(logp_MV, logq_MV, divergence, parameter, config.temperature)
            ce_M = -logq_MV.gather(1, batch["label_M"][:, None])[:, 0]
            live = (kl_share_M * divergence_M + (share_M - kl_share_M) * ce_M).sum()
            allowed = allowed_error(
                logp_MV, logq_MV, targets, steps_per_nat, divergence, parameter, config.temperature, share_steps
            )
            one_sided = allowed.one_sided
            variance, codes = (kl_share_M**2 * allowed.variance_M).sum(), (kl_share_M * allowed.codes_M).sum()
            sums += [float(value) for value in (cached.loss, live, variance, codes)]
            sequences += len(positions_B)
    loss_cache, loss_live, variance, codes = sums
    dtypes = (stage.experiment.teacher.dtype, stage.experiment.student.dtype)
    share = max(ARITHMETIC.get(dtype, max(ARITHMETIC.values())) for dtype in dtypes)
    if config.other_arguments.get("bf16") or config.other_arguments.get("fp16"):
        share = max(share, ARITHMETIC["bfloat16"])
    agreement = Agreement(
        loss_cache=loss_cache / sequences,
        loss_live=loss_live / sequences,
        sampling_error=float(variance) ** 0.5 / sequences,
        codes=codes / sequences,
        arithmetic=share * abs(loss_live) / sequences,
        one_sided=one_sided,
        sequences=sequences,
    )
    return {
        "agreement": agreement.model_dump(),
        "checkpoint": stage.checkpoint,
        "sequences_per_step": config.sequences_per_step,
        "teacher_parameters": parameters(teacher),
    }

"""Fine-tuning and distillation share one loop: `transformers.Trainer`, one `train()` call, one epoch = one stage.

    on_epoch_begin     the stage's teacher is chosen and the optimizer's state cleared, before the epoch's loader exists
    sampler            yields (teacher, row): no prefetched batch can carry the wrong teacher
    forward            w·D + (1−w)·CE of each sequence, summed, divided by the sequences of the whole accumulated batch
    learning rate      a LambdaLR on the step within the stage
    checkpoint-<step>  weights, optimizer, RNG, and last train_state.json: plan, t, λ, best so far, digests

Loss of a sequence: the mean over its positions; loss of a step: the mean over its sequences.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_scheduler,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from cache_builder.atomic import new_folder, restore_folder, write_json
from cache_builder.capture.capture import gold_logp
from cache_builder.capture.losses import Sequences, corpus_losses
from cache_builder.data.batches import Batching
from cache_builder.data.batching import BATCH_KEYS, Batch
from cache_builder.data.corpus import Corpus
from cache_builder.errors import DivergedError, TrainingError
from cache_builder.memory import peak_memory_mib, peaks_mib, reset_peak_memory
from cache_builder.models.packed import packing_of
from cache_builder.targets.divergences import DIVERGENCES
from trainer.evaluation.eval_mode import in_eval_mode
from trainer.loop.ahead import read_ahead
from trainer.loop.callbacks import PooledCallback, StageCallback, TaidCallback
from trainer.loop.console import StepProgress
from trainer.loop.dataset import Rows
from trainer.loop.order import RowStream
from trainer.loop.pace import Pace
from trainer.loop.resume import ResumingTrainer
from trainer.loop.sampler import StageSampler
from trainer.loop.settings import LoopSettings, training_arguments
from trainer.loop.stage_machine import StageMachine
from trainer.loop.state import TrainState, save_state, unmark
from trainer.loss.forward import Objective, attach_objective
from trainer.methods.pooled import PooledWeight
from trainer.methods.schedules import StageChoice
from trainer.methods.taid import TaidState


class SequenceTrainer(ResumingTrainer):
    """`Trainer` on rows of a corpus; subclasses choose each stage's teacher."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Rows,
        validation: Corpus | None,
        settings: LoopSettings,
        stream: RowStream,
    ) -> None:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            raise TrainingError("DeepSpeed owns its optimizer's state, which each stage must clear; use FSDP or DDP")
        attach_objective(model, len(tokenizer))
        rows.packing = packing_of(model, "packing") if settings.config.packing else None
        arguments = training_arguments(settings)
        sequences = len(stream.position_offsets) - 1
        step_rows = settings.config.sequences_per_step
        self.rows, self.validation, self.settings, self.vocab_size = rows, validation, settings, len(tokenizer)
        moving = settings.parameter if DIVERGENCES[settings.divergence].moves else None
        pooled = PooledWeight() if settings.tail is not None and settings.tail.pooled else None
        self.machine = StageMachine(
            stages=settings.stages,
            steps_per_stage=-(-sequences * settings.epochs_per_stage // step_rows),
            steps_per_epoch=max(1, round(sequences / step_rows)),
            saved=TrainState(taid=None if moving is None else TaidState(moving), pooled=pooled),
        )
        lengths_tokens = np.diff(rows.corpus.token_offsets) if settings.config.length_grouped else None
        self.sampler = StageSampler(self.machine, stream, step_rows, lengths_tokens)
        self._sums: torch.Tensor | None = None
        self._started, self.pace = time.perf_counter(), Pace()
        self._loader: Any = None
        self._batches: Any = None
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=_as_is,
            processing_class=tokenizer,
            callbacks=[
                StageCallback(
                    self.machine,
                    self._choose_by_the_clock,
                    settings.config,
                    settings.save_at,
                    evaluates=validation is not None,
                ),
                StepProgress(),
            ],
        )
        if moving is not None:
            self.add_callback(TaidCallback(self.machine, moving, lambda loss: self.accelerator.reduce(loss, "sum")))
        if pooled is not None:
            self.add_callback(PooledCallback(self.machine, lambda sums: self.accelerator.reduce(sums, "sum")))
        self.loss_is_scaled_for_ga = True
        if self.is_fsdp_enabled and "FULL_STATE_DICT" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            raise TrainingError(
                "FSDP would save shards, and best/, last/ and checkpoints are plain model folders; set "
                "fsdp_state_dict_type: FULL_STATE_DICT, as configs/accelerate-fsdp2.yaml does"
            )
        if self.is_fsdp_enabled and settings.selection is not None:
            raise TrainingError(
                'select_by = "metric" writes answers, which a sharded model cannot do here; set select_by = "loss"'
            )
        for reporter in (PrinterCallback, ProgressCallback):
            self.remove_callback(reporter)

    @property
    def saved(self) -> TrainState:
        """What a resumed run must know."""
        return self.machine.saved

    @property
    def evaluation_batching(self) -> Batching:
        """What makes the batches that are run without gradients."""
        return Batching(self.rows.pad_id, self.settings.config.eval_batch_tokens)

    def choose_teacher(self, stage: int) -> StageChoice:
        """Decide who teaches a stage; called once per stage, at its first step."""
        return StageChoice(stage, stage * self.machine.steps_per_stage, None)

    def _choose_by_the_clock(self, stage: int) -> StageChoice:
        self._read_no_further()  # a schedule reads the cache itself
        with self.pace.elsewhere():
            return self.choose_teacher(stage)

    def run(self) -> TrainState:
        """Train, from the last whole checkpoint where there is one, and leave the result in last/ and best/."""
        checkpoint, saved = self.last_whole(self.settings.output_dir, self.machine.total_steps)
        if saved is not None:
            self.machine.saved = saved
        if self.is_world_process_zero():
            restore_folder(self.settings.output_dir / "best")
        reset_peak_memory()
        self._started = time.perf_counter() - self.saved.seconds
        self.pace.restart()
        self.train(resume_from_checkpoint=checkpoint)
        self.save_folder("last")
        if self.saved.best_step is None:
            self.save_folder("best")
        if self.is_world_process_zero():
            write_json(self.settings.output_dir / "log.json", self.state.log_history)
        return self.saved

    def save_folder(self, name: str) -> None:
        """Save the model and its tokenizer as a plain safetensors folder, whole or not at all."""
        folder = self.settings.output_dir / name
        if not self.is_world_process_zero():
            self.save_model(str(folder), _internal_call=True)  # gives its part of the weights, and writes nothing
            return
        with new_folder(folder) as part:
            self.save_model(str(part), _internal_call=True)
            (part / "training_args.bin").unlink(missing_ok=True)

    def read(self, batch: Batch, function: Any) -> Any:
        """Run `function(model, batch)` inside the wrapped model's forward, without gradients, in eval mode."""
        model = self.model_wrapped
        with in_eval_mode(model), torch.no_grad(), self.compute_loss_context_manager():
            return model(**self._prepare_inputs(dict(batch)), read=function)

    def corpus_losses(self, corpus: Sequences) -> np.ndarray:
        """Return the loss of every sequence of a corpus, f64 [n], nats; all processes share the work and the result."""
        losses = corpus_losses(
            lambda batch: self.read(batch, lambda model, batch: gold_logp(model, batch, self.vocab_size)),
            corpus,
            self.evaluation_batching,
            part=(self.args.process_index, self.args.world_size),
        )
        return self.accelerator.reduce(torch.from_numpy(losses).to(self.args.device), "sum").cpu().numpy()

    # What follows overrides Trainer.

    def _get_train_sampler(self, train_dataset: Any = None) -> StageSampler:
        return self.sampler

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Make the learning rate start again at each stage."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            kwargs: Any = self.args.lr_scheduler_kwargs  # declared as a text too, which TrainingArguments has parsed
            try:
                one_stage = get_scheduler(
                    self.args.lr_scheduler_type,
                    optimizer,
                    num_warmup_steps=round(self.settings.config.warmup_ratio * self.machine.steps_per_stage),
                    num_training_steps=self.machine.steps_per_stage,
                    scheduler_specific_kwargs=kwargs or None,
                )
            except (TypeError, ValueError) as error:  # what it needs is not given, or what it does not know is
                raise TrainingError(
                    f"lr_scheduler_type {self.settings.config.lr_scheduler_type!r} does not go with "
                    f"lr_scheduler_kwargs = {kwargs}: {error}"
                ) from error
            if not isinstance(one_stage, LambdaLR):
                raise TrainingError(
                    f"lr_scheduler_type {self.args.lr_scheduler_type!r} is not a function of the step alone, so it "
                    "cannot start again at each stage; use linear, cosine, constant, …"
                )
            rate_at = one_stage.lr_lambdas[0]
            self.lr_scheduler = LambdaLR(optimizer, lambda step: rate_at(step % self.machine.steps_per_stage))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Count the sequences of the whole accumulated batch, over all processes."""
        count = torch.tensor(sum(len(batch["rows_B"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count[None]).sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        sequences = len(inputs["rows_B"])
        sequence_M = inputs["sequence_M"]
        positions_B = torch.bincount(sequence_M, minlength=sequences)
        share_M = 1.0 / (num_items_in_batch * positions_B[sequence_M])
        divergence_weight_B = inputs["divergence_weight_B"]
        weight_M = divergence_weight_B[sequence_M]
        targets = inputs["targets"].to(sequence_M.device) if "targets" in inputs else None
        output = model(
            **{key: inputs[key] for key in BATCH_KEYS if key in inputs},
            objective=Objective(
                targets=targets,
                divergence_weight_M=weight_M * share_M,
                ce_weight_M=(1 - weight_M) * share_M,
                divergence=self.settings.divergence,
                parameter=self.saved.taid.t if self.saved.taid else self.settings.parameter,
                temperature=self.settings.temperature,
                tail=self.machine.tail_of_step(self.settings.tail),
            ),
        )
        if not torch.isfinite(output.loss):
            self._read_no_further()  # the names lie where the batches are read from
            names = [self.rows.sample_ids[row] for row in inputs["rows_B"].tolist()]
            raise DivergedError(
                f"the loss is {output.loss.item()} at step {self.state.global_step}, in a batch of the examples "
                f"{', '.join(map(repr, names))}; look at these, lower the learning rate, or use a wider dtype"
            )
        sums = torch.stack([(output.divergence_M * share_M).sum(), (output.ce_M * share_M).sum()])
        weight = (divergence_weight_B.sum() / num_items_in_batch).to(sums.dtype)
        steps = torch.full_like(weight, sequences / num_items_in_batch)
        tokens = inputs["attention_mask"].sum().to(sums.dtype)
        sample_weight = (output.sample_weight_M * share_M).sum()
        self._add(torch.cat([sums, torch.stack([weight, steps, tokens, sample_weight])]).detach())
        self.machine.note_tail(output.tail_error_V, output.tail_noise)
        return output.loss * self.accelerator.num_processes  # DDP and FSDP average over processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the loss was made of since the last entry, how fast it went, and the peak of memory so far."""
        logs = {**logs, **peaks_mib()}
        if "loss" in logs and self._sums is not None:
            kl, ce, weight, steps, tokens, sample_weight = self.accelerator.reduce(self._sums, "sum").tolist()
            self._sums = None
            logs = {**logs, "ce": ce / steps, "divergence_weight": weight / steps}
            logs["tokens_per_second"] = tokens / self.pace.seconds
            logs["waiting_for_data"] = self.pace.waiting_seconds / self.pace.seconds
            self.pace.restart()
            if self.machine.teacher is not None:
                logs["kl"] = kl / steps
                if self.settings.tail is not None and self.settings.tail.moves:
                    logs["tail_lambda"] = sample_weight / steps
            if self.saved.taid is not None:
                logs["taid_t"] = self.saved.taid.t
        if "train_runtime" in logs:
            self._note_cost()
            seconds = self.saved.seconds  # Trainer's own are those since the last resumption
            per_second = self.state.global_step / seconds
            logs = {**logs, "train_runtime": seconds, "train_steps_per_second": per_second}
            logs["train_samples_per_second"] = per_second * self.settings.config.sequences_per_step
            logs["peak_memory_mib"] = self.saved.peak_memory_mib
        super().log(logs, start_time)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Take an optimizer step's batches as Trainer does, by the clock, and have the next step's made meanwhile."""
        if epoch_iterator is not self._loader:
            self._read_no_further()
            self._loader, self._batches = epoch_iterator, epoch_iterator
            if self.args.dataloader_num_workers == 0:  # workers are ahead already, and are not to be forked in a thread
                self._batches = read_ahead(epoch_iterator, self.args.gradient_accumulation_steps, self._use_device)
        return super().get_batch_samples(self.pace.awaited(self._batches), num_batches, device)

    def train(self, *args: Any, **options: Any) -> Any:
        """Train as Trainer does; no thread is left, however it ends."""
        try:
            return super().train(*args, **options)
        finally:
            self._read_no_further()

    def _read_no_further(self) -> None:
        if self._batches is not self._loader:
            self._batches.close()
        self._loader = self._batches = None

    def _use_device(self) -> None:
        # each thread begins with the first GPU, where page-locking memory would open a second context
        device = self.args.device
        if device.type != "cpu" and device.index is not None:  # of several processes on CPUs, each has "cpu:0"
            torch.accelerator.set_device_index(device)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Measure the loss per position on the held-out corpus, and keep the model in best/ where it is the best.

        It is the cross-entropy of the true tokens, so it can be compared between methods.
        """
        if self.validation is None:
            return {}
        with self.pace.elsewhere():
            loss = float(self.corpus_losses(self.validation).sum()) / self.validation.n_positions
            metric = self._metric()
            if self.saved.note(self.state.global_step, loss, metric):
                self.save_folder("best")
        measured = {"eval_loss": loss} if metric is None else {"eval_loss": loss, "eval_metric": metric}
        self.log(measured)
        if self.settings.watch is not None:
            self.settings.watch(self.state.log_history, self.machine.total_steps)
        return measured

    def _metric(self) -> float | None:
        """Return the tasks' own metric on validation data, where that chooses the best state."""
        if self.settings.selection is None:
            return None
        model: Any = self.model
        part = (self.args.process_index, self.args.world_size)
        with in_eval_mode(model), self.compute_loss_context_manager():
            return self.settings.selection.score(model, part, gather_object)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as Trainer does, and what others need to use the model."""
        super()._save(output_dir, state_dict)
        if self.settings.deployment is not None and self.args.should_save:
            self.settings.deployment.finish(Path(output_dir or self.settings.output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as Trainer does, then mark the checkpoint as finished."""
        with self.pace.elsewhere():
            self._save_resumable(model, trial)

    def _save_resumable(self, model: Any, trial: Any) -> None:
        folder = self.settings.output_dir / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            unmark(folder)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            (folder / "training_args.bin").unlink(missing_ok=True)
            self._note_cost()
            save_state(self.saved, folder, self.state.global_step)

    def _note_cost(self) -> None:
        self.saved.seconds = time.perf_counter() - self._started
        self.saved.peak_memory_mib = max(self.saved.peak_memory_mib, peak_memory_mib())

    def _add(self, sums: torch.Tensor) -> None:
        self._sums = sums if self._sums is None else self._sums + sums
        if self.saved.taid is not None:
            self.machine.step_divergence = self.machine.step_divergence + sums[0]


def _as_is(batch: Any) -> Any:
    """The rows already come as a batch."""
    return batch

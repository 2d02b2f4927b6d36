"""Fine-tune a model on the corpus by cross-entropy; the teacher keeps N evenly spaced checkpoints on the way.

teacher/checkpoint-<step>/   N model folders, and checkpoints.json with each one's held-out loss
student/last  student/best   the student SFT: the baseline, and the L_S of adaptive weighting
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache_builder.atomic import write_json
from cache_builder.config import ModelConfig
from cache_builder.data.prepare import Prepared
from cache_builder.errors import ConfigError
from cache_builder.models.loading import check_vocabulary, weights_fingerprint
from cache_builder.steps import finish_stage, stage_result
from trainer.config import Experiment, SftConfig, StudentSftConfig
from trainer.evaluation.selection import ValidationTasks
from trainer.loop.dataset import Rows
from trainer.loop.order import RowStream
from trainer.loop.settings import LoopSettings, Watch
from trainer.loop.state import drop_resume_state
from trainer.loop.trainer import SequenceTrainer
from trainer.precision import for_training
from trainer.processes import only_run_in, say_skipped
from trainer.stages.lora import load_student, merge_saved
from trainer.stages.selection import selection, training_result
from trainer.stages.shrink import student_at_start

ORDER_CHUNK_POSITIONS = 4096

Role = Literal["teacher", "student"]


def sft_teacher(experiment: Experiment, prepared: Prepared) -> Path:
    """Fine-tune the teacher into `<output_dir>/teacher`, keeping `teacher.checkpoints` states of it."""
    return fine_tune(experiment, prepared, "teacher", experiment.output_dir / "teacher")


def sft_student(experiment: Experiment, prepared: Prepared) -> Path:
    """Fine-tune the student into `<output_dir>/student`."""
    return fine_tune(experiment, prepared, "student", experiment.output_dir / "student")


def fine_tune(
    experiment: Experiment,
    prepared: Prepared,
    role: Role,
    folder: Path,
    rows: np.ndarray | None = None,
    watch: Watch | None = None,
) -> Path:
    """Fine-tune teacher or student into `folder`, on all of the training data or on the sequences `rows` of it."""
    model_config: ModelConfig
    model_config = experiment.teacher.as_trained() if role == "teacher" else student_at_start(experiment, prepared)
    model_config, config = for_training(model_config, getattr(experiment.sft, role))
    chosen_by = selection(experiment, prepared, config.select_by) if isinstance(config, StudentSftConfig) else None
    keep = experiment.teacher.checkpoints if role == "teacher" else 0
    assert isinstance(keep, int)
    inputs: dict[str, Any] = {
        "model": model_config.model_dump(),
        "weights": weights_fingerprint(model_config.model, experiment.run.seed),
        "training": config.result_options(),
        "checkpoints": keep,
        "corpus": prepared.train.fingerprint,
        "validation": prepared.validation.fingerprint if prepared.validation else None,
        "seed": experiment.run.seed,
        "selection": chosen_by.describe() if chosen_by else None,
    }
    if rows is not None:
        inputs["rows"] = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    with only_run_in(folder, "fine-tuning here"):
        if stage_result(folder, inputs) is None:
            _train(experiment, prepared, folder, rows, model_config, config, keep, chosen_by, watch)
        else:
            say_skipped(folder)
    return folder


def _train(
    experiment: Experiment,
    prepared: Prepared,
    folder: Path,
    rows: np.ndarray | None,
    model_config: ModelConfig,
    config: SftConfig,
    keep: int,
    chosen_by: ValidationTasks | None,
    watch: Watch | None,
) -> None:
    """Train, keep `keep` evenly spaced states, and record the result."""
    model = load_student(model_config, experiment.run.seed)
    check_vocabulary(model, prepared.tokenizer, model_config.model)
    corpus = prepared.train
    sequences = len(corpus) if rows is None else len(rows)
    total_steps = config.steps(sequences, config.num_train_epochs)
    if keep > total_steps:
        raise ConfigError(
            f"teacher.checkpoints = {keep}, but fine-tuning on {sequences} sequences has only {total_steps} steps; "
            "ask for fewer checkpoints, more epochs or a smaller batch"
        )
    kept_steps = sorted({round(total_steps * (index + 1) / keep) for index in range(keep)})
    settings = LoopSettings(
        config=config,
        output_dir=folder,
        seed=experiment.run.seed,
        stages=1,
        epochs_per_stage=config.num_train_epochs,
        save_at=frozenset(kept_steps),
        deployment=prepared.deployment,
        selection=chosen_by,
        watch=watch,
    )
    pad_id = prepared.tokenizer.pad_token_id
    stream = RowStream(corpus.position_offsets, ORDER_CHUNK_POSITIONS, len(corpus), experiment.run.seed, rows)
    tokenizer, dataset = prepared.deployment.tokenizer, Rows(corpus, corpus.sample_ids, pad_id)
    trainer = SequenceTrainer(model, tokenizer, dataset, prepared.validation, settings, stream)
    progress = trainer.run()
    if trainer.is_world_process_zero():
        merge_saved(folder, model_config, experiment.run.seed, prepared.deployment.finish)
        if keep:
            losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
            write_json(
                folder / "checkpoints.json",
                {
                    "checkpoints": [
                        {
                            "name": f"checkpoint-{step}",
                            "path": f"checkpoint-{step}",
                            "step": step,
                            "eval_loss": losses.get(step),
                        }
                        for step in kept_steps
                    ]
                },
            )
        drop_resume_state(folder, trainer.settings.save_at)
        finish_stage(folder, training_result(folder, total_steps, progress))
    trainer.accelerator.wait_for_everyone()

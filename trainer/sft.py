"""Fine-tune a model on the corpus by cross-entropy; the teacher keeps N evenly spaced checkpoints on the way.

teacher/checkpoint-<step>/   N model folders, and checkpoints.json with each one's held-out loss
student/last  student/best   the student SFT: the baseline, and the L_S of adaptive weighting
"""

from pathlib import Path
from typing import Any

from cache_builder.config import ModelConfig
from cache_builder.errors import ConfigError
from cache_builder.models import check_vocabulary, load_model, weights_fingerprint
from cache_builder.prepare import Prepared
from cache_builder.stages import finish_stage, stage_result, write_json
from trainer.config import Experiment, SftConfig
from trainer.loop import LoopSettings, SequenceTrainer, steps_of
from trainer.order import RowStream
from trainer.rows import Rows

ORDER_CHUNK_POSITIONS = 4096


def sft_teacher(experiment: Experiment, prepared: Prepared) -> Path:
    """Fine-tune the teacher into `<output_dir>/teacher`, keeping `teacher.checkpoints` states of it."""
    assert isinstance(experiment.teacher.checkpoints, int)
    return _sft(
        experiment, prepared, experiment.teacher, experiment.sft.teacher, "teacher", experiment.teacher.checkpoints
    )


def sft_student(experiment: Experiment, prepared: Prepared) -> Path:
    """Fine-tune the student into `<output_dir>/student`."""
    return _sft(experiment, prepared, experiment.student, experiment.sft.student, "student", 0)


def _sft(
    experiment: Experiment, prepared: Prepared, model_config: ModelConfig, config: SftConfig, name: str, keep: int
) -> Path:
    folder = experiment.output_dir / name
    inputs: dict[str, Any] = {
        "model": model_config.model_dump(exclude={"checkpoints"}),
        "weights": weights_fingerprint(model_config.model, experiment.run.seed),
        "training": config.result_options(),
        "checkpoints": keep,
        "corpus": prepared.train.fingerprint,
        "validation": prepared.validation.fingerprint if prepared.validation else None,
        "seed": experiment.run.seed,
    }
    if stage_result(folder, inputs) is not None:
        return folder
    model = load_model(model_config, experiment.run.seed)
    check_vocabulary(model, prepared.tokenizer, model_config.model)
    total_steps = steps_of(config, len(prepared.train), config.num_train_epochs)
    if keep > total_steps:
        raise ConfigError(
            f"teacher.checkpoints = {keep}, but fine-tuning has only {total_steps} steps; "
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
    )
    corpus = prepared.train
    pad_id = prepared.tokenizer.pad_token_id
    stream = RowStream(corpus.position_offsets, ORDER_CHUNK_POSITIONS, len(corpus), experiment.run.seed)
    trainer = SequenceTrainer(
        model, prepared.tokenizer, Rows(corpus, corpus.sample_ids, pad_id), prepared.validation, settings, stream
    )
    progress = trainer.run()
    if trainer.is_world_process_zero():
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
        trainer.drop_resume_state()
        finish_stage(folder, {"steps": total_steps, "best_step": progress.best_step, "best_loss": progress.best_loss})
    trainer.accelerator.wait_for_everyone()
    return folder

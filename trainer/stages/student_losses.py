"""The student SFT's loss on every training sequence: the L_S of adaptive weighting (§6). One file per student.

losses/student.safetensors    "loss" f64 [n], nats per sequence; its metadata quotes the cache's fingerprint
"""

from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from cache_builder.cache.reader import Cache
from cache_builder.capture.capture import gold_logp
from cache_builder.capture.losses import Sequences, corpus_losses
from cache_builder.config import ModelConfig
from cache_builder.data.batches import Batching
from cache_builder.errors import MissingError
from cache_builder.models.loading import is_model_folder, load_model, weights_fingerprint
from cache_builder.models.placement import place
from cache_builder.steps import finish_stage, stage_result
from trainer.config import Experiment
from trainer.losses_file import write_losses
from trainer.processes import on_main_process, only_run_in, say_skipped


def write_student_losses(experiment: Experiment, cache: Cache, pad_id: int) -> Path:
    """Run the student SFT over the cache's corpus and write `<output_dir>/losses/student.safetensors`."""
    folder, model_folder = experiment.output_dir / "losses", student_sft_folder(experiment)
    path = folder / "student.safetensors"

    def write() -> None:
        inputs = {"cache": cache.fingerprint, "weights": weights_fingerprint(str(model_folder), experiment.run.seed)}
        with only_run_in(folder, "computing these losses"):
            if stage_result(folder, inputs) is not None:
                say_skipped(folder)
                return
            config = experiment.student.model_copy(update={"model": str(model_folder)})
            model = load_on_device(config, experiment.run.seed)
            batching = Batching(pad_id, experiment.sft.student.eval_batch_tokens)
            losses = losses_of(model, cache.corpus, cache.manifest.tokenizer.size, batching)
            write_losses(path, losses, cache.fingerprint)
            finish_stage(folder, {"mean": float(losses.mean())})

    on_main_process(write)
    return path


def student_sft_folder(experiment: Experiment) -> Path:
    """Return the folder of the student SFT as it is judged: the best on held-out data."""
    folder = experiment.output_dir / "student" / "best"
    if not is_model_folder(folder):
        raise MissingError(f"the student SFT is not there: {folder}; run `footsteps sft CONFIG student` first")
    return folder


def losses_of(model: PreTrainedModel, corpus: Sequences, vocab_size: int, batching: Batching) -> np.ndarray:
    """Return −Σ log p(gold) of every sequence, f64 [n], nats."""
    return corpus_losses(
        lambda batch: gold_logp(model, batch, vocab_size),
        corpus,
        batching,
        description="losses on the training data",
    )


def load_on_device(config: ModelConfig, seed: int) -> PreTrainedModel:
    """Load a model in eval mode onto this process's device, or as a teacher's `device_map` says."""
    return place(load_model(config, seed), config)

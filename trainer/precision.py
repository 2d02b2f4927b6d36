"""In what weights are trained: float32 always, whatever they are computed in.

    dtype = "float32"     float32 weights
    dtype = "bfloat16"    float32 weights, computing in bfloat16 by autocast (TrainingArguments' bf16)
    dtype = "float16"     float32 weights, computing in float16 by autocast and a loss scaler (fp16), on a GPU
    with lora             the base stays in `dtype`, frozen; the adapters are float32
                          (on a float16 base with autocast and scaler)

bfloat16 has 8 bits for a weight's digits, so an update of less than 1/512 of a weight is rounded away: at learning
rates of 1e-5 most of them are. Once trained, a model is read in `dtype`, by the cache's builder and by evaluation.
"""

from typing import TypeVar

from cache_builder.config import ModelConfig
from cache_builder.errors import ConfigError
from trainer.config import Experiment, StudentConfig, TrainingConfig

AUTOCAST = {"bfloat16": "bf16", "float16": "fp16"}

C_ = TypeVar("C_", bound=TrainingConfig)
M_ = TypeVar("M_", bound=ModelConfig)


def for_training(model: M_, config: C_) -> tuple[M_, C_]:
    """Return the model with float32 weights, and the training options with the autocast that its `dtype` asks for.

    `bf16` or `fp16`, where the section gives one, stands.

    Raises:
        ConfigError: float16 is asked for where there is no GPU: the Trainer would compute in float32 without a word.
    """
    has_adapters = isinstance(model, StudentConfig) and model.lora is not None
    given = {"bf16", "fp16"} & config.other_arguments.keys()
    if model.dtype in AUTOCAST and not given and not (has_adapters and model.dtype == "bfloat16"):
        config = config.model_copy(update={AUTOCAST[model.dtype]: True})
    arguments = config.other_arguments
    if arguments.get("fp16") and (arguments.get("use_cpu") or not _has_accelerator()):
        raise ConfigError(
            f"{model.model} is to be trained in float16 (dtype, or fp16 of its section), which needs a GPU for the "
            'loss scaler, and there is none here; set dtype = "bfloat16" or "float32", or train where there is a GPU'
        )
    return (model if has_adapters else model.model_copy(update={"dtype": "float32"})), config


def _has_accelerator() -> bool:
    import torch  # only here: a plan, which asks in what is trained, must not wait for torch

    return torch.accelerator.is_available()


def check_precision(experiment: Experiment) -> None:
    """Refuse, before anything is trained, a precision that cannot be trained in here.

    Raises:
        ConfigError: see `for_training`.
    """
    if isinstance(experiment.teacher.checkpoints, int):
        for_training(experiment.teacher.as_trained(), experiment.sft.teacher)
    for_training(experiment.student, experiment.sft.student)
    for_training(experiment.student, experiment.distill)

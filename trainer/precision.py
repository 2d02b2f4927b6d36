"""In what weights are trained: float32 always, whatever they are computed in.

    dtype = "float32"     float32 weights
    dtype = "bfloat16"    float32 weights, computing in bfloat16 by autocast (TrainingArguments' bf16)
    dtype = "float16"     float32 weights, computing in float16 by autocast and a loss scaler (fp16), on a GPU
    with lora             the base stays in `dtype`, frozen; the adapters are float32

bfloat16 has 8 bits for a weight's digits, so an update of less than 1/512 of a weight is rounded away: at learning
rates of 1e-5 most of them are. Once trained, a model is read in `dtype`, by the cache's builder and by evaluation.
"""

from typing import TypeVar

from cache_builder.config import ModelConfig
from trainer.config import StudentConfig, TrainingConfig

AUTOCAST = {"bfloat16": "bf16", "float16": "fp16"}

C_ = TypeVar("C_", bound=TrainingConfig)
M_ = TypeVar("M_", bound=ModelConfig)


def for_training(model: M_, config: C_) -> tuple[M_, C_]:
    """Return the model with float32 weights, and the training options with the autocast that its `dtype` asks for.

    `bf16` or `fp16`, where the section gives one, stands.
    """
    if model.dtype == "float32" or (isinstance(model, StudentConfig) and model.lora is not None):
        return model, config
    if not {"bf16", "fp16"} & config.other_arguments.keys():
        config = config.model_copy(update={AUTOCAST[model.dtype]: True})
    return model.model_copy(update={"dtype": "float32"}), config

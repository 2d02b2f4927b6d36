"""The whole experiment: what the cache's half reads, and the students, their training and their judgement.

[sft.teacher] [sft.student]   fine-tuning          [distill]    methods and their training
[student] [shrink]            the model            [tasks.*]    how answers are judged      [evaluate]
"""

import difflib
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from cache_builder.config import CacheExperiment, InvalidKeyError, ModelConfig, Section, TeacherConfig
from cache_builder.targets.divergences import DIVERGENCES
from cache_builder.targets.tail import SAMPLED, Kept, TailSetting, choose_tail
from trainer.evaluation.tasks import EvaluateConfig, TaskConfig
from trainer.methods.methods import METHOD_NAMES, get_method
from trainer.processes import process_count
from trainer.shrinking.rules import Rule
from trainer.training_arguments import argument_types, scheduler_names

OURS = {
    "output_dir": "run.output_dir",
    "seed": "run.seed or distill.seeds",
    "data_seed": "run.seed or distill.seeds",
    "max_steps": "the number of epochs",
    "eval_strategy": "nothing: evaluation follows the epochs",
    "save_strategy": "save_steps",
    "remove_unused_columns": "nothing: it would drop the teacher's columns",
    "logging_nan_inf_filter": "nothing: it would hide a non-finite loss",
    "load_best_model_at_end": "nothing: best/ and last/ are both kept",
    "train_sampling_strategy": "length_grouped",
    "dataloader_drop_last": "nothing: every batch is full",
    "dataloader_in_order": "nothing: batches come in the order that the seed fixes",
    "dataloader_persistent_workers": "nothing: a worker that outlives a stage would serve its teacher",
    "use_liger_kernel": "nothing: the loss is fused already, and Liger's forward would take its place",
    "liger_kernel_config": "nothing: the loss is fused already, and Liger's forward would take its place",
    "deepspeed": "nothing: DeepSpeed owns its optimizer's state, which each stage must clear; launch with FSDP or DDP",
    "label_smoothing_factor": "nothing: the loss is the method's, and would not be smoothed",
    "auto_find_batch_size": "per_device_train_batch_size: how many sequences a step has is fixed beforehand",
    "per_device_eval_batch_size": "eval_batch_tokens",
    "save_total_limit": "nothing: the last two checkpoints are kept, and all of a teacher's",
    "save_only_model": "nothing: a run continues from its checkpoints",
    "save_on_each_node": "nothing: all processes read the main process's folder",
    "enable_jit_checkpoint": "save_steps: what is saved within a step would not be resumed to the same weights",
    "ignore_data_skip": "nothing: a run that continues takes the batches that come next",
    "restore_callback_states_from_checkpoint": "nothing: what a run must know is in its train_state.json",
    "resume_from_checkpoint": "nothing: a command that is given again continues",
    "num_train_epochs": "epochs_per_stage",
    "select_by": "distill.best, which chooses among the teacher's checkpoints",
    "warmup_steps": "warmup_ratio",
    "metric_for_best_model": "select_by",
    "greater_is_better": "select_by",
    "fp16_full_eval": "dtype of the model",
    "bf16_full_eval": "dtype of the model",
    "eval_delay": "eval_steps",
    "eval_on_start": "eval_steps",
    "average_tokens_across_devices": "nothing: a step's loss is divided by the sequences of all processes",
    "accelerator_config": "nothing: how a step is divided among processes is not to change its result",
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "parallelism_config"),
        "nothing: `accelerate launch --config_file configs/accelerate-fsdp2.yaml -m trainer.cli` shards a model",
    ),
    "debug": "nothing: a loss that is not finite stops training and names its examples",
    "disable_tqdm": "--quiet on the command line",
    "label_names": "nothing: rows come as batches",
    "length_column_name": "length_grouped",
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "nothing: the command says what is done"),
    **dict.fromkeys(
        (
            *("eval_accumulation_steps", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
            *("eval_do_concat_batches", "eval_use_gather_object"),
        ),
        "nothing: held-out losses and answers are not the Trainer's",
    ),
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
            "hub_token",
        ),
        "nothing: best/ and last/ are plain model folders, which `hf upload` takes",
    ),
}
"""TrainingArguments that have one right value here → what to set instead."""

UNCLEARED = ("adagrad", "lomo", "adalomo")
"""Optimizers that clearing the state would not start anew, besides those with one for each weight (`…_layerwise`): sums
made once, or steps within the backward pass, of each micro-batch by itself."""

BY_THE_LOSS = ("reduce_lr_on_plateau", "greedy")
"""Shapes of the learning rate that are no function of the step, so that they cannot start again at each stage."""

Selection = Literal["loss", "metric"]


class LoraSection(Section):
    """Names as peft has them."""

    r: int = Field(8, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(16, gt=0)
    """The adapters' product is scaled by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""
    target_modules: list[str] | str = "all-linear"
    """Layers to adapt, by the ends of their names; "all-linear" is all but the head, which cannot be adapted."""
    merge: bool = False
    """Save plain models, with the adapters added to the weights, instead of adapters."""


class TeacherLoraSection(LoraSection):
    merge: Literal[False] = False

    @field_validator("merge", mode="before")
    @classmethod
    def _checkpoints_stay_adapters(cls, merge: Any) -> Any:
        if merge:
            raise ValueError("only students are merged; a teacher's checkpoints are adapters that share their base")
        return merge


class StudentConfig(ModelConfig):
    lora: LoraSection | None = None
    """Train adapters instead of the weights."""


class ShrinkConfig(Section):
    """Make the student out of `student.model`, a larger model (docs/shrink.md)."""

    layers: int = Field(ge=1)
    """How many of its layers stay."""
    by: Rule = "influence"
    """Which: "ends" (the first and the last), "influence" (those that change the hidden states most) or "loss" (take
    away those that the loss misses least, one after another)."""
    intermediate_size: int | None = Field(None, ge=1)
    """How many neurons of each feed-forward stay, those that are most active; all unless given."""
    key_value_heads: int | None = Field(None, ge=1)
    """How many groups of attention heads stay, a group being a key-value head and all that share it; all unless
    given."""
    sample_sequences: int = Field(64, ge=1)
    """Training sequences on which this is measured, and held-out ones on which the loss before and after is."""


class TunedTeacherConfig(TeacherConfig):
    lora: TeacherLoraSection | None = None
    """Fine-tune adapters; the checkpoints are then adapters of `model`, which the cache's builder loads once."""

    def as_trained(self) -> ModelConfig:
        """Return the model, and its adapters if there are any, without what only says how checkpoints are loaded."""
        plain = super().as_trained()
        return plain if self.lora is None else StudentConfig(**plain.model_dump(), lora=self.lora)


class TrainingConfig(Section):
    """Options by their TrainingArguments names; any other field of TrainingArguments may be given as well."""

    model_config = ConfigDict(extra="allow")

    learning_rate: float = Field(5e-5, gt=0)
    """Peak learning rate."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Sequences of one forward pass."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes per optimizer step; changes memory, never the gradient."""
    lr_scheduler_type: str = "cosine"
    """Shape of the learning rate; starts again at each stage of a distillation."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of the steps (of a stage's, in a distillation) during which the learning rate rises."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's β₁."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's β₂ (§7.1)."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm."""
    length_grouped: bool = False
    """Give a step sequences of like length, which saves padding; the order is then less random."""
    packing: bool = False
    """Put several of a micro-batch's sequences into a row, kept apart, instead of padding; changes speed, never the
    gradient; refused for families that would mix them."""
    save_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints to resume from; unless given, at the end of each epoch (of each stage)."""
    eval_steps: int | None = Field(None, ge=1)
    """Steps between held-out losses; unless given, after each pass over the data."""
    eval_batch_tokens: int = Field(8192, ge=1)
    """Tokens, padding included, of one forward pass without gradients."""
    logging_steps: int = Field(10, ge=1)
    """Steps between entries of the log."""
    report_to: list[str] = Field([])
    """Where the log goes besides the run folder: "tensorboard", "wandb", …"""

    @field_validator("lr_scheduler_type")
    @classmethod
    def _known_shape(cls, value: str) -> str:
        if value != "cosine":  # which needs no look into transformers, as a small install has none
            names = [name for name in scheduler_names() if name not in BY_THE_LOSS]
            if value not in names:
                raise ValueError(f"there is no {value!r} that follows the step alone; there are {', '.join(names)}")
        return value

    @model_validator(mode="after")
    def _training_arguments(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in OURS:
                raise InvalidKeyError(name, f"not an option here; set {OURS[name]}")
            types = argument_types()
            if name not in types:
                near = difflib.get_close_matches(name, [*type(self).model_fields, *types], 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise InvalidKeyError(name, f"unknown key, neither ours nor a field of TrainingArguments{hint}")
            try:
                TypeAdapter(types[name]).validate_python(value)
            except ValidationError as error:
                raise InvalidKeyError(name, f"{error.errors()[0]['msg']}, got {value!r}") from None
            if name == "optim" and (str(value).endswith("layerwise") or value in UNCLEARED):
                raise InvalidKeyError(name, f"{value!r} cannot be cleared at a stage; use another, such as 'adafactor'")
        return self

    def result_options(self, *others: str) -> dict[str, Any]:
        """Return the options that change what is trained, without `others` and those that only change how.

        How a step's sequences are divided among processes and micro-batches changes nothing; how many there are does.
        """
        how = {"per_device_train_batch_size", "gradient_accumulation_steps", "eval_batch_tokens", "report_to"}
        how |= {"packing", "select_by"}  # of the latter a stage's inputs say more
        options = self.model_dump(exclude={*how, "save_steps", "logging_steps", *others})
        return {**options, "sequences_per_step": self.sequences_per_step}

    @property
    def sequences_per_step(self) -> int:
        """Sequences of one optimizer step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * process_count()

    def steps(self, sequences: int, epochs: int) -> int:
        """Return the optimizer steps of so many epochs, with as many processes as there are now."""
        return -(-sequences * epochs // self.sequences_per_step)

    @property
    def other_arguments(self) -> dict[str, Any]:
        """The fields of TrainingArguments given beyond those named here."""
        return dict(self.model_extra or {})


class SftConfig(TrainingConfig):
    num_train_epochs: int = Field(3, ge=1)
    """Epochs of fine-tuning."""


class StudentSftConfig(SftConfig):
    select_by: Selection = "loss"
    """What the student SFT is chosen by, on validation data: "loss", or its tasks' own "metric"."""


class SftPair(Section):
    teacher: SftConfig = SftConfig()
    """The teacher's fine-tuning; unused where `teacher.checkpoints` is a list."""
    student: StudentSftConfig = StudentSftConfig()
    """The student's fine-tuning: the baseline, and the L_S of adaptive weighting."""


class DistillConfig(TrainingConfig):
    methods: list[str] = Field(
        ["sft", "td", "rkl", "taid", "cd", "scd", "td+aw", "scd+aw"],
        min_length=1,
        description=f"Which methods to train, each {METHOD_NAMES} (docs/methods.md).",
    )
    seeds: list[int] = Field([0], min_length=1)
    """One student per method and seed; a seed fixes row order, dropout and initialisation."""
    epochs_per_stage: int = Field(2, ge=1)
    """T: epochs that one checkpoint teaches; a run has as many stages as there are checkpoints."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the divergence where it is not adaptive; 1 − α goes to the cross-entropy."""
    init: Literal["base", "sft"] = "base"
    """Where a student starts: as given, or as the student SFT left it."""
    best: str = "held_out"
    """The best checkpoint: "held_out" (lowest held-out loss), "metric" (the best answers to the validation examples, by
    the mean of its tasks' primary metrics), "last", or a checkpoint's name."""
    select_by: Selection = "loss"
    """What a student's best/ is chosen by, on validation data: "loss", or the mean of its tasks' own primary "metric"s,
    which asks for answers to all validation examples at each held-out loss."""
    schedule_metric: Literal["kl", "risk"] = "kl"
    """What SCD compares checkpoints by: §5.2's divergences on the probe, or §5.1's risks."""
    temperature: float = Field(1.0, gt=0)
    """Softmax temperature of both sides of the divergence."""
    aw_source: Literal["train", "crossfit"] = "train"
    """Losses that AW compares: on the data that both models trained on, or of models that trained on the other half."""
    hard_aw_delta: float = Field(0.1, ge=0, lt=0.5)
    """Half-width of hard AW's undecided band."""
    aw_sharpness: float = Field(1.0, ge=0)
    """Exponent of the losses in AW: 0 weighs all alike, ∞ decides hard."""
    taid_start: float = Field(0.4, ge=0, le=1)
    """TAID's t at the first step."""
    jsd_beta: float = Field(0.5, gt=0, lt=1)
    """β of jsd: near 0 it leans to forward KL, near 1 to reverse KL."""
    tail: TailSetting = "auto"
    """What stands for the teacher's tail: one outcome ("bucket"), one a block ("blocks"), the stored draws ("samples"),
    a mixture of outcomes and draws ("mixed"; its share found at each position, "adaptive", or for a step, "pooled"), or
    the best that the cache keeps ("auto")."""
    tail_lambda: float = Field(0.5, ge=0, le=1)
    """λ of `tail = "mixed"`: the draws' share."""
    window_chunks: int = Field(256, ge=1)
    """Chunks of the cache whose rows are shuffled together and kept in memory."""

    @model_validator(mode="after")
    def _known_methods(self) -> Self:
        for name in self.methods:
            get_method(name)
        for field, values in (("methods", self.methods), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{field} has duplicates: {values}")
        return self

    @model_validator(mode="after")
    def _draws_serve_every_method(self) -> Self:
        unserved = [name for name in self.methods if get_method(name).divergence and not self.takes_samples(name)]
        if self.tail in SAMPLED and unserved:
            raise ValueError(
                f'tail = "{self.tail}" is for forward KL at temperature 1, which {", ".join(unserved)} at temperature '
                f'{self.temperature:g} is not; leave these methods out, or use tail = "auto"'
            )
        return self

    def takes_samples(self, method: str) -> bool:
        """Say whether draws from the tail may stand for it in a method's divergence: forward KL at temperature 1."""
        divergence = get_method(method).divergence
        return divergence is not None and DIVERGENCES[divergence].samples and self.temperature == 1.0


class TuneConfig(Section):
    """What `footsteps tune` tries: fields of a section, each with its values."""

    teacher: dict[str, list[Any]] = Field({})
    """Of [sft.teacher], such as learning_rate = [1e-5, 3e-5]; unless given, rates and epochs around the section's."""
    student: dict[str, list[Any]] = Field({})
    """Of [sft.student]."""
    distill: dict[str, list[Any]] = Field({})
    """Of [distill]."""


class Experiment(CacheExperiment):
    """One TOML file."""

    teacher: TunedTeacherConfig
    student: StudentConfig
    shrink: ShrinkConfig | None = None
    """Make the student out of `student.model`, a larger model, which this section then says how (docs/shrink.md)."""
    sft: SftPair = SftPair()
    distill: DistillConfig = DistillConfig()
    tasks: dict[str, TaskConfig] = Field({})
    evaluate: EvaluateConfig = EvaluateConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _tail_is_kept(self) -> Self:
        kept = Kept(samples=self.cache.tail_samples, blocks=self.cache.tail_blocks)
        try:
            choose_tail(self.distill.tail, kept, takes_samples=True)
        except ValueError as error:
            raise ValueError(
                f"distill.tail: {error}; set cache.tail_samples or cache.tail_blocks (they have {kept.samples} and "
                f'{kept.blocks}) as the cache has them, or use tail = "auto"'
            ) from None
        return self

    @model_validator(mode="after")
    def _grids_fit(self) -> Self:
        # here, so that a grid that could not be tried is refused by every command, and not by `tune` alone
        sections: dict[str, TrainingConfig] = {**dict(self.sft), "distill": self.distill}
        for part, section in sections.items():
            told = section.model_dump(exclude_none=True, mode="json")
            for field, values in getattr(self.tune, part).items():
                for value in values:
                    try:
                        type(section).model_validate({**told, field: value}, strict=True)
                    except ValidationError as error:
                        details = error.errors()[0]
                        cause = details.get("ctx", {}).get("error")
                        reason = cause.reason if isinstance(cause, InvalidKeyError) else cause or details["msg"]
                        raise ValueError(f"tune.{part}.{field}: {value!r} does not fit: {reason}") from None
        return self

"""The stages of an experiment as numbers: steps, positions, floating-point operations, and what a process holds.

    build one checkpoint     forward of all tokens, head at positions; a sequence that a shard cuts runs twice
    train                    passes × forward + 3 × head at positions, per epoch, and a pass over what is held out
                             passes: 3; 2 for LoRA; 1 more with gradient checkpointing
    GPU hours                operations / FLOP/s of one GPU (trainer/planning/rates.py), where a rate is known

Evaluation, the reading of targets and several GPUs' talk with each other are not counted.
"""

from dataclasses import dataclass

from cache_builder.batch_size import GPU_BATCH_TOKENS
from cache_builder.config import ModelConfig
from cache_builder.format.size import CacheSize
from trainer.config import Experiment, TrainingConfig
from trainer.planning.corpus_size import CorpusSize
from trainer.planning.model_size import ModelSize
from trainer.precision import for_training

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTISED_BYTES: dict[str | None, float] = {"8bit": 1.0, "4bit": 0.5}
"""Of a parameter; scales and what stays unquantised are not counted."""
ACTIVATION_BYTES = 17
"""Per token, layer, hidden unit and byte of the number type, kept for a backward pass (Korthikanti et al., 2205.05198:
34 in 16 bits, without the attention's square, which fused kernels do not keep)."""
LOGIT_CHUNK = 1024
"""Positions whose logits are in memory at a time on a GPU."""
FORWARD, TRAINING = "forward", "training"


@dataclass(frozen=True)
class Stage:
    """One step of a run: what it makes, how much of it, and its operations."""

    name: str
    what: str
    size: str
    kind: str | None = None
    """`forward` or `training`, by which its rate is chosen; None where operations are not counted."""
    flops: float = 0.0


@dataclass(frozen=True)
class Memory:
    """What one process holds on its GPU at its peak, bytes."""

    name: str
    weights: float
    activations: float
    logits: float
    gradients: float = 0.0
    adam: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.adam + self.activations + self.logits


@dataclass(frozen=True)
class Plan:
    """Everything that is known of an experiment before it is run."""

    experiment: Experiment
    corpus: CorpusSize
    teacher: ModelSize
    student: ModelSize

    @property
    def checkpoints(self) -> int:
        """How many, the given ones or those that fine-tuning will keep."""
        found = self.experiment.teacher.checkpoints
        return found if isinstance(found, int) else len(found)

    @property
    def fine_tunes(self) -> bool:
        """Whether the teacher is fine-tuned here."""
        return isinstance(self.experiment.teacher.checkpoints, int)

    @property
    def cache(self) -> CacheSize:
        """The cache's arrays and files."""
        cache, corpus = self.experiment.cache, self.corpus
        probed = min(cache.probe_sequences, corpus.sequences) / max(1, corpus.sequences)
        return CacheSize(
            sequences=corpus.sequences,
            tokens=corpus.tokens,
            positions=corpus.positions,
            checkpoints=self.checkpoints,
            top_k=cache.top_k,
            tail_samples=cache.tail_samples,
            tail_blocks=cache.tail_blocks,
            shard_positions=cache.shard_positions,
            chunk_positions=cache.chunk_positions,
            probe_sequences=cache.probe_sequences,
            probe_positions=round(corpus.positions * probed),
            probe_top_k=min(cache.probe_top_k, self.teacher.vocabulary),
            sample_id_bytes=corpus.sample_id_bytes,
        )

    def stages(self) -> list[Stage]:
        """Every step of `footsteps run`, in its order."""
        experiment, corpus, size = self.experiment, self.corpus, self.cache
        sft, distill = experiment.sft, experiment.distill
        students = len(distill.methods) * len(distill.seeds)
        sequences, positions = f"{corpus.sequences:,} sequences", f"{corpus.positions:,} positions"
        found = [Stage("corpus", f"{experiment.data.source} data, {corpus.source}", f"{sequences}, {positions}")]
        if (shrink := experiment.shrink) is not None:
            found.append(Stage("shrink", self.student.name, f"by {shrink.by}, {shrink.sample_sequences} sequences"))
        if self.fine_tunes:
            steps = f"{sft.teacher.steps(corpus.sequences, sft.teacher.num_train_epochs):,} steps"
            flops = self.training_flops(self.teacher, sft.teacher, sft.teacher.num_train_epochs)
            size_of = f"{steps}, {self.checkpoints} checkpoints kept"
            found.append(Stage("sft teacher", self.teacher.name, size_of, TRAINING, flops))
        parts = [f"top_k {size.top_k}"]
        parts += [f"{size.tail_blocks} blocks"] if size.tail_blocks else []
        parts += [f"{size.tail_samples} tail samples"] if size.tail_samples else []
        what = f"{', '.join(parts)}, {size.record_bytes} B a position"
        count = f"{self.checkpoints} × {positions}"
        found.append(Stage("cache build", what, count, FORWARD, self.build_flops()))
        steps = f"{sft.student.steps(corpus.sequences, sft.student.num_train_epochs):,} steps"
        flops = self.training_flops(self.student, sft.student, sft.student.num_train_epochs)
        found.append(Stage("sft student", self.student.name, steps, TRAINING, flops))
        flops = self.forward(self.student, corpus.tokens, corpus.positions)
        found.append(Stage("losses", "of the student SFT on the training data", sequences, FORWARD, flops))
        steps = f"{distill.steps(corpus.sequences, distill.epochs_per_stage):,} steps"
        flops = students * self.training_flops(self.student, distill, self.checkpoints * distill.epochs_per_stage)
        what = f"{', '.join(distill.methods)}; seeds {', '.join(map(str, distill.seeds))}"
        count = f"{students} × {self.checkpoints} stages × {steps}"
        found.append(Stage("distill", what, count, TRAINING, flops))
        found.append(Stage("evaluate", "teacher, student SFT and every student", f"{students + 2} models"))
        return found

    def memory(self) -> list[Memory]:
        """Peaks of one process; training is not sharded here."""
        experiment, teacher = self.experiment, self.teacher
        config = experiment.teacher
        width = QUANTISED_BYTES.get(config.quantization, DTYPE_BYTES[config.dtype])
        batch_tokens = experiment.cache.batch_tokens or GPU_BATCH_TOKENS
        build = Memory(
            "cache build",
            weights=teacher.parameters * width / config.tensor_parallel,
            activations=4.0 * DTYPE_BYTES[config.dtype] * batch_tokens * teacher.hidden,
            logits=4.0 * LOGIT_CHUNK * teacher.vocabulary,
        )
        tuned = self.training_memory("sft teacher", teacher, config.as_trained(), experiment.sft.teacher)
        student = self.training_memory("distill", self.student, experiment.student, experiment.distill)
        return [*([tuned] if self.fine_tunes else []), build, student]

    def build_flops(self) -> float:
        """Every checkpoint over the corpus once, the probe and what is held out included; the anchor's probe first."""
        size, corpus = self.cache, self.corpus
        again = 1 + max(0, size.records.shards - 1) / max(1, size.sequences)
        probed = size.probe_positions / max(1, size.positions)
        passes = size.checkpoints * (again + probed) + probed
        held_out = self.forward(self.teacher, corpus.held_out_tokens, corpus.held_out_positions)
        return passes * self.forward(self.teacher, corpus.tokens, corpus.positions) + size.checkpoints * held_out

    def training_flops(self, model: ModelSize, config: TrainingConfig, epochs: int) -> float:
        """So many epochs, the held-out losses between them and the losses on the corpus at the end."""
        corpus = self.corpus
        body = model.body_flops(corpus.tokens * corpus.padding, corpus.attention_length)
        steps = epochs * (self._passes(model, config) * body + 3 * model.head_flops(corpus.positions))
        held_out = epochs * self.forward(model, corpus.held_out_tokens, corpus.held_out_positions)
        return steps + held_out + self.forward(model, corpus.tokens, corpus.positions)

    def forward(self, model: ModelSize, tokens: float, positions: float) -> float:
        """Return the operations of a forward pass with the head at positions only."""
        return model.body_flops(tokens, self.corpus.attention_length) + model.head_flops(positions)

    def training_memory(self, name: str, model: ModelSize, loaded: ModelConfig, config: TrainingConfig) -> Memory:
        """Weights, what is kept for each of them, and what is kept of a micro-batch; trained weights are float32."""
        loaded, config = for_training(loaded, config)
        half = config.other_arguments.get("bf16") or config.other_arguments.get("fp16")
        width = 2 if half else DTYPE_BYTES[loaded.dtype]
        weights = float(model.parameters * DTYPE_BYTES[loaded.dtype])
        lora = self._has_adapters(model)
        layers = ACTIVATION_BYTES * model.layers
        if config.other_arguments.get("gradient_checkpointing"):
            layers = model.layers + ACTIVATION_BYTES
        tokens = config.per_device_train_batch_size * self.experiment.text.max_length
        return Memory(
            name,
            weights=weights,
            gradients=0.0 if lora else weights,
            adam=0.0 if lora else 2 * weights,
            activations=float(width * tokens * model.hidden * layers),
            logits=4.0 * LOGIT_CHUNK * model.vocabulary + (0.0 if lora else 4.0 * model.head),
        )

    def _has_adapters(self, model: ModelSize) -> bool:
        config = self.experiment.teacher if model is self.teacher else self.experiment.student
        return config.lora is not None

    def _passes(self, model: ModelSize, config: TrainingConfig) -> int:
        return (2 if self._has_adapters(model) else 3) + bool(config.other_arguments.get("gradient_checkpointing"))

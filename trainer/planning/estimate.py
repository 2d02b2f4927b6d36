"""Time, bytes, memory and money of an experiment, before it is run: arithmetic on a workload, models and machines.

    build one checkpoint     max(forward, encode, send)      the writer works beside the device
    complete                 positions / rate, each checkpoint by one process
    train one student        steps (+ or ‖) reading          + without loader workers, else beside them
    online                   the same steps, and a forward pass of the teacher in each; no cache

Seconds of computing = operations / (GPUs × peak × share of it). The head counts at positions, times a measured factor
for what is done with its logits. Work divides evenly among GPUs here, and a teacher on several keeps all of them busy.
"""

from dataclasses import dataclass, field

from trainer.planning.hardware import Hardware
from trainer.planning.measured import Measured
from trainer.planning.model_size import ModelSize
from trainer.planning.workload import DTYPE_BYTES, Training, Workload

ACTIVATION_BYTES = 17
"""Per token, layer, hidden unit and byte of the number type, kept for a backward pass (Korthikanti et al., 2205.05198:
34 in 16 bits, without the attention's square, which fused kernels do not keep)."""
LOGIT_CHUNK = 1024
"""Positions whose logits are in memory at a time on a GPU."""


@dataclass(frozen=True)
class Stage:
    """One row of the plan."""

    name: str
    what: str
    flops: float = 0.0
    beside: dict[str, float] = field(default_factory=dict)
    """Seconds of what goes on at the same time."""
    after: dict[str, float] = field(default_factory=dict)
    """Seconds of what waits for the rest."""
    gpus: int = 1

    @property
    def seconds(self) -> float:
        return max(self.beside.values(), default=0.0) + sum(self.after.values())

    @property
    def bottleneck(self) -> str:
        """What takes longest."""
        parts = {**self.beside, **self.after}
        return max(parts, key=lambda name: parts[name]) if parts else ""

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600


@dataclass(frozen=True)
class Memory:
    """What one process holds on its GPU, bytes."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    """The whole plan."""

    stages: list[Stage]
    """The way of this project."""
    online: list[Stage]
    """The same students beside a live teacher, by the leanest step there can be: ours, and the teacher's forward."""
    checkpoint_bytes: float
    cache_bytes: float
    cache_max_bytes: int
    memory: list[Memory]
    shared_stages: tuple[str, ...] = ("sft teacher", "sft student")
    """Stages that either way has."""

    def money(self, stages: list[Stage], hardware: Hardware) -> float:
        """Return the price of the GPUs."""
        return sum(stage.gpu_hours for stage in stages) * hardware.gpu_price

    def storage_money(self, hardware: Hardware) -> float:
        """Return the price of keeping the cache."""
        return self.cache_bytes / 1e9 * hardware.storage_price * hardware.storage_months


def estimate(
    workload: Workload, teacher: ModelSize, student: ModelSize, hardware: Hardware, measured: Measured
) -> Estimate:
    """Return the plan of a workload."""
    size = workload.cache
    per_position = min(workload.bytes_per_position[0], float(size.record_bytes))
    checkpoint_bytes = size.positions * per_position + sum(array.raw_bytes for array in size.checkpoint[1:])
    once = sum(array.raw_bytes for array in [*size.corpus, *size.probe])
    planner = Planner(workload, teacher, student, hardware, measured, checkpoint_bytes)
    sft = planner.fine_tunings()
    return Estimate(
        stages=[*sft, planner.build(), planner.complete(), *planner.losses(), *planner.students()],
        online=[*sft, *planner.losses(), planner.online()],
        checkpoint_bytes=checkpoint_bytes,
        cache_bytes=size.checkpoints * checkpoint_bytes + once,
        cache_max_bytes=size.max_bytes,
        memory=planner.memory(),
    )


@dataclass(frozen=True)
class Planner:
    """What each stage takes."""

    workload: Workload
    teacher: ModelSize
    student: ModelSize
    hardware: Hardware
    measured: Measured
    checkpoint_bytes: float

    def build(self) -> Stage:
        """Every checkpoint over the corpus once, the probe and what is held out included."""
        work, size = self.workload, self.workload.cache
        again = 1 + max(0, size.records.shards - 1) / max(1, size.sequences)  # a sequence cut by two shards runs twice
        probed = size.probe_positions / max(1, size.positions)
        passes = size.checkpoints * (again + probed) + probed
        flops = passes * self.forward(self.teacher, work.corpus.tokens, work.corpus.positions)
        flops += size.checkpoints * self.forward(
            self.teacher, work.corpus.held_out_tokens, work.corpus.held_out_positions
        )
        written = size.checkpoints * self.checkpoint_bytes
        builders = max(1, self.hardware.gpus // work.teacher_gpus)
        loads = size.checkpoints + min(builders, size.checkpoints * size.records.shards)
        weights = self.teacher.parameters * DTYPE_BYTES[work.teacher_dtype]
        return Stage(
            "cache build",
            f"{size.checkpoints} × {size.positions:.3g} positions",
            flops,
            beside={
                "compute": self.device_seconds(flops, self.hardware.mfu_forward),
                "encoding": size.checkpoints * size.positions / self.measured["write_rate"] / builders,
                "write bandwidth": written / self.hardware.bandwidth,
            },
            after={"loading weights": loads * weights / self.hardware.bandwidth},
            gpus=self.hardware.gpus,
        )

    def complete(self) -> Stage:
        """The last step of each checkpoint, its losses: one process's, at its end, when the others may be gone."""
        size = self.workload.cache
        seconds = size.checkpoints * size.positions / self.measured["complete_rate"]
        sent = size.checkpoints * self.checkpoint_bytes / self.hardware.bandwidth
        return Stage(
            "… complete it",
            "read once by one process",
            beside={"one core": seconds, "read bandwidth": sent},
        )

    def fine_tunings(self) -> list[Stage]:
        """The fine-tunings, by the same loop as distillation, without a teacher."""
        work = self.workload
        plans = (("sft teacher", self.teacher, work.teacher_sft), ("sft student", self.student, work.student_sft))
        return [
            self.training(name, f"{plan.epochs} epochs", model, plan, plan.epochs, 1)
            for name, model, plan in plans
            if plan is not None
        ]

    def losses(self) -> list[Stage]:
        """The student SFT over the corpus once."""
        work = self.workload
        if work.student_sft is None:
            return []
        flops = self.forward(self.student, work.corpus.tokens, work.corpus.positions)
        seconds = self.device_seconds(flops, self.hardware.mfu_forward)
        return [Stage("losses", "of the student SFT", flops, beside={"compute": seconds}, gpus=self.hardware.gpus)]

    def students(self) -> list[Stage]:
        """Those that read the cache, and those by `sft`, which do not."""
        work = self.workload
        reading = work.reading_students
        epochs = work.stages * work.distill.epochs
        stages = []
        for count, reads in ((reading, True), (work.students - reading, False)):
            if count:
                what = f"{count} × {work.stages} stages × {work.distill.epochs} epochs"
                name = "students" if reads else "students of sft"
                stages.append(self.training(name, what, self.student, work.distill, epochs, count, reads=reads))
        return stages

    def online(self) -> Stage:
        """The students that are taught, each step after a forward pass of the live teacher; those by `sft` as well."""
        work = self.workload
        epochs = work.stages * work.distill.epochs
        ours = self.training("", "", self.student, work.distill, epochs, work.students)
        tokens = work.corpus.tokens * work.corpus.padding * epochs
        positions = work.corpus.positions * epochs
        flops = work.reading_students * self.forward(self.teacher, tokens, positions)
        return Stage(
            "students, online",
            f"{work.students} × {epochs} epochs, live teacher",
            ours.flops + flops,
            after={
                "student": ours.seconds,
                "teacher": self.device_seconds(flops, self.hardware.mfu_forward),
            },
            gpus=self.hardware.gpus,
        )

    def training(
        self, name: str, what: str, model: ModelSize, plan: Training, epochs: int, count: int, *, reads: bool = False
    ) -> Stage:
        """So many trainings, with the held-out losses between and the losses on the corpus at the end."""
        corpus, work = self.workload.corpus, self.workload
        body = model.body_flops(corpus.tokens * corpus.padding, corpus.attention_length)
        head = 3 * model.head_flops(corpus.positions) * max(1.0, self.measured["distil_head_factor"])
        steps = epochs * (plan.passes * body + head)
        read_only = self.forward(model, corpus.tokens, corpus.positions)
        read_only += epochs * self.forward(model, work.corpus.held_out_tokens, work.corpus.held_out_positions)
        compute = self.device_seconds(steps, self.hardware.mfu_train)
        compute += self.device_seconds(read_only, self.hardware.mfu_forward)
        beside: dict[str, float] = {"compute": count * compute}
        after: dict[str, float] = {}
        if reads:
            gpus, workers = self.hardware.gpus, self.hardware.loader_workers
            chunks, rows = 1 / self.measured["chunk_rate"], 1 / self.measured["read_rate"]
            met = self.chunks_met(gpus)
            decode = corpus.positions * (met * chunks + max(0.0, rows - chunks) / gpus)
            sent = (
                corpus.positions
                * work.bytes_per_position[0]
                * self.hardware.nodes
                * self.chunks_met(self.hardware.nodes)
            )
            where = after if workers == 0 else beside
            where["decoding"] = count * epochs * decode / max(1, workers)
            beside["read bandwidth"] = count * epochs * sent / self.hardware.bandwidth
        return Stage(name, what, count * (steps + read_only), beside, after, self.hardware.gpus)

    def memory(self) -> list[Memory]:
        """Peaks per GPU; training is not sharded here."""
        work, teacher = self.workload, self.teacher
        teacher_weights = teacher.parameters * work.teacher_parameter_bytes
        built = {
            "weights": teacher_weights / work.teacher_gpus,
            "activations": 4.0 * DTYPE_BYTES[work.teacher_dtype] * work.batch_tokens * teacher.hidden,
            "logits": 4.0 * LOGIT_CHUNK * teacher.vocabulary,
        }
        student = self.training_memory(self.student, work.student_dtype, work.distill)
        found = [
            Memory("cache build", built),
            Memory("student", student),
            Memory("student, online", {"teacher": teacher_weights, **student}),
        ]
        if work.teacher_sft is not None:
            tuned = self.training_memory(teacher, work.teacher_dtype, work.teacher_sft)
            found.insert(0, Memory("sft teacher", tuned))
        return found

    def training_memory(self, model: ModelSize, dtype: str, plan: Training) -> dict[str, float]:
        """Weights, what is kept for each of them, and what is kept of a micro-batch."""
        width = 2 if plan.half else DTYPE_BYTES[dtype]
        tokens = plan.micro_batch * self.workload.max_length
        weights = float(model.parameters * DTYPE_BYTES[dtype])
        trained = 0.0 if plan.lora else weights
        kept = ACTIVATION_BYTES * model.layers
        if plan.gradient_checkpointing:
            kept = model.layers + ACTIVATION_BYTES
        return {
            "weights": weights,
            "gradients": trained,
            "Adam": 2 * trained,
            "activations": float(width * tokens * model.hidden * kept),
            "logits": 4.0 * LOGIT_CHUNK * model.vocabulary + (0.0 if plan.lora else 4.0 * model.head),
        }

    def chunks_met(self, readers: int) -> float:
        """Return the share of all chunks in which one of so many readers has a row, in one epoch.

        Rows are dealt out by turns, in random order, so a chunk is read by as many readers as it has rows, or by all.
        """
        size = self.workload.cache
        rows = 1 + size.chunk_positions * size.sequences / max(1, size.positions)
        return 1 - (1 - 1 / readers) ** rows if readers > 1 else 1.0

    def forward(self, model: ModelSize, tokens: float, positions: float) -> float:
        """Return the operations of a forward pass, what is done with the logits counted as some of the head."""
        length = self.workload.corpus.attention_length
        return model.body_flops(tokens, length) + model.head_flops(positions) * self.measured["capture_head_factor"]

    def device_seconds(self, flops: float, mfu: float) -> float:
        return flops / (self.hardware.gpus * self.hardware.gpu_flops * mfu)

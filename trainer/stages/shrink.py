"""Make the student out of a larger model, `student.model`: fewer layers, and a narrower feed-forward or fewer heads.

    source ─▶ a sample of the training data: what does each part do? ─▶ which parts stay ─▶ cut ─▶ shrunk/model
                                                 held-out loss and sizes, before and after ─▶ shrunk/stage.json

shrunk/losses.json   with `by = "loss"`: the sample's loss without each layer, as far as it got
shrunk/model/        config, safetensors, tokenizer, chat template, generation config, and shrunk.json: how it was made
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from cache_builder.atomic import new_folder, write_json
from cache_builder.capture.capture import gold_logp
from cache_builder.capture.losses import corpus_losses
from cache_builder.data.batches import Batching
from cache_builder.data.batching import collate, plan_batches
from cache_builder.data.corpus import Corpus
from cache_builder.data.digests import files_in
from cache_builder.data.prepare import Prepared
from cache_builder.data.tokenizer import resolve
from cache_builder.errors import ConfigError, ModelError
from cache_builder.models.adapters import adapter_at
from cache_builder.models.loading import check_vocabulary, is_model_folder, weights_fingerprint
from cache_builder.models.placement import place
from cache_builder.models.weights import has_weights
from cache_builder.narration import manner, say
from cache_builder.positions import counts_of
from cache_builder.sequences import SomeRows
from cache_builder.steps import STARTED_FILE, finish_stage, finished_result, stage_result
from trainer.config import Experiment, ShrinkConfig, StudentConfig
from trainer.planning.units import format_bytes
from trainer.precision import for_training
from trainer.processes import is_main_process, on_main_process
from trainer.shrinking.cut import cut, only
from trainer.shrinking.families import Sizes, check_sizes
from trainer.shrinking.importance import Importance, measure, strongest
from trainer.shrinking.rules import RULES
from trainer.stages.student_losses import load_on_device

FOLDER, MODEL, LOSSES, RECORD = "shrunk", "model", "losses.json", "shrunk.json"


@dataclass(frozen=True)
class ModelSizes:
    """One line of the table."""

    model: str
    layers: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    parameters: int
    """Tied ones once."""
    bytes: int
    loss: float
    """Nats per position of what is held out."""


def student_at_start(experiment: Experiment, prepared: Prepared) -> StudentConfig:
    """Return the student that has learned nothing here yet: as given, or as `[shrink]` has made it.

    Raises:
        MissingError: it has yet to be made.
        CacheMismatchError: it was made from other settings.
    """
    if experiment.shrink is None:
        return experiment.student
    folder = experiment.output_dir / FOLDER
    if (folder / STARTED_FILE).is_file():
        stage_result(folder, _inputs(experiment, experiment.shrink, prepared))
    finished_result(folder, "the shrunk student", "footsteps shrink CONFIG")
    return experiment.student.model_copy(update={"model": str(folder / MODEL)})


def shrink_student(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Make the student in `<output_dir>/shrunk/model`, unless that was done; return what `shrunk/stage.json` holds.

    Raises:
        ConfigError: there is no `[shrink]`, or it asks for more than the model has.
        ModelError: the model is of another family than those that can be shrunk, or has no weights of its own.
        CacheMismatchError: what is there was made from other settings.
    """
    config = experiment.shrink
    if config is None:
        raise ConfigError("there is nothing to shrink: the config has no [shrink]; give it, or --set shrink.layers=N")
    folder = experiment.output_dir / FOLDER
    on_main_process(lambda: _shrink(experiment, config, prepared, folder))
    return finished_result(folder, "the shrunk student", "footsteps shrink CONFIG")


def say_sizes(result: dict[str, Any], console: Console) -> None:
    """Say what a shrunk student costs: a table on the console, to machines the event `shrunk`."""
    console.print(sizes_table(result))
    if manner() == "json" and is_main_process():
        say("shrunk", "", **{name: result[name] for name in ("layers", "held_out", "source", "student")})


def sizes_table(result: dict[str, Any]) -> Table:
    """Return sizes and held-out loss before and after, for a terminal."""
    caption = f"layers {', '.join(map(str, result['layers']))}; loss in nats per position of {result['held_out']}"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for column in ("", "layers", "feed-forward", "heads", "parameters", "bytes", "loss"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("source", "student"):
        one = ModelSizes(**result[name])
        heads = f"{one.attention_heads} ({one.key_value_heads})"
        sizes = str(one.layers), f"{one.intermediate_size:,}", heads, f"{one.parameters:,}", format_bytes(one.bytes)
        table.add_row(name, *sizes, f"{one.loss:.3f}")
    return table


def _shrink(experiment: Experiment, config: ShrinkConfig, prepared: Prepared, folder: Path) -> None:
    _check_source(experiment.student.model)
    inputs = _inputs(experiment, config, prepared)
    if (folder / STARTED_FILE).is_file() and stage_result(folder, inputs) is not None:
        return
    # in float32, as students are trained: what is kept is then the source's to the bit, whatever it is stored in
    loaded, _ = for_training(experiment.student, experiment.sft.student)
    model = load_on_device(loaded, experiment.run.seed)
    check_sizes(model.config, Sizes(config.layers, config.intermediate_size, config.key_value_heads), loaded.model)
    check_vocabulary(model, prepared.tokenizer, loaded.model)
    stage_result(folder, inputs)  # not before: a folder of settings that were refused would refuse the mended ones
    sample = _Sample(experiment, config, prepared, model, folder / LOSSES)
    choice = RULES[config.by](sample, config.layers)
    neurons = groups = None
    if config.intermediate_size is not None:
        assert sample.importance.neurons_LF is not None
        neurons = strongest(sample.importance.neurons_LF, choice.layers, config.intermediate_size)
    if config.key_value_heads is not None:
        assert sample.importance.groups_LG is not None
        groups = strongest(sample.importance.groups_LG, choice.layers, config.key_value_heads)
    before = sample.sizes(loaded.model, model)
    smaller = place(cut(model, choice.layers, neurons, groups), loaded)
    after = sample.sizes(str(folder / MODEL), smaller)
    record = {
        "source": loaded.model,
        "source_weights": weights_fingerprint(loaded.model, experiment.run.seed),
        "shrink": config.model_dump(exclude_none=True),
        "layers": choice.layers,
        "scores": choice.scores,
    }
    if groups is not None:
        record["key_value_heads"] = groups
    with new_folder(folder / MODEL) as part:
        smaller.save_pretrained(part)
        prepared.deployment.tokenizer.save_pretrained(part)
        prepared.deployment.finish(part)
        write_json(part / RECORD, record)
    held_out = "held-out data" if prepared.validation is not None else "the training data"
    files = {f"{MODEL}/{name}": digest for name, digest in files_in(folder / MODEL).items()}
    sizes = {"held_out": held_out, "source": asdict(before), "student": asdict(after)}
    finish_stage(folder, {**record, **sizes, "files": files})


def _inputs(experiment: Experiment, config: ShrinkConfig, prepared: Prepared) -> dict[str, Any]:
    return {
        "model": experiment.student.model,
        "weights": weights_fingerprint(experiment.student.model, experiment.run.seed),
        "shrink": config.model_dump(),
        "corpus": prepared.train.fingerprint,
        "validation": prepared.validation.fingerprint if prepared.validation else None,
    }


def _check_source(location: str) -> None:
    name, revision = resolve(location)
    if adapter_at(name, revision) is not None:
        raise ModelError(f"model {location!r} holds adapters, which cannot be cut; merge them into their base first")
    if is_model_folder(Path(name)) and not has_weights(Path(name)):
        raise ModelError(
            f"model {location!r} has no weights, so no part of it is worth keeping; write the smaller sizes into a "
            "config.json of the student's own, and leave [shrink] out"
        )


class _Sample:
    """What a rule asks about the source, answered on evenly spaced sequences of the training data."""

    def __init__(
        self, experiment: Experiment, config: ShrinkConfig, prepared: Prepared, model: PreTrainedModel, memo: Path
    ) -> None:
        self.model, self.memo, self.tokenizer = model, memo, prepared.tokenizer
        self.n_layers = int(model.config.num_hidden_layers)
        self.batch_tokens = experiment.sft.student.eval_batch_tokens
        self.rows = _spaced(prepared.train, config.sample_sequences)
        self.held_out = _spaced(prepared.validation or prepared.train, config.sample_sequences)
        self._known: dict[str, float] = {}

    @cached_property
    def importance(self) -> Importance:
        """Every part's, from one pass."""
        sample, _ = self.rows
        batches = (
            collate([sample.sequence(int(row)) for row in rows], self.tokenizer.pad_token_id)
            for rows in plan_batches(np.diff(sample.token_offsets), self.batch_tokens)
        )
        return measure(self.model, batches)

    def influence(self) -> list[float]:
        return [float(score) for score in self.importance.influence_L]

    def loss_of(self, layers: Sequence[int]) -> float:
        """Return the sample's loss; what was measured before a kill is not measured again."""
        if not self._known and self.memo.is_file():
            self._known = json.loads(self.memo.read_bytes())
        key = ",".join(map(str, layers))
        if key not in self._known:
            with only(self.model, layers):
                self._known[key] = self._loss(self.model, self.rows)
            write_json(self.memo, self._known)
        return self._known[key]

    def sizes(self, name: str, model: PreTrainedModel) -> ModelSizes:
        """Measure a model on what is held out."""
        config, parameters = model.config, list(model.parameters())
        return ModelSizes(
            name,
            config.num_hidden_layers,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            sum(parameter.numel() for parameter in parameters),
            sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            self._loss(model, self.held_out),
        )

    def _loss(self, model: PreTrainedModel, part: tuple[SomeRows, int]) -> float:
        rows, positions = part
        losses = corpus_losses(
            lambda batch: gold_logp(model, batch, len(self.tokenizer)),
            rows,
            Batching(self.tokenizer.pad_token_id, self.batch_tokens),
        )
        return float(losses.sum()) / positions


def _spaced(corpus: Corpus, count: int) -> tuple[SomeRows, int]:
    """Return sequences of a corpus at even distances, as rows may lie in the order of topics, and their positions."""
    rows = np.unique(np.linspace(0, len(corpus) - 1, count).astype(int))
    return SomeRows(corpus, rows), int(counts_of(corpus.position_offsets, rows).sum())

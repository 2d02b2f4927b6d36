"""An experiment is one TOML file, read into strict models: an unknown key or a wrong type is an error with its path.

    [run]  [data]  [text]  [tokenizer]  [teacher]  [cache]        read here, and all that building a cache needs
    [sft]  [student]  [distill]  [tasks]  [evaluate]              added by trainer/config.py

The strings under the fields are their documentation: `footsteps config` prints them.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cache_builder.atomic import check_named_in_utf8, write_text
from cache_builder.config_values import apply_override, nul_in
from cache_builder.errors import ConfigError, MissingError
from cache_builder.redaction import secrets_in

Dtype = Literal["float32", "bfloat16", "float16"]
EngineName = Literal["transformers", "hidden-states"]
"""What runs a teacher; each has a row in `capture/backend.py`."""


class InvalidKeyError(ValueError):
    """A key of a section that is validated by the section itself."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


class Section(BaseModel):
    """Base of every section: immutable, typed without coercion of strings, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class RunConfig(Section):
    output_dir: str
    """Folder of this run; everything that the commands make lies below it."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seeds the data's generator and splits, model initialisation, row order and dropout."""


class RowsConfig(Section):
    """A task made from the rows of a table: `{column}` in a text stands for what the row has there."""

    train: str | None = None
    """A JSONL, CSV or Parquet file (or a pattern), or a hub id, `owner/name[@revision][:split]`."""
    validation: str | None = None
    """As `train`; where no task has one, `data.validation_fraction` of the training examples is held out."""
    test: str | None = None
    """As `train`."""
    prompt: str
    """What is asked, such as "Note: {note}\\nDepartment?"."""
    answer: str
    """The right answer, such as "{department}"; a column alone may hold a list, of entities."""
    system: str | None = None
    """The system message, where there is one."""
    choices: list[str] | None = Field(None, min_length=2)
    """What the answer is chosen from; for lettered options, their texts."""


class DataConfig(Section):
    source: Literal["files", "rows", "demo", "pubmedqa", "jmed-llm", "clinc150", "snips"] = "files"
    """Where examples come from: the files named below, the tables under `data.rows`, the built-in demo, or a known
    benchmark's folder."""
    path: str | None = None
    """Folder of a benchmark; `$NAME` is replaced from the environment."""
    tasks: list[str] | None = None
    """The source's tasks to use; all of them unless given."""
    split_by: Literal["official", "row", "group"] = "official"
    """How a benchmark without an official split is divided: by row, or so that no document is on both sides."""
    train: str | None = None
    """For `files`: a JSONL, CSV or Parquet file (or a pattern), or a hub id, `owner/name[@revision][:split]`."""
    validation: str | None = None
    """As `train`; without it `validation_fraction` of the training examples is held out."""
    test: str | None = None
    """As `train`; judged once, at the end, and never used for a choice."""
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the training examples held out where there is no validation set; 0 holds out none.

    Rows of one `group` stay together.
    """
    rows: dict[str, RowsConfig] = {}
    """For `rows`: a section `[data.rows.NAME]` for each task."""
    train_examples: int | None = Field(None, gt=0)
    """Use only this many training examples, a random part by `run.seed` (the demo: generate this many)."""
    validation_examples: int | None = Field(None, gt=0)
    """Use only this many examples of a validation set that is given, a random part by `run.seed` (the demo: generate
    this many); what is held out of training is `validation_fraction`'s to say."""
    test_examples: int | None = Field(None, gt=0)
    """Use only this many test examples, a random part by `run.seed` (the demo: generate this many)."""
    ignore_keys: list[str] = []
    """For `files`: keys of a row (`source`) or of its turns (`messages.time`) that are left out on purpose; any other
    key that is not known is an error."""


class TextConfig(Section):
    max_length: int = Field(512, gt=1)
    """Tokens of a sequence at most; the prompt's middle is cut, never a completion."""
    chat_template: str | None = None
    """A Jinja chat template, or "plain"; the tokenizer's own unless given."""
    train_on: Literal["all", "last"] = "all"
    """Which assistant turns of a conversation are trained on, all or the last; `"train": false` excepts one."""
    split_documents: bool = False
    """Cut `text` rows longer than `max_length` into blocks; they are dropped, and counted, unless given."""


class TokenizerConfig(Section):
    path: str | None = None
    """Folder or hub id `owner/name[@revision]`; the teacher's folder unless given."""
    train_vocab_size: int | None = Field(None, ge=300, le=1 << 21)
    """Train a byte-level BPE of this size on the training text instead of loading one."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path and self.train_vocab_size:
            raise ValueError("give `path` or `train_vocab_size`, not both")
        return self


class ModelConfig(Section):
    model: str
    """Folder, `.gguf` file or hub id `owner/name[@revision]`; a folder with only config.json is initialised from
    `run.seed`."""
    dtype: Dtype = "float32"
    """Data type that the model is read in and computes in; weights that are trained are float32 all the same."""
    attn_implementation: str | None = None
    """Attention kernel as transformers names it; its default unless given."""
    trust_remote_code: bool = False
    """Run the Python code that a model's repository brings."""


class TeacherConfig(ModelConfig):
    checkpoints: Annotated[int, Field(ge=1, le=1000)] | Annotated[list[str], Field(min_length=1)] = 4
    """How many evenly spaced checkpoints our own fine-tuning saves, or a list of folders or hub ids, oldest first."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, str] | None = None
    """Spread a checkpoint that is read over GPUs, memory and disk: a way of accelerate's, or modules and devices."""
    max_memory: dict[str, str] | None = None
    """What `device_map` may fill, such as {0 = "70GiB", cpu = "200GiB"}; all there is unless given."""
    offload_folder: str | None = None
    """Where `device_map` puts weights on disk that cannot be read from the checkpoint's own files."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Quantise checkpoints with bitsandbytes as they are read; folders that are quantised already need no option."""
    tensor_parallel: int = Field(1, ge=1)
    """While the cache is built: how many of torchrun's processes share one checkpoint's layers."""
    engine: EngineName = "transformers"
    """What runs the checkpoints while the cache is built: transformers, or another engine that has written, or is
    writing, the last layer's hidden states (docs/engines.md)."""
    hidden_states: str | None = None
    """For the engine "hidden-states": the folder that they are written to; `$NAME` is replaced from the environment."""
    hidden_states_wait: float = Field(0.0, ge=0)
    """Seconds to wait for a file of theirs that is not there yet, where they are written while the cache is built."""
    hidden_states_delete: bool = False
    """Delete each file once what it gives is committed, where the disk cannot hold them all."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.tensor_parallel > 1 and self.device_map is not None:
            raise ValueError("give `device_map` (one process) or `tensor_parallel` (several), not both")
        if self.tensor_parallel > 1 and self.quantization is not None:
            raise ValueError("`quantization` works with `device_map`, not with `tensor_parallel`")
        if self.device_map is None and (self.max_memory or self.offload_folder):
            raise ValueError("`max_memory` and `offload_folder` belong to `device_map`, which is not given")
        if (self.engine == "hidden-states") != (self.hidden_states is not None):
            raise ValueError('`engine = "hidden-states"` and `hidden_states`, the folder, go together')
        if self.hidden_states is None and (self.hidden_states_wait or self.hidden_states_delete):
            raise ValueError("`hidden_states_wait` and `hidden_states_delete` belong to `hidden_states`")
        ways = self.device_map, self.quantization, self.attn_implementation, self.tensor_parallel > 1
        if self.hidden_states and any(ways):
            raise ValueError(
                "`device_map`, `quantization`, `attn_implementation` and `tensor_parallel` say how transformers runs "
                'layers, of which `engine = "hidden-states"` runs none'
            )
        return self

    def as_trained(self) -> ModelConfig:
        """Return the model without what only says how the cache's builder loads it."""
        return ModelConfig.model_validate(self.model_dump(include=set(ModelConfig.model_fields)))


class CacheConfig(Section):
    path: str | None = None
    """Folder or fsspec URL of the cache; `<output_dir>/cache` unless given."""
    top_k: int = Field(12, ge=0)
    """Tokens stored per position at most."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Store only the smallest prefix of the top-k that holds this much probability."""
    tail_samples: int = Field(8, ge=0)
    """Tokens drawn from the tail per position; 0 draws none."""
    tail_blocks: int = Field(24, ge=0, le=1024)
    """Blocks of token ids in each of which the tail's mass is stored, a byte each; 0 keeps only its whole mass."""
    tail_steps_per_nat: int = Field(2, ge=2, le=32)
    """The log of a block's share of the tail is rounded to this part of a nat."""
    logp_steps_per_nat: int = Field(128, ge=16, le=4096)
    """Log-probabilities are rounded to this part of a nat; the KL error is at most 1 / (8 · steps²)."""
    probe_sequences: int = Field(512, ge=1)
    """Sequences on which checkpoints and student are compared to choose the schedule."""
    probe_top_k: int = Field(256, ge=1)
    """Tokens per probe position on whose shared ids they are compared."""
    shard_positions: int = Field(65536, ge=1)
    """Positions of one shard: one file, one commit, one unit of work."""
    chunk_positions: int = Field(4096, ge=1)
    """Positions of one inner chunk: the least that is read."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens, padding included, of one forward pass while building; unless given, what suits the device, and for a
    checkpoint that was begun what it was begun with."""
    packing: bool = False
    """Put several sequences into a row, kept apart, instead of padding; refused for families that would mix them."""
    local_copy: str | None = None
    """Where `path` is a URL: folder of this machine for chunks that training has read; `<output_dir>/cache-copy` unless
    given. Runs may share it."""
    local_copy_bytes: int = Field(8 << 30, ge=0)
    """What that folder may take of the disk; 0 reads every chunk from the store each time."""

    @field_validator("top_k")
    @classmethod
    def _some_slots(cls, top_k: int) -> int:
        if top_k == 0:
            raise ValueError(
                "0 would keep tail samples alone, which serve forward KL only and are learned by heart "
                "(docs/targets.md); keep at least 1 token"
            )
        return top_k

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.shard_positions % self.chunk_positions:
            raise ValueError("`shard_positions` must be a multiple of `chunk_positions`")
        return self


class CacheExperiment(Section):
    """What building a cache needs of an experiment."""

    run: RunConfig
    data: DataConfig
    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    teacher: TeacherConfig
    cache: CacheConfig = CacheConfig()

    @model_validator(mode="after")
    def _layers_are_run(self) -> Self:
        if self.cache.packing and self.teacher.hidden_states:
            raise ValueError('`cache.packing` is for layers, of which teacher.engine = "hidden-states" runs none')
        return self

    @property
    def output_dir(self) -> Path:
        return Path(self.run.output_dir)

    @property
    def cache_url(self) -> str:
        """Folder or fsspec URL of the cache."""
        return expand(self.cache.path) if self.cache.path else str(self.output_dir / "cache")

    @property
    def local_copy(self) -> tuple[Path, int] | None:
        """Folder and bytes of what is kept of a cache at a URL, as `open_cache` takes them."""
        folder = expand(self.cache.local_copy) if self.cache.local_copy else self.output_dir / "cache-copy"
        return (Path(folder), self.cache.local_copy_bytes) if self.cache.local_copy_bytes else None


E_ = TypeVar("E_", bound=CacheExperiment)


def load_experiment(schema: type[E_], path: str | Path, overrides: tuple[str, ...] = ()) -> E_:
    """Read a TOML experiment into `schema`, after `section.key=value` overrides (values as in TOML; else a string).

    Raises:
        MissingError: there is no such file.
        ConfigError: not TOML, or not of the schema; the message lists every offending key with its path.
    """
    path = Path(path)
    if not path.is_file():
        there = "a folder or device, expected a file" if path.exists() else "no such file"
        raise MissingError(f"config {path}: {there}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a BOM first
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and brackets without end
        raise ConfigError(f"config {path} is not valid TOML: {error}") from None
    return make_experiment(schema, values, overrides, f"config {path}")


def make_experiment(schema: type[E_], values: dict[str, Any], overrides: tuple[str, ...], what: str) -> E_:
    """Make an experiment of what a TOML file would hold, after overrides; `values` is changed.

    Raises:
        ConfigError: it does not fit the schema; the message names `what`.
    """
    for override in overrides:
        apply_override(values, override)
    if (where := nul_in(values)) is not None:
        raise ConfigError(f"{what}: {where} holds a NUL character, which no path and no text may; take it out")
    for where in secrets_in(values):
        raise ConfigError(
            f"{what}: {where} holds a secret, which config.toml in the run folder would keep; put it into an "
            "environment variable and write $NAME there, or leave it to the library's own variables such as HF_TOKEN"
        )
    try:
        return schema.model_validate(values, strict=True)
    except ValidationError as error:
        problems = [f"  {_problem(details)}" for details in error.errors()]
        raise ConfigError(f"{what} does not fit:\n" + "\n".join(problems)) from None


def save_experiment(experiment: BaseModel, path: str | Path) -> None:
    """Write every setting, defaults included, as TOML that `load_experiment` reads back to the same experiment."""
    check_named_in_utf8(path := Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, tomli_w.dumps(experiment.model_dump(exclude_none=True, mode="json")))


def expand(path: str) -> str:
    """Replace `$NAME` and `~` in a path from a config.

    Raises:
        ConfigError: a variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded:
        raise ConfigError(f"path {path!r} names an environment variable that is not set; set it or write the path out")
    return expanded


def _problem(details: Any) -> str:
    """Say what is wrong with which key."""
    location, cause = ".".join(map(str, details["loc"])), details.get("ctx", {}).get("error")
    if isinstance(cause, InvalidKeyError):
        return f"{location}.{cause.key}: {cause.reason}"
    if details["type"] == "extra_forbidden":
        return f"{location}: unknown key; `footsteps config` lists those there are"
    if details["type"] == "missing":
        return f"{location}: required, but not given"
    if cause is not None:
        return f"{location}: {cause}"
    return f"{location}: {details['msg']}, got {details['input']!r}"

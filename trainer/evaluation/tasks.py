"""How the answers to a task are read and scored; a user's `[tasks.NAME]` section overrides it, setting by setting.

    kind              parser   metrics, the primary one first
    classification    choice   accuracy  macro_f1  kappa
    multiple_choice   letter   accuracy  macro_f1  kappa
    entities          list     entity_f1  entity_precision  entity_recall  partial_f1  exact_f1
    exact             line     exact_match  token_f1
    text              text     token_f1  exact_match

Unless a section or the table of known tasks says more, rows with choices are classification, rows whose answer is a
list are entities, and all others are exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from cache_builder.config import Section
from cache_builder.data.examples import Example, named
from cache_builder.errors import ConfigError, DataError
from trainer.evaluation.answers import Answer, ParserName, labels_of, parse
from trainer.evaluation.metrics import EntityMetric, MetricName

Kind = Literal["classification", "multiple_choice", "entities", "exact", "text"]
Method = Literal["generate", "likelihood"]
HarnessName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}$")]
"""Also the name of the file that its results are in."""


class TaskConfig(Section):
    """A task by its name in the data's `task` column; what is not given follows from `kind`."""

    kind: Kind | None = None
    """What an answer is: one of the choices' texts, a choice's letter, a list of entities, a line, or any text."""
    choices: list[str] | None = Field(None, min_length=2)
    """The answers to choose from, where the rows do not carry their own."""
    parser: ParserName | None = None
    """How an answer is found in the model's output."""
    metrics: list[MetricName] | None = Field(None, min_length=1)
    """What is reported; the first is the primary metric."""
    method: Method | None = None
    """Write an answer, or compare the likelihoods of the choices; `evaluate.method` unless given."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Tokens of an answer at most; `evaluate.max_new_tokens` unless given."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.metrics and len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics has duplicates: {self.metrics}")
        if self.choices and self.kind in ("entities", "exact", "text"):
            raise ValueError(f"a task of kind {self.kind} has no choices")
        return self


class EvaluateConfig(Section):
    """How the test examples are answered and judged."""

    batch_size: int = Field(32, ge=1)
    """Prompts that are answered at once."""
    max_new_tokens: int = Field(64, ge=1)
    """Tokens of an answer at most, where the task does not say."""
    method: Method = "generate"
    """For tasks with choices: write an answer, or take the choice with the highest probability."""
    bootstrap_samples: int = Field(1000, ge=1)
    """Resamples of the test rows behind each 95 % interval."""
    base: bool = False
    """Judge the teacher's and the student's models as they are before any training here, too."""
    harness: list[HarnessName] = Field([])
    """Tasks, groups or tags of lm-evaluation-harness, which the student's base, the teacher and the students are run
    on, to see what they have forgotten; needs `footsteps[harness]`."""
    harness_path: str | None = None
    """Folder of your own tasks for it, as YAML; `$NAME` is replaced from the environment."""
    harness_limit: int | None = Field(None, ge=1)
    """Rows of each of its tasks at most, the first ones."""
    harness_chat_template: bool = False
    """Put its prompts into the chat template, a turn of the user each."""

    @model_validator(mode="after")
    def _harness(self) -> Self:
        if len(set(self.harness)) < len(self.harness):
            raise ValueError(f"harness has duplicates: {self.harness}")
        if not self.harness and (self.harness_path or self.harness_limit or self.harness_chat_template):
            raise ValueError("`harness_path`, `harness_limit` and `harness_chat_template` belong to `harness`")
        return self

    def own_tasks(self) -> dict[str, Any]:
        """Return the settings that the answers to the run's own tasks depend on."""
        others = {name for name in type(self).model_fields if name.startswith("harness")}
        return self.model_dump(exclude={"base", *others})


@dataclass(frozen=True)
class Task:
    """Everything that judging a task needs."""

    name: str
    kind: Kind
    parser: ParserName
    metrics: tuple[MetricName, ...]
    choices: tuple[str, ...] = ()
    method: Method | None = None
    max_new_tokens: int | None = None

    def labels(self, example: Example) -> list[str]:
        """Return the answers that a row can have; empty where they are free."""
        return labels_of(self.parser, example.get("choices") or self.choices)

    def read(self, output: str, example: Example) -> Answer | None:
        """Return the answer in a model's output, or None."""
        return parse(self.parser, output, example.get("choices") or self.choices)

    def gold(self, example: Example) -> Answer:
        """Return a row's right answer.

        Raises:
            DataError: there is none, or it is not one of the row's choices, or not a list where entities are asked for.
        """
        if "text" in example:
            raise DataError(f"task {self.name!r}: {named(example)} is a `text`, which has no answer to judge")
        answer: Answer | None = example.get("answer")
        if answer is None:
            answer = example["messages"][-1]["content"].strip()
            if not answer:
                raise DataError(
                    f"task {self.name!r}, {named(example)}: its last turn calls tools and says nothing, which no "
                    "metric judges; give the row an `answer`, what the model has to write, or remove the row"
                )
        if self.kind == "entities" and isinstance(answer, str):
            answer = parse("list", answer)
        labels = self.labels(example)
        if answer is None or (labels and answer not in labels):
            expected = f"one of {labels}" if labels else "a list literal such as ['a', 'b']"
            got = example.get("answer", example["messages"][-1]["content"])
            raise DataError(f"task {self.name!r}, {named(example)}: expected {expected} as the answer, got {got!r}")
        return answer


DEFAULTS: dict[Kind, tuple[ParserName, tuple[MetricName, ...]]] = {
    "classification": ("choice", ("accuracy", "macro_f1", "kappa")),
    "multiple_choice": ("letter", ("accuracy", "macro_f1", "kappa")),
    "entities": ("list", ("entity_f1", "entity_precision", "entity_recall", "partial_f1", "exact_f1")),
    "exact": ("line", ("exact_match", "token_f1")),
    "text": ("text", ("token_f1", "exact_match")),
}

_CHOICE = TaskConfig(kind="multiple_choice", max_new_tokens=8)
_ORDERED_CHOICE = TaskConfig(kind="multiple_choice", metrics=["accuracy", "macro_f1", "kappa_linear"], max_new_tokens=8)
_ENTITIES = TaskConfig(kind="entities", metrics=[*DEFAULTS["entities"][1], "partial_f1_official"], max_new_tokens=512)
KNOWN: dict[str, dict[str, TaskConfig]] = {
    "jmed-llm": {
        "jmmlu_med": _CHOICE,
        "crade": _ORDERED_CHOICE,
        "rrtnm": _CHOICE,
        "smdis": _CHOICE,
        "jcsts": _ORDERED_CHOICE,
        "nrner": _ENTITIES,
        "crner": _ENTITIES,
        "rrner": _ENTITIES,
        "mrner_disease": _ENTITIES,
        "mrner_medicine": _ENTITIES,
    },
    "pubmedqa": {"pubmedqa": TaskConfig(kind="classification", max_new_tokens=8)},
}
"""By source, the tasks of which more is known than their rows tell."""


def resolve_tasks(examples: Sequence[Example], source: str, configs: Mapping[str, TaskConfig]) -> dict[str, Task]:
    """Return how each task of the examples is judged, by name in order of appearance.

    Raises:
        ConfigError: a section names a task that no example has, or its settings do not fit together.
    """
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example["task"], example)
    for name in configs:
        if name not in first:
            raise ConfigError(f"[tasks.{name}]: no test example is of this task; there are {sorted(first)}")
    return {name: _resolve(name, example, source, configs) for name, example in first.items()}


def check_answers(examples: Sequence[Example], source: str, configs: Mapping[str, TaskConfig]) -> dict[str, Task]:
    """Resolve the tasks of examples and look at each answer, which would else be done where models are judged.

    Raises:
        ConfigError: as `resolve_tasks`.
        DataError: an example has no right answer, or one that does not fit its task.
    """
    tasks = resolve_tasks(examples, source, configs)
    for example in examples:
        tasks[example["task"]].gold(example)
    return tasks


def _resolve(name: str, example: Example, source: str, configs: Mapping[str, TaskConfig]) -> Task:
    known, own = KNOWN.get(source, {}).get(name, TaskConfig()), configs.get(name, TaskConfig())
    has_choices = bool(example.get("choices") or own.choices)
    kind = own.kind or known.kind or _kind(example, has_choices)
    parser, metrics = DEFAULTS[kind]
    if kind == known.kind:
        metrics = tuple(known.metrics or metrics)
    task = Task(
        name,
        kind,
        own.parser or parser,
        tuple(own.metrics or metrics),
        tuple(own.choices or ()),
        own.method or known.method,
        own.max_new_tokens or known.max_new_tokens,
    )
    if kind in ("classification", "multiple_choice") and not has_choices:
        raise ConfigError(f"[tasks.{name}] is of kind {kind}, but neither it nor its rows have choices; give `choices`")
    if kind not in ("classification", "multiple_choice"):
        if task.method == "likelihood":
            raise ConfigError(f'[tasks.{name}]: method = "likelihood" compares choices; a task of kind {kind} has none')
        task = replace(task, method="generate")
    _check_metrics(task)
    return task


def _kind(example: Example, has_choices: bool) -> Kind:
    if has_choices:
        return "classification"
    return "entities" if isinstance(example.get("answer"), list) else "exact"


def _check_metrics(task: Task) -> None:
    unfit: dict[str, set[str]] = {
        "entities": {"accuracy", "macro_f1", "kappa", "kappa_linear"},
        "exact": {*get_args(EntityMetric), "exact_f1", "partial_f1_official"},
    }
    for metric in task.metrics:
        if metric in unfit.get(task.kind, unfit["exact"]):
            raise ConfigError(f"[tasks.{task.name}]: the metric {metric!r} does not fit a task of kind {task.kind}")

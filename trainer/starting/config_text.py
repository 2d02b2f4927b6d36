"""What `footsteps init` found → a short TOML file, each setting with what was found behind it.

[text]
max_length = 96          # of 500 rows half have ≤ 38 tokens, 90 % ≤ 61, the longest 83
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from cache_builder.errors import printable
from trainer.evaluation.tasks import TaskConfig
from trainer.starting.models import Lengths, ModelFacts
from trainer.starting.rows import Found

LINE = 110
ANSWER_TOKENS = 512
"""Tokens of an answer at most, unless the user says more."""
METHODS = {
    "sft": "the control: as many steps without a teacher",
    "td": "taught in every stage by the checkpoint with the lowest held-out loss (distill.best)",
    "reach": "taught in each stage by the checkpoint that is good and within the student's reach",
}
""""Which method?" of docs/methods.md: what to begin with, and why."""


@dataclass(frozen=True)
class Findings:
    """All that a first config says."""

    train: str
    output_dir: str
    rows: Found
    counts: dict[str, int]
    """Rows by split."""
    teacher: ModelFacts
    student: ModelFacts
    trained_vocabulary: int | None
    """Size of the tokenizer that is to be trained, where neither model has one."""
    template: dict[str, str]
    """Settings of `[text]` with which every sampled row is rendered."""
    lengths: Lengths
    tasks: dict[str, TaskConfig]
    checkpoints: tuple[str, ...] = ()
    """Folders of the teacher's fine-tuning where that is done, oldest first."""
    tokenizer_path: str | None = None
    """The checkpoint whose folder has the tokenizer and the template of that fine-tuning."""
    adapters: str | None = None
    """Why adapters of the teacher are fine-tuned, and not its weights, where they are."""

    @property
    def max_length(self) -> int:
        return self.lengths.max_length([self.teacher.positions, self.student.positions])

    def notes(self) -> list[str]:
        """Return what is said of the rows, a line each."""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        notes = [f"rows: {self.rows.what}; {counts}"]
        if self.rows.unused:
            notes.append(f"columns that nothing uses: {', '.join(self.rows.unused)}")
        if "ignore_keys" in self.rows.settings:
            notes.append(f"keys that nothing uses: {', '.join(self.rows.settings['ignore_keys'])}")
        for name, task in self.tasks.items():
            kind = f"a choice of {len(task.choices)}" if task.choices else f"judged as {task.kind or 'exact answers'}"
            notes.append(f"task {name}: {kind}")
        notes.append(f"tokens: {_lengths(self)}")
        return notes if self.adapters is None else [*notes, f"teacher: {self.adapters}"]


def config_text(found: Findings) -> str:
    """Return the TOML file."""
    lines = [
        *_heading(found),
        *_section("run", [("output_dir", found.output_dir, "everything that the commands make lies here")]),
        *_data(found),
        *_text(found),
        *_tokenizer(found),
        *_model("teacher", found.teacher, [_checkpoints(found)]),
        *_adapters(found),
        *_model("student", found.student, []),
        *_training(found),
        *(line for name, task in found.tasks.items() for line in _task(name, task)),
        *_section("evaluate", [("max_new_tokens", _answer_tokens(found.lengths), "of an answer at most")]),
    ]
    return "\n".join(lines).strip() + "\n"


def _heading(found: Findings) -> list[str]:
    return [
        *_comment(f"Written by `footsteps init` for {found.train}."),
        "# `footsteps plan` says what it will take, `footsteps run` runs it, `footsteps config` lists every setting.",
    ]


def _data(found: Findings) -> list[str]:
    own = {key: value for key, value in found.rows.settings.items() if key not in ("rows", "ignore_keys")}
    counts = ", ".join(f"{count:,} {split}" for split, count in found.counts.items())
    lines = ["", "[data]", *_comment(f"{found.rows.what}: {counts} rows"), *_settings(own)]
    if "ignore_keys" in found.rows.settings:
        lines += _setting("ignore_keys", found.rows.settings["ignore_keys"], "keys that rows have and nothing uses")
    for name, task in found.rows.settings.get("rows", {}).items():
        lines += ["", f"[data.rows.{name}]", *_settings(task)]
    if found.rows.unused:
        lines += _comment(f"columns that nothing uses: {', '.join(found.rows.unused)}")
    return lines


def _text(found: Findings) -> list[str]:
    longer = sum(length > found.max_length for length in found.lengths.sequences) / len(found.lengths.sequences)
    cut = f"; {longer:.0%} are longer and lose the middle of their prompts" if longer else ""
    why = {
        "chat_template": "the tokenizer has no template",
        "train_on": "the template renders an earlier answer otherwise once the next turn is there",
    }
    template = [(key, value, why[key]) for key, value in found.template.items()]
    return _section("text", [*template, ("max_length", found.max_length, f"{_lengths(found)}{cut}")])


def _lengths(found: Findings) -> str:
    lengths = found.lengths
    return (
        f"of {len(lengths.sequences)} rows half have ≤ {lengths.at(0.5)} tokens, 90 % ≤ {lengths.at(0.9)}, "
        f"the longest {lengths.sequences[-1]}"
    )


def _tokenizer(found: Findings) -> list[str]:
    if found.tokenizer_path is not None:
        return _section("tokenizer", [("path", found.tokenizer_path, "that of the checkpoints, with their template")])
    if found.trained_vocabulary is None:
        return []
    why = "no model has a tokenizer, so one is trained on the training text"
    return _section("tokenizer", [("train_vocab_size", found.trained_vocabulary, why)])


def _model(role: str, model: ModelFacts, more: list[tuple[str, Any, str]]) -> list[str]:
    comment = "" if model.has_weights else "a config alone: its weights start from random numbers"
    settings: list[tuple[str, Any, str]] = [("model", model.location, comment)]
    if model.has_weights and model.dtype in ("bfloat16", "float16"):
        settings.append(("dtype", "bfloat16", f"what it computes in; its weights are saved in {model.dtype}"))
    return _section(role, [*settings, *more])


def _checkpoints(found: Findings) -> tuple[str, Any, str]:
    if found.checkpoints:
        return "checkpoints", list(found.checkpoints), "fine-tuned already, oldest first"
    return "checkpoints", 4, "kept of its fine-tuning, evenly spaced"


def _adapters(found: Findings) -> list[str]:
    if found.adapters is None:
        return []
    return ["", "[teacher.lora]", *_comment(found.adapters), *_setting("r", 16, "rank of the adapters")]


def _training(found: Findings) -> list[str]:
    """Return learning rates: the defaults are for models that have been trained, and for whole weights."""
    rates, kinds = {}, {}
    for role, model in (("teacher", found.teacher), ("student", found.student)):
        rates[role] = 5e-5 if model.has_weights else 3e-3
        kinds[role] = "" if model.has_weights else "for random weights"
    if found.adapters is not None:
        rates["teacher"], kinds["teacher"] = 2e-4, "adapters take more than whole weights do"
    lines = []
    for role in ("student",) if found.checkpoints else ("teacher", "student"):
        rate = ("learning_rate", rates[role], kinds[role])
        lines += _section(f"sft.{role}", [rate, ("num_train_epochs", 3, "")])
    settings = [
        ("seeds", [0], "a student for each; three show how much is chance"),
        ("learning_rate", rates["student"], kinds["student"]),
        ("epochs_per_stage", 2, "for each checkpoint; raise it until held-out losses stop falling"),
        ("alpha", 0.5, "the teacher's share of the loss; ¾ or 1 where answers may be wrong"),
    ]
    several = len(found.checkpoints) != 1  # with one checkpoint reach is td
    methods = [f"  {f'{_toml(name)},':<8} # {why}" for name, why in METHODS.items() if name != "reach" or several]
    return [
        *lines,
        "",
        "[distill]",
        "methods = [",
        *methods,
        "]",
        *(line for each in settings for line in _setting(*each)),
    ]


def _task(name: str, task: TaskConfig) -> list[str]:
    settings: list[tuple[str, Any, str]] = []
    if task.kind is not None:
        settings.append(("kind", task.kind, "answers are long: judged by the words that they share"))
    if task.choices:
        settings.append(("choices", task.choices, f"the {len(task.choices)} answers that occur"))
    return _section(f"tasks.{_key(name)}", settings) if settings else []


def _answer_tokens(lengths: Lengths) -> int:
    """Return the longest answer's tokens, a quarter more, in steps of eight."""
    return min(ANSWER_TOKENS, -(-lengths.completions[-1] * 5 // 4 // 8) * 8 + 8)


def _section(name: str, settings: Sequence[tuple[str, Any, str]]) -> list[str]:
    """Return a TOML section, each setting with its comment behind it."""
    return ["", f"[{name}]", *(line for setting in settings for line in _setting(*setting))]


def _settings(values: Mapping[str, Any]) -> list[str]:
    return [line for key, value in values.items() for line in _setting(key, value, "")]


def _setting(key: str, value: Any, comment: str) -> list[str]:
    if not isinstance(value, list):
        written = _toml(value)
    else:
        items = [_toml(item) for item in value]
        written = f"[{', '.join(items)}]"
        if len(written) > LINE:
            return [*_comment(comment), f"{key} = [", *_rows(items), "]"]
    line = f"{key} = {written}"
    if not comment:
        return [line]
    return [f"{line:<40} {_comment(comment)[0]}"] if len(comment) < LINE - 40 else [*_comment(comment), line]


def _rows(items: Sequence[str]) -> list[str]:
    """Return a long list's lines, broken between items alone: an item may hold a space."""
    lines = [" "]
    for item in items:
        if len(lines[-1]) + len(item) > LINE:
            lines.append(" ")
        lines[-1] += f" {item},"
    return lines


def _comment(text: str) -> list[str]:
    """Return a comment's lines; a name from the data ends none of them early."""
    return [f"# {line}" for line in textwrap.wrap(" ".join(printable(text).split()), LINE)]


def _toml(value: Any) -> str:
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _key(name: str) -> str:
    """Return a name as a TOML key, quoted where it must be."""
    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")

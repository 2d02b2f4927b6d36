"""Tasks: what the rows tell, what a user's section overrides, how answers are read, and what is refused."""

import pytest
from pydantic import ValidationError

from cache_builder.data.examples import Example
from cache_builder.data.sources import turns
from cache_builder.errors import ConfigError, DataError
from trainer.evaluation.answers import LIST_LIMIT_CHARACTERS, ParserName, parse
from trainer.evaluation.tasks import TaskConfig, check_answers, resolve_tasks


def row(text: str = "skin", **extra: object) -> Example:
    example: Example = {"id": "r", "task": "t", "messages": turns("question", text)}
    return {**example, **extra}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "parser, output, choices, expected",
    [
        ("letter", "A", ["x", "y"], "A"),
        ("letter", "答えはBです", ["x", "y"], "B"),
        ("letter", "Ｂ", ["x", "y"], None),
        ("letter", "b", ["x", "y"], None),
        ("letter", "Correct: A", ["x", "y"], "C"),
        ("letter", "G", ["x"] * 7, "G"),
        ("choice", " Skin. ", ["skin", "lungs"], "skin"),
        ("choice", "no severe  pain at all", ["no", "no severe pain"], "no severe pain"),
        ("choice", "skinny", ["skin", "lungs"], None),
        ("choice", "the skin", ["skin", "lungs"], None),
        ("list", "['a', 'b']", (), ["a", "b"]),
        ("list", "  ['a']\nthat is all", (), ["a"]),
        ("list", "[]", (), []),
        ("list", "[1, 'b']", (), ["1", "b"]),
        ("list", "['a', 'b'", (), None),
        ("list", "('a', 'b')", (), None),
        ("list", "[['a']]", (), None),
        ("list", "[__import__('os').getcwd()]", (), None),
        ("list", r"['\d']", (), ["\\d"]),
        ("list", "[" * 3000, (), None),
        ("list", "[" + "1," * LIST_LIMIT_CHARACTERS + "]", (), None),
        ("list", "['\0']", (), None),
        ("line", "\n 24 mg \nmore", (), "24 mg"),
        ("line", " \n ", (), None),
        ("text", " one\ntwo ", (), "one\ntwo"),
        ("text", "", (), None),
    ],
)
def test_answers_are_read_from_outputs(
    parser: ParserName, output: str, choices: list[str], expected: str | list[str] | None
) -> None:
    assert parse(parser, output, choices) == expected


def test_the_kind_follows_from_the_rows() -> None:
    rows = [row(), row(choices=["skin", "lungs"]), row("['a']", answer=["a"])]
    for name, example in zip(("exact", "classification", "entities"), rows, strict=True):
        assert resolve_tasks([example], "files", {})["t"].kind == name


def test_a_section_overrides_what_the_rows_and_the_source_say() -> None:
    letters = row("A", choices=["skin", "lungs"], task="crade")
    assert resolve_tasks([letters], "jmed-llm", {})["crade"].metrics == ("accuracy", "macro_f1", "kappa_linear")
    own = {"crade": TaskConfig(metrics=["kappa"], max_new_tokens=3)}
    task = resolve_tasks([letters], "jmed-llm", own)["crade"]
    assert (task.kind, task.metrics, task.max_new_tokens) == ("multiple_choice", ("kappa",), 3)
    assert resolve_tasks([letters], "jmed-llm", {"crade": TaskConfig(kind="text")})["crade"].metrics[0] == "token_f1"


def test_choices_can_come_from_the_section() -> None:
    task = resolve_tasks([row()], "files", {"t": TaskConfig(choices=["skin", "lungs"])})["t"]
    assert task.kind == "classification" and task.labels(row()) == ["skin", "lungs"]
    assert task.read("Lungs", row()) == "lungs"


def test_gold_is_the_answer_or_else_the_last_turn() -> None:
    exact = resolve_tasks([row()], "files", {})["t"]
    assert exact.gold(row(" skin\n")) == "skin"
    assert exact.gold(row("other", answer="skin")) == "skin"
    entities = resolve_tasks([row()], "files", {"t": TaskConfig(kind="entities")})["t"]
    assert entities.gold(row("['a', 'b']")) == ["a", "b"]


def test_every_rows_answer_is_looked_at_before_anything_is_trained() -> None:
    choices = {"t": TaskConfig(choices=["skin", "lungs"])}
    with pytest.raises(DataError, match=r"task 't', .*'second': expected one of .*'lungs'.* got 'heart'"):
        check_answers([row(), row("heart", id="second")], "files", choices)
    call = row("")
    call["messages"][-1]["tool_calls"] = [{"type": "function", "function": {"name": "now", "arguments": {}}}]
    with pytest.raises(DataError, match=r"'r': its last turn calls tools and says nothing.*give the row an `answer`"):
        check_answers([row(), call], "files", {})
    assert check_answers([row(), {**call, "answer": "now()"}], "files", {})["t"].kind == "exact"


def test_gold_that_does_not_fit_the_task_is_refused_with_the_row() -> None:
    task = resolve_tasks([row(choices=["lungs", "heart"])], "files", {})["t"]
    with pytest.raises(DataError, match=r"task 't', example 'r': expected one of \['lungs', 'heart'\].* got 'skin'"):
        task.gold(row(choices=["lungs", "heart"]))
    entities = resolve_tasks([row()], "files", {"t": TaskConfig(kind="entities")})["t"]
    with pytest.raises(DataError, match="a list literal"):
        entities.gold(row())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "classification"}, "neither it nor its rows have choices"),
        ({"kind": "entities", "metrics": ["kappa"]}, "'kappa' does not fit a task of kind entities"),
        ({"kind": "exact", "metrics": ["partial_f1"]}, "'partial_f1' does not fit a task of kind exact"),
        ({"method": "likelihood"}, "compares choices; a task of kind exact has none"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_tasks([row()], "files", {"t": TaskConfig.model_validate(settings)})


def test_a_section_for_a_task_that_no_row_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[tasks.triage\]: no test example is of this task; there are \['t'\]"):
        resolve_tasks([row()], "files", {"triage": TaskConfig()})


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "guess"},
        {"metrics": ["f1"]},
        {"metrics": ["accuracy", "accuracy"]},
        {"kind": "text", "choices": ["a", "b"]},
        {"choices": ["only"]},
        {"max_tokens": 3},
    ],
)
def test_a_section_is_strict(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TaskConfig.model_validate(settings, strict=True)

"""`footsteps config` says every setting as the file it is set in writes it."""

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from trainer.config import OURS, UNCLEARED, Experiment
from trainer.config_help import Setting, config_sections, describe_config, refused_arguments, type_text
from trainer.methods.methods import BASES

SECTIONS = dict(config_sections(Experiment))


def setting(path: str, name: str) -> Setting:
    return next(each for each in SECTIONS[path] if each.name == name)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (str, "string"),
        (bool | None, "true | false"),
        (Literal["8bit", "4bit"] | None, '"8bit" | "4bit"'),
        (Annotated[int, Field(ge=1)] | Annotated[list[str], Field(min_length=1)], "integer | [string, …]"),
        (dict[str, list[Any]], "{NAME = [any value, …], …}"),
    ],
)
def test_a_type_reads_as_toml_writes_its_values(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text


def test_nothing_of_python_is_in_the_list() -> None:
    types = " ".join(each.type + each.default for settings in SECTIONS.values() for each in settings)
    assert re.findall(r"Annotated|FieldInfo|None|Literal|Union|Optional|True|False|\'", types) == []
    assert max(map(len, re.findall("^ .*", describe_config(), re.MULTILINE))) <= 110


def test_a_section_of_which_there_are_several_has_a_name_of_ones_own() -> None:
    assert {"data.rows.NAME", "tasks.NAME"} <= SECTIONS.keys()
    assert not {"data.rows", "tasks"} & SECTIONS.keys()


def test_what_only_a_student_may_set_is_not_listed_for_a_teacher() -> None:
    assert [each.name for each in SECTIONS["student.lora"] if each not in SECTIONS["teacher.lora"]] == ["merge"]


def test_a_setting_that_is_one_of_a_few_lists_them() -> None:
    assert setting("shrink", "by").type == '"ends" | "influence" | "loss"'
    meaning = setting("distill", "methods").meaning
    assert all(f" {name}," in meaning for name in BASES) and "+aw" in meaning and ".py" not in meaning


def test_what_is_refused_of_training_arguments_stands_at_the_end_with_what_to_set_instead() -> None:
    refused = {name: instead for names, instead in refused_arguments() for name in names}
    assert len(refused) == len(OURS) + len(UNCLEARED) + 1
    assert refused["save_strategy"] == "set save_steps"
    assert refused["num_train_epochs in [distill]"] == "set epochs_per_stage"
    listed = " ".join(describe_config().rpartition("TrainingArguments as well")[2].split())
    assert all(f"{name}" in listed for name in refused) and "launch with FSDP or DDP" in listed

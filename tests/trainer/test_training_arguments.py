import dataclasses
import sys
import typing

import pytest
from pydantic import TypeAdapter, ValidationError
from transformers import SchedulerType, TrainingArguments

from trainer.training_arguments import argument_types, scheduler_names

VALUES = [True, 3, 0.5, "fused", None, ["q_proj"], {"skip": True}, "x"]


def accepts(kind: object, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def test_the_source_has_the_fields_of_the_class_and_no_other() -> None:
    assert list(argument_types()) == [field.name for field in dataclasses.fields(TrainingArguments)]


def test_each_field_takes_and_refuses_what_the_classs_own_type_does() -> None:
    hints = typing.get_type_hints(TrainingArguments)
    for name, kind in argument_types().items():
        if name not in ("parallelism_config", "debug"):  # a class and an enumeration of transformers' own
            assert [accepts(kind, value) for value in VALUES] == [accepts(hints[name], value) for value in VALUES], name


def test_the_source_has_the_schedulers_of_the_class_and_no_other() -> None:
    assert scheduler_names() == [each.value for each in SchedulerType]


def test_without_transformers_its_fields_are_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    argument_types.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises((ModuleNotFoundError, ValueError)):
        argument_types()

"""Every setting with its type, default and meaning, made from the schema itself, as the file it is set in writes them.

[teacher]
checkpoints: integer | [string, …], default 4
    How many evenly spaced checkpoints our own fine-tuning saves, or …
"""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cache_builder.config import Section
from trainer.config import OURS, UNCLEARED, DistillConfig, Experiment, SftConfig, StudentSftConfig, TrainingConfig

WIDTH = 110
SCALARS = {str: "string", int: "integer", float: "number", bool: "true | false", Any: "any value"}

TRAINING: dict[str, type[TrainingConfig]] = {
    "sft.teacher": SftConfig,
    "sft.student": StudentSftConfig,
    "distill": DistillConfig,
}
OTHERS = (
    "[sft.teacher], [sft.student] and [distill] take every other field of transformers' TrainingArguments as well, by "
    "its own name, but refuse these:"
)


@dataclass(frozen=True)
class Setting:
    """One key of a section."""

    name: str
    type: str
    default: str
    """"required", "optional" or "default …"."""
    meaning: str


def describe_config() -> str:
    """Return all settings as text, section by section, in the notation of the file they are set in."""
    lines = []
    for path, settings in config_sections(Experiment):
        lines += [f"\n[{path}]"] if path else []
        for setting in settings:
            lines += [f"{setting.name}: {setting.type}, {setting.default}", *_indented(setting.meaning)]
    lines += ["", *textwrap.wrap(OTHERS, WIDTH)]
    for names, instead in refused_arguments():
        lines += [*textwrap.wrap(", ".join(names), WIDTH), *_indented(instead)]
    return "\n".join(lines)


def refused_arguments() -> list[tuple[list[str], str]]:
    """Return fields of TrainingArguments that a section that trains does not take, each with what to do instead.

    A field that another of these sections has for its own names those that refuse it.
    """
    found: dict[str, list[str]] = {}
    for name, instead in OURS.items():
        refusing = [path for path, section in TRAINING.items() if name not in section.model_fields]
        where = "" if len(refusing) == len(TRAINING) else f" in {' and '.join(f'[{path}]' for path in refusing)}"
        found.setdefault(f"set {instead}", []).append(f"{name}{where}")
    optimizers = [f'optim = "{name}"' for name in (*UNCLEARED, "…_layerwise")]
    return [*((names, instead) for instead, names in found.items()), (optimizers, "set another: it cannot be cleared")]


def config_sections(schema: type[BaseModel], path: str = "") -> Iterator[tuple[str, list[Setting]]]:
    """Yield each section that has settings of its own by its path, such as "sft.teacher" or "tasks.NAME"."""
    found = {name: _section_of(field) for name, field in schema.model_fields.items()}
    own = {name: field for name, field in schema.model_fields.items() if found[name] is None}
    own = {name: field for name, field in own.items() if not _is_fixed(field)}
    if own:
        yield path, [_setting(name, field) for name, field in own.items()]
    for name, section in found.items():
        if section is not None:
            key = f"{name}.NAME" if get_origin(schema.model_fields[name].annotation) is dict else name
            yield from config_sections(section, f"{path}.{key}" if path else key)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4)


def _setting(name: str, field: FieldInfo) -> Setting:
    default = "required"
    if not field.is_required():
        default = "optional" if field.default is None else f"default {json.dumps(field.default, ensure_ascii=False)}"
    return Setting(name, type_text(field.annotation), default, " ".join((field.description or "").split()))


def _section_of(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field is, or may be."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _is_fixed(field: FieldInfo) -> bool:
    """Say whether a field has one value, so that there is nothing to set."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def type_text(annotation: Any) -> str:
    """Return a type as TOML writes its values; that a setting may be left out, its default says."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(parts[0])
    if origin is Literal:
        return " | ".join(json.dumps(part) for part in parts)
    if origin in (Union, UnionType):
        return " | ".join(type_text(part) for part in parts if part is not type(None))
    if origin is list:
        return f"[{type_text(parts[0])}, …]"
    if origin is dict:
        return f"{{NAME = {type_text(parts[1])}, …}}"
    return SCALARS[annotation]

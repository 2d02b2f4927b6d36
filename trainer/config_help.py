"""Every setting with its type, default and meaning, made from the schema itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cache_builder.config import Section


@dataclass(frozen=True)
class Setting:
    """One key of a section."""

    name: str
    type: str
    default: str
    """"required", or "default …"."""
    meaning: str


def describe_config(schema: type[BaseModel]) -> str:
    """Return all settings as text, section by section, in the notation of the file they are set in."""
    lines = []
    for path, settings in config_sections(schema):
        lines += [f"\n[{path}]"] if path else []
        for setting in settings:
            lines += [f"{setting.name}: {setting.type}, {setting.default}", f"    {setting.meaning}"]
    return "\n".join(lines)


def config_sections(schema: type[BaseModel], path: str = "") -> Iterator[tuple[str, list[Setting]]]:
    """Yield each section that has settings of its own by its path, such as "sft.teacher"."""
    found = {name: _section_of(field) for name, field in schema.model_fields.items()}
    own = {name: field for name, field in schema.model_fields.items() if found[name] is None}
    if own:
        yield path, [_setting(name, field) for name, field in own.items()]
    for name, section in found.items():
        if section is not None:
            yield from config_sections(section, f"{path}.{name}" if path else name)


def _setting(name: str, field: FieldInfo) -> Setting:
    default = "required" if field.is_required() else f"default {field.default!r}"
    return Setting(name, _type_name(field.annotation), default, field.description or "")


def _section_of(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field is, or may be."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and "[" not in str(annotation) else str(annotation)
    return name.replace("typing.", "").replace("Literal", "one of ")

"""Every setting with its type, default and meaning, made from the schema itself."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cache_builder.config import Section


def describe_config(schema: type[BaseModel]) -> str:
    """Return all settings as text, section by section, in the notation of the file they are set in."""
    return "\n".join(_lines(schema, ""))


def _lines(schema: type[BaseModel], path: str) -> Iterator[str]:
    found = {name: _section_of(field) for name, field in schema.model_fields.items()}
    sections = {name: section for name, section in found.items() if section is not None}
    own = {name: field for name, field in schema.model_fields.items() if name not in sections}
    if path and own:
        yield f"\n[{path}]"
    for name, field in own.items():
        default = "required" if field.is_required() else f"default {field.default!r}"
        yield f"{name}: {_type_name(field.annotation)}, {default}"
        yield f"    {field.description or ''}"
    for name, section in sections.items():
        yield from _lines(section, f"{path}.{name}" if path else name)


def _section_of(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field is, or may be."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and "[" not in str(annotation) else str(annotation)
    return name.replace("typing.", "").replace("Literal", "one of ")

"""Every setting with its type, default and meaning, made from the schema itself."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cache_builder.config import Section


def describe_config(schema: type[BaseModel]) -> str:
    """Return all settings as text, section by section, in the notation of the file they are set in."""
    return "\n".join(_lines(schema, ""))


def _lines(schema: type[BaseModel], path: str) -> Iterator[str]:
    sections = {name: field for name, field in schema.model_fields.items() if _is_section(field)}
    own = {name: field for name, field in schema.model_fields.items() if name not in sections}
    if path and own:
        yield f"\n[{path}]"
    for name, field in own.items():
        default = "required" if field.is_required() else f"default {field.default!r}"
        yield f"{name}: {_type_name(field.annotation)}, {default}"
        yield f"    {field.description or ''}"
    for name, field in sections.items():
        yield from _lines(field.annotation, f"{path}.{name}" if path else name)  # type: ignore[arg-type]


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and "[" not in str(annotation) else str(annotation)
    return name.replace("typing.", "").replace("Literal", "one of ")

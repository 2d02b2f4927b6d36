"""Every setting with its type, default and meaning, made from the schema itself."""

from typing import Any

from pydantic import BaseModel
from rich.table import Table

from cache_builder.config import Section


def describe_config(schema: type[BaseModel]) -> Table:
    """Return a table of all settings, section by section."""
    table = Table("setting", "type", "default", "meaning", title="An experiment's settings", show_lines=False)
    _add_section(table, schema, "")
    return table


def _add_section(table: Table, schema: type[BaseModel], prefix: str) -> None:
    for name, field in schema.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            table.add_section()
            _add_section(table, annotation, f"{prefix}{name}.")
            continue
        value_type = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        value_type = value_type.replace("typing.", "").replace("Literal", "one of ")
        default = "required" if field.is_required() else repr(field.default)
        table.add_row(f"{prefix}{name}", value_type, default, field.description or "")

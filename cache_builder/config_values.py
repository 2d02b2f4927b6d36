"""What a TOML file of settings holds, before any schema: overrides of it, and a character that nothing may hold."""

import tomllib
from typing import Any

from cache_builder.errors import ConfigError

_DEEPEST = 20
"""Names in a key of an override: far more than any setting has, far less than what Python goes down into."""


def nul_in(value: Any, path: str = "") -> str | None:
    """Return the path of a text that holds a NUL, if any does."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inside = (nul_in(each, f"{path}.{name}" if path else str(name)) for name, each in pairs)
    if isinstance(value, str) and "\0" in value:
        return path
    return next((found for found in inside if found is not None), None)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set what `section.key=value` says, the value as in TOML, else a string; `values` is changed.

    Raises:
        ConfigError: no such form, nested too deep, or a key on the way is a value.
    """
    dotted, separator, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override!r}: expected section.key=value")
    if len(keys) > _DEEPEST:
        raise ConfigError(f"--set {dotted[:40]}…: a key in {len(keys):,} sections, expected {_DEEPEST} at most")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # no TOML, or a number of thousands of digits
        value = text.strip()
    except RecursionError:
        raise ConfigError(f"--set {dotted}=…: its value is nested too deep") from None
    section = values
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override!r}: {key!r} is a value, not a section")
    section[keys[-1]] = value

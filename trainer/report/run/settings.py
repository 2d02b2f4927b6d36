"""Settings of a run that may be of any shape."""

from typing import Any


def setting(config: dict[str, Any], section: str, key: str) -> Any:
    """Return a setting, or None where it, or its section, is not one."""
    values = config.get(section)
    return values.get(key) if isinstance(values, dict) else None


def settings(config: dict[str, Any], section: str, key: str) -> list[Any]:
    """Return a setting that is a list, or nothing."""
    values = setting(config, section, key)
    return values if isinstance(values, list) else []

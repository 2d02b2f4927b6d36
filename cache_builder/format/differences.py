"""Compare what a cache was made from with what it is used with, field by field."""

from typing import Any

from cache_builder.errors import CacheMismatchError
from cache_builder.format.manifest import Entry


def compare(recorded: Entry, now: Entry, what: str) -> None:
    """Refuse where two entries differ.

    Raises:
        CacheMismatchError: the message names every field that differs, with both values.
    """
    ours, theirs = _flat(now.model_dump()), _flat(recorded.model_dump())
    lines = [
        f"  {key}: it has {theirs.get(key)!r}, now {ours.get(key)!r}" for key in theirs if theirs[key] != ours.get(key)
    ]
    lines += [f"  {key}: it has none, now {ours[key]!r}" for key in ours if key not in theirs]
    if lines:
        raise CacheMismatchError(
            f"{what} was made from something else; use what it was made from, or another cache.path:\n"
            + "\n".join(lines)
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

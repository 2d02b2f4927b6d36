"""Compare what a cache was made from with what it is used with, field by field."""

from cache_builder.errors import CacheMismatchError
from cache_builder.format.manifest import Entry
from cache_builder.steps import differences


def compare(recorded: Entry, now: Entry, what: str) -> None:
    """Refuse where two entries differ.

    Raises:
        CacheMismatchError: the message names every field that differs, with both values.
    """
    lines = differences(recorded.model_dump(), now.model_dump())
    if lines:
        raise CacheMismatchError(
            f"{what} was made from something else; use what it was made from, or another cache.path:\n"
            + "\n".join(lines)
        )

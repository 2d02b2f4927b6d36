"""Numbers that a person reads and writes: bytes, operations and hours, short."""

import math

from cache_builder.errors import ConfigError

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15}


def format_bytes(count: float) -> str:
    """Write a number of bytes, in powers of 1024."""
    power = min(len(_BYTES) - 1, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:,.1f} {_BYTES[power]}"


def format_count(count: float) -> str:
    """Write a number by its power of ten."""
    return f"{count:.1e}".replace("e+0", "e").replace("e+", "e")


def format_hours(hours: float | None) -> str:
    """Write hours with two or three digits; None is nothing."""
    if hours is None:
        return ""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" if hours < 1 else f"{hours:.1f}"


def parse_number(text: str) -> float:
    """Read a positive number such as 1e9, 80G or 8B.

    Raises:
        ConfigError: it is none.
    """
    plain = text.strip().replace(",", "").replace("_", "")
    suffix = plain[-1:].upper() if plain[-1:].isalpha() else ""
    try:
        value = float(plain[: len(plain) - len(suffix)]) * _SUFFIXES[suffix]
    except (ValueError, KeyError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{text!r} is not a positive number; expected one such as 1000000, 1e9, 80G or 8B")
    return value

"""Numbers that a person reads: bytes, seconds, operations and money with a unit that keeps them short."""

import math

from cache_builder.errors import ConfigError

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((365 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min"))
_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15}


def format_bytes(count: float) -> str:
    """Write a number of bytes, in powers of 1024."""
    power = min(len(_BYTES) - 1, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:,.1f} {_BYTES[power]}"


def format_seconds(seconds: float) -> str:
    """Write a span of time with two or three digits."""
    for length, name in _SPANS:
        if seconds >= 2 * length:
            return f"{format_short(seconds / length)} {name}"
    return f"{format_short(seconds)} s"


def format_count(count: float) -> str:
    """Write a number by its power of ten."""
    return f"{count:.1e}".replace("e+0", "e").replace("e+", "e")


def format_money(dollars: float) -> str:
    """Write a price in dollars."""
    if dollars >= 1e6:
        return f"${dollars / 1e6:,.1f} M"
    return f"${dollars:,.2f}" if dollars < 100 else f"${dollars:,.0f}"


def parse_number(text: str, *, or_zero: bool = False) -> float:
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
    if not (math.isfinite(value) and (value > 0 or (or_zero and value == 0))):
        raise ConfigError(f"{text!r} is not a positive number; expected one such as 1000000, 1e9, 80G or 8B")
    return value


def format_short(value: float) -> str:
    """Write a number with two or three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.1f}"

"""JSON as `json.dumps(value, indent=1)` writes it, in half the time.

Python's encoder in C takes no indent, and the one in Python cost a quarter of opening a cache: every zarr.json is
written again there, to be compared with what lies in the cache.
"""

import json
from collections.abc import Callable
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any


def indented(value: dict[str, Any], *, ensure_ascii: bool = True) -> str:
    """Return a JSON object as text, a space of indent for each level."""
    return _text(value, "\n", encode_basestring_ascii if ensure_ascii else encode_basestring)


def _text(value: Any, outer: str, quote: Callable[[str], str]) -> str:
    """Return a value's text; `outer` begins a line at the level around it."""
    kind = type(value)
    if kind is str:
        return quote(value)
    if kind is int:
        return repr(value)
    if not value or (kind is not dict and kind is not list):
        return json.dumps(value)
    inner = f"{outer} "
    if kind is dict:
        entries = [f"{quote(key)}: {_text(each, inner, quote)}" for key, each in value.items()]
        return f"{{{inner}{f',{inner}'.join(entries)}{outer}}}"
    all_whole = set(map(type, value)) == {int}  # as are a ledger's many checksums
    entries = list(map(repr, value)) if all_whole else [_text(each, inner, quote) for each in value]
    return f"[{inner}{f',{inner}'.join(entries)}{outer}]"

"""Single values of a row: each is of the kind that its key asks for, or refused by file, row and key.

train.jsonl, line 3, `messages[1].content`: expected text, got 7 (int)
"""

import json
from collections.abc import Mapping
from typing import Any

from cache_builder.errors import DataError, UnknownKeyError

SHOWN_CHARACTERS = 60


def wrong(where: str, key: str, expected: str, got: Any, hint: str = "") -> DataError:
    """Return the error for a value that is not what its key asks for."""
    shown = repr(got)
    shown = shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + "…"
    kind = "" if got is None else f" ({type(got).__name__})"
    return DataError(f"{where}, `{key}`: expected {expected}, got {shown}{kind}{'; ' if hint else ''}{hint}")


def text(value: Any, key: str, where: str) -> str:
    """Return a text, or text parts joined as they stand.

    Raises:
        DataError: it is neither, or a part is not text.
    """
    if isinstance(value, list):
        return "".join(_part(part, f"{key}[{index}]", where) for index, part in enumerate(value))
    if not isinstance(value, str):
        raise wrong(where, key, "text, or a list of text parts", value)
    _check_characters(value, key, where)
    return value


def label(value: Any, key: str, where: str) -> str:
    """Return a short text as it is written; numbers, as ids often are, become text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise wrong(where, key, "text or a number", value)
    _check_characters(str(value), key, where)
    return str(value)


def labels(value: Any, key: str, where: str) -> list[str]:
    """Return a list of short texts, also where a cell holds it as JSON: in CSV it cannot stand otherwise.

    Raises:
        DataError: it is not a list: a text is never read as the list of its letters.
    """
    found = from_json(value, key, where, "a list of texts") if isinstance(value, str) else value
    if not isinstance(found, list):
        raise wrong(where, key, "a list of texts", value)
    return [label(item, f"{key}[{index}]", where) for index, item in enumerate(found)]


def from_json(value: str, key: str, where: str, expected: str) -> Any:
    """Read JSON that stands in a text."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise wrong(where, key, f"{expected}, or JSON of it", value) from None


def mapping(value: Any, key: str, where: str) -> dict[str, Any]:
    """Return an object, also where a text holds it as JSON."""
    found = from_json(value, key, where, "an object") if isinstance(value, str) else value
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise wrong(where, key, "an object, or JSON of one", value)
    try:
        written = json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise wrong(where, key, f"values that JSON has ({error})", found) from None
    _check_characters(written.replace("\\u0000", "\0"), key, where)
    return dict(found)


def check_keys(found: Mapping[str, Any], known: tuple[str, ...], key: str, where: str, ignored: frozenset[str]) -> None:
    """Refuse a key that is not known; None is as good as absent, and `data.ignore_keys` may name what is left out.

    Raises:
        UnknownKeyError: names the key.
    """
    prefix = f"{key}." if key else ""
    general = prefix.partition("[")[0] + "." if key else ""
    for name, value in found.items():
        if name not in known and value is not None and f"{general}{name}" not in ignored:
            raise UnknownKeyError(
                f"{where}, `{prefix}{name}`: this key is not known and would be left out; expected only "
                f'{", ".join(known)}; rename it, or name it in data.ignore_keys = ["{general}{name}"]',
                f"{general}{name}",
            )


def _part(part: Any, key: str, where: str) -> str:
    if isinstance(part, str):
        return text(part, key, where)
    if not isinstance(part, Mapping) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        raise wrong(where, key, 'a text part, {"type": "text", "text": …}', part, "images and sounds are not supported")
    check_keys(part, ("type", "text"), key, where, frozenset())
    return text(part["text"], key, where)


def _check_characters(value: str, key: str, where: str) -> None:
    """Refuse what no tokenizer can read back: a NUL, or half of a surrogate pair."""
    if "\0" in value:
        raise DataError(f"{where}, `{key}`: it has a NUL character; remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise DataError(f"{where}, `{key}`: it has half of a surrogate pair, {half!r}; remove it") from None

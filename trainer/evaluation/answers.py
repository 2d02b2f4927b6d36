"""What a model wrote → the answer it means. An output that means none is counted, and is wrong.

letter    the first of the letters A, B, C, … that the row's choices have, ASCII and upper case
choice    the choice that the output is, or begins with, whatever its case and white space
list      the first line or the whole as a Python list literal; read, never evaluated
line      the first line that is not empty
text      all of it
"""

import ast
import re
import string
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

Answer = str | list[str]
ParserName = Literal["letter", "choice", "list", "line", "text"]

LIST_LIMIT_CHARACTERS = 20_000
"""Longer outputs are not parsed as lists: nested brackets cost the parser its stack."""


def parse(parser: ParserName, output: str, choices: Sequence[str] = ()) -> Answer | None:
    """Return the answer in `output`, or None where there is none."""
    return _PARSERS[parser](output, choices)


def labels_of(parser: ParserName, choices: Sequence[str]) -> list[str]:
    """Return the answers that can be chosen from: letters where the choices are lettered, else the choices."""
    return list(string.ascii_uppercase[: len(choices)]) if parser == "letter" else list(choices)


def _letter(output: str, choices: Sequence[str]) -> str | None:
    allowed = string.ascii_uppercase[: max(6, len(choices))]
    return next((character for character in output if character in allowed), None)


def _choice(output: str, choices: Sequence[str]) -> str | None:
    written = _folded(output)
    matches = [choice for choice in choices if re.match(re.escape(_folded(choice)) + r"(?!\w)", written)]
    return max(matches, key=len, default=None)


def _list(output: str, choices: Sequence[str]) -> list[str] | None:
    for text in (output.strip(), output.strip().partition("\n")[0]):
        if len(text) > LIST_LIMIT_CHARACTERS or not text.startswith("["):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a stray backslash in an answer is no news
                items = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(items, list) and all(isinstance(item, str | int | float) for item in items):
            return [str(item) for item in items]
    return None


def _line(output: str, choices: Sequence[str]) -> str | None:
    return next((line.strip() for line in output.splitlines() if line.strip()), None)


def _text(output: str, choices: Sequence[str]) -> str | None:
    return output.strip() or None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


_PARSERS: dict[str, Callable[[str, Sequence[str]], Answer | None]] = {
    "letter": _letter,
    "choice": _choice,
    "list": _list,
    "line": _line,
    "text": _text,
}

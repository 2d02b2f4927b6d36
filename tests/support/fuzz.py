"""Damage to files and values, as hypothesis strategies, and how each case may end.

    same        what was written is read, as if nothing had happened
    refused     a user's error, one message
    read        something else is read: only where no digest stands beside the file, and its content is anybody's
    anything else is a failure: the exception goes through

`FOOTSTEPS_STORM=1` runs thousands of cases, or FOOTSTEPS_CASES of each test, others in each run; a line per test with
its counts goes into the file FOOTSTEPS_COUNTS.
"""

import copy
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cache_builder.errors import UserError

STORM = bool(os.environ.get("FOOTSTEPS_STORM"))
SECONDS = 20
"""What one case may take: a file that makes its reader wait is a failure."""
WORDS = (
    *(b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\x1b[2J", b"NaN", b"-1", b"1e999"),
    *(b"null", b"[", b"{", b"}", b'"', b",", b"[" * 5000, b"9" * 5000, b"\\ud800", b"../../x", b"{{", b"PK\x03\x04"),
)
ODD = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        -(10**30),
        10**400,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "x",
        "../../x",
        "a\0b",
        "[v2] [/x]",
        "\x1b[2J",
        "{{ 1/0 }}",
        "$HOME",
        "token_id:",
        "token_id:5",
        "²",
        "\ud800",
    ),
    *([], {}, [[]], [None], [0], [{}], {"a": 1}, ["x"], [1.5], [[1, 2], [3]]),
)


def cases(usual: int, storm: int) -> Callable[[Any], Any]:
    """Set how many cases a test runs; the usual ones are the same in each run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    several = int(os.environ.get("FOOTSTEPS_CASES", storm)) if STORM else usual
    return settings(max_examples=several, derandomize=not STORM, suppress_health_check=checks)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Change bytes of a file: flip, cut, grow, repeat, put something odd in."""
    at = st.integers(0, max(len(data) - 1, 0))
    flips = st.builds(lambda i, bit: data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :], at, st.integers(0, 7))
    cuts = st.builds(lambda i: data[:i], at)
    words = st.builds(lambda i, j, word: data[:i] + word + data[max(i, j) :], at, at, st.sampled_from(WORDS))
    inserts = st.builds(lambda i, word: data[:i] + word + data[i:], at, st.sampled_from(WORDS))
    repeats = st.builds(lambda i, j: data[:i] + data[min(i, j) :], at, at)
    return st.one_of(flips, flips, cuts, words, inserts, repeats, st.binary(max_size=40))


def twisted(value: Any) -> st.SearchStrategy[Any]:
    """Change one or two places of a JSON value: another value, one less, one more, another key."""
    places = list(_places(value))
    change = st.tuples(st.sampled_from(places), st.sampled_from(("set", "drop", "add", "rename")), st.sampled_from(ODD))
    return st.lists(change, min_size=1, max_size=2).map(lambda changes: _change(value, changes))


def changed(data: st.DataObject, path: Path) -> bytes:
    """Draw other content for a file: a value of its JSON, or of its header's if it is safetensors, or any bytes."""
    content = path.read_bytes()
    if path.suffix not in (".json", ".safetensors") or data.draw(st.booleans()):
        return data.draw(damaged(content))
    if path.suffix == ".json":
        return text_of(data.draw(twisted(json.loads(content)))).encode("utf-8", "surrogatepass")
    size = int.from_bytes(content[:8], "little")
    header = text_of(data.draw(twisted(json.loads(content[8 : 8 + size])))).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


@contextmanager
def holding(path: Path, content: bytes) -> Iterator[None]:
    """Let a file have other content inside `with`."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def text_of(value: Any) -> str:
    """Return a value as JSON, with NaN and infinities as Python writes them."""
    return json.dumps(value)


class Late(BaseException):
    """A case waits; no reader catches this, as it may an AssertionError."""


class Tally:
    """Counts how cases end."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def end(self, work: Callable[[], Any], honest: Any = None, *, silent_is_wrong: bool = False) -> str:
        """Run a case and count its end; with `silent_is_wrong`, what is read must be the honest value."""
        try:
            with in_time():
                value = work()
        except UserError as error:
            assert str(error).strip()
            ended = "refused"
        else:
            ended = "same" if honest is not None and value == honest else "read"
            assert not (silent_is_wrong and ended == "read"), "a damaged file was read as something else"
        self.counts[ended] += 1
        return ended

    def note(self, name: str) -> None:
        """Add the counts to the file that FOOTSTEPS_COUNTS names."""
        if path := os.environ.get("FOOTSTEPS_COUNTS"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"test": name, **self.counts}) + "\n")


@contextmanager
def in_time() -> Iterator[None]:
    """Fail a case that waits."""

    def late(*_: Any) -> None:
        raise Late(f"a case took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, each in pairs:
        yield from _places(each, (*path, key))


def _change(value: Any, changes: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
    value = copy.deepcopy(value)
    for path, how, odd in changes:
        holder = value
        try:
            for key in path[:-1]:
                holder = holder[key]
            if how == "set":
                holder[path[-1]] = copy.deepcopy(odd)
            elif how == "drop":
                del holder[path[-1]]
            elif isinstance(holder, list):
                holder.insert(path[-1], copy.deepcopy(odd))
            elif how == "add":
                holder[str(odd)[:20]] = copy.deepcopy(odd)
            else:
                holder[str(path[-1]) + "x"] = holder.pop(path[-1])
        except (KeyError, IndexError, TypeError, AttributeError):  # the first change took the second one's place away
            continue
    return value

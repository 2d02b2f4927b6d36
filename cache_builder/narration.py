"""What a long command says while it works: text for people, JSON lines for machines, or nothing.

    text     teacher: step 20 of 169, loss 2.017, 1.3 steps/s, 2 min left       unless told otherwise
    json     {"event": "step", "name": "teacher", "step": 20, "steps": 169, "loss": 2.017, …}         --json
    quiet    warnings and refusals alone                                                              --quiet

How is in the environment, so that what a command starts speaks alike.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

from rich.console import Console

Manner = Literal["text", "json", "quiet"]
VARIABLE = "FOOTSTEPS_LOG"
LINES = "FOOTSTEPS_LINES"
"""Set where several processes share a terminal: bars would be drawn over each other."""
LINE_SECONDS = 30
"""Between two lines of text on one training or build; JSON has each."""


@contextmanager
def in_environment(variable: str, value: str) -> Iterator[None]:
    """Set an environment variable in the block, for this process and those that it starts."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def manner() -> Manner:
    """Return how this process speaks."""
    said = os.environ.get(VARIABLE, "text")
    return cast(Manner, said) if said in get_args(Manner) else "text"


def say(event: str, text: str, *, stderr: bool = False, **facts: Any) -> None:
    """Say one thing that happened: the text to people; event, time and facts to machines, always on standard output."""
    if manner() == "text":
        Console(stderr=stderr, markup=False, highlight=False).print(text, soft_wrap=True)
    elif manner() == "json":
        line = json.dumps({"event": event, "time": round(time.time(), 3), **facts}, ensure_ascii=False, allow_nan=False)
        print(line, file=sys.stdout, flush=True)


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

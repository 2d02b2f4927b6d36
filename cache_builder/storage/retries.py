"""Requests to a store that may fail for a passing reason: repeated a few times, then one message without secrets.

attempt(action) ─▶ fails ─▶ 1 s ─▶ fails ─▶ 2 s ─▶ … 16 s ─▶ CacheUnreachableError
"""

import errno
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from cache_builder.errors import CacheUnreachableError, UserError

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits between attempts, on top of those of the store's own client."""
PASSING = {"botocore.exceptions.ConnectionError", "botocore.exceptions.HTTPClientError"}

T = TypeVar("T")


def attempt(action: Callable[[], T], what: str, stop: threading.Event | None = None) -> T:
    """Do something to a store, again where it fails for a passing reason; `stop` ends the repetition.

    Raises:
        FileNotFoundError, FileExistsError: so the store says.
        CacheUnreachableError: it still failed at the last attempt, or for a reason that does not pass.
    """
    for number, wait in enumerate((*RETRY_SECONDS, None), start=1):
        try:
            return action()
        except (FileNotFoundError, FileExistsError, UserError):
            raise
        except Exception as error:
            if type(error).__module__ == "builtins" and not isinstance(error, OSError):
                raise
            if wait is None or not may_pass(error) or (stop is not None and stop.is_set()):
                tried = f", {number} times" if number > 1 else ""
                raise CacheUnreachableError(f"cannot {what}{tried}: {reason_of(error)}") from error
            time.sleep(wait)
    raise AssertionError


def may_pass(error: Exception) -> bool:
    """Say whether an attempt that failed with `error` may succeed later: not without rights, space or credentials."""
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, OSError):
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    bases = {f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__}
    return "botocore.exceptions.BotoCoreError" not in bases or bool(bases & PASSING)


def reason_of(error: Exception) -> str:
    """Return an exception's name and first line, without anything that might be a secret."""
    text = str(error).partition("\n")[0]
    return without_secrets(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def without_secrets(text: str) -> str:
    """Hide what names a user or signs a request in the URLs of a text."""
    return re.sub(r"\?[^\s\"'?]*=[^\s\"']*", "?…", re.sub(r"://[^/@\s]*@", "://…@", text))

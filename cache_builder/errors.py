"""Errors the user can fix: each is one message that says what, where, expected, got and what to do.

The command line prints it without a traceback and exits with 2; anything else is a bug and keeps its traceback.
"""

import errno
import re
import tempfile
from pathlib import Path


class UserError(Exception):
    """Base of every error that the user can fix, and not the program."""


class ConfigError(UserError, ValueError):
    """The experiment file, or an option that overrides it, does not fit its schema."""


class DataError(UserError, ValueError):
    """An example, a data file or a template cannot be turned into sequences."""


class UnknownKeyError(DataError):
    """A row has a key that no shape knows; `key` is what `data.ignore_keys` would name."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class ModelError(UserError, ValueError):
    """A model or tokenizer is missing, unsupported, or does not fit the others."""


class MissingError(UserError, FileNotFoundError):
    """A file, a folder or the result of an earlier stage is not there."""


class CacheMismatchError(UserError, ValueError):
    """A cache was built from something else than what it is now used with."""


class OtherInputsError(CacheMismatchError):
    """A stage's folder was made from other inputs than the stage is asked for with."""


class CacheIncompleteError(UserError, LookupError):
    """A cache, or one of its checkpoints, was asked for before its build had finished."""


class CacheDamagedError(UserError, OSError):
    """Bytes of a cache are not those that were committed."""


class CacheUnreachableError(UserError, ConnectionError):
    """The store that holds a cache does not answer, or refuses to."""


class CacheWriteError(UserError, OSError):
    """A file of a cache cannot be written; what was committed before is safe."""


class CacheBusyError(UserError, BlockingIOError):
    """Another builder holds the cache, or the part of it that is asked for."""


class WorkerLostError(UserError, ChildProcessError):
    """A process of a cluster that was building died, again and again."""


class TrainingError(UserError, RuntimeError):
    """Training cannot go on: a non-finite loss, or an option that the method cannot honour."""


class DivergedError(TrainingError):
    """The loss of a step is not finite."""


MENDABLE = {
    **{errno.ENOSPC: "free some space", errno.EDQUOT: "free some space"},
    **{errno.EACCES: "get the right to it", errno.EPERM: "get the right to it", errno.EROFS: "choose another place"},
    **{errno.ENOTDIR: "choose a folder", errno.EISDIR: "choose a file", errno.EEXIST: "choose another place"},
    **{errno.EFBIG: "raise the limit on a file's size (ulimit -f), or choose a place without one"},
    **{errno.ENAMETOOLONG: "choose a shorter name", errno.ELOOP: "mend the link"},
}
"""What of the system's refusals a user can mend, and how."""
_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust say what the system refused."""
_FULL = re.compile(r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing")
"""How others say that the disk is full, where they swallow the number."""


def system_message(error: BaseException) -> str | None:
    """Say what the system refused and how to go on; None where the error is another one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in MENDABLE:
            where = f"{seen.filename}: " if seen.filename is not None else ""
            return f"{where}{seen.strerror}; {MENDABLE[seen.errno]} and give the same command again to continue"
        if (
            isinstance(seen, OSError)
            and isinstance(seen.filename, str)
            and _refuses_files_by(seen.errno, seen.filename)
        ):
            return f"{seen.filename}: {seen.strerror}: the system makes no files there; choose another place"
        if (advice := _swallowed(str(seen))) is not None:
            return f"{first_line(seen)}; {advice} and give the same command again to continue"
        seen = seen.__cause__ or seen.__context__
    return None


def _swallowed(message: str) -> str | None:
    """Return how to mend what a library's message says of the system; None where it says nothing of it."""
    if number := _NUMBER.search(message):
        return MENDABLE.get(int(number[1]))
    return MENDABLE[errno.ENOSPC] if _FULL.search(message) else None


def _refuses_files_by(number: int | None, path: str) -> bool:
    """Say whether the nearest folder above, that is there, refuses a new file by this very error, as /proc does.

    A folder that may not be written refuses by another one, so that what was missing there was to be read.
    """
    folder = next(each for each in Path(path).absolute().parents if each.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return False
    except OSError as error:
        return error.errno == number


def printable(text: str) -> str:
    """Return a text for a terminal: what is no character of a line, or would command the terminal, is written out."""
    return "".join(each if each in "\n\t" or each.isprintable() else ascii(each)[1:-1] for each in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""Errors the user can fix: each is one message that says what, where, expected, got and what to do.

The command line prints it without a traceback and exits with 2; anything else is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Base of every error that the user can fix, and not the program."""


class ConfigError(UserError, ValueError):
    """The experiment file, or an option that overrides it, does not fit its schema."""


class DataError(UserError, ValueError):
    """An example, a data file or a template cannot be turned into sequences."""


class ModelError(UserError, ValueError):
    """A model or tokenizer is missing, unsupported, or does not fit the others."""


class MissingError(UserError, FileNotFoundError):
    """A file, a folder or the result of an earlier stage is not there."""


class CacheMismatchError(UserError, ValueError):
    """A cache was built from something else than what it is now used with."""


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

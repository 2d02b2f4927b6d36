"""A model's loss of every training sequence, as a file: written by the stages, read by them and by the report.

    losses/student.safetensors    "loss" f64 [n], nats per sequence, in the corpus's order
                                  metadata: cache_fingerprint, whose corpus and teachers they are of; sha256

Files without the digest, which older runs have, are read by the same rules but for that.
"""

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cache_builder.atomic import new_file
from cache_builder.errors import CacheDamagedError, CacheMismatchError, MissingError


def write_losses(path: Path, losses_N: np.ndarray, cache_fingerprint: str) -> None:
    """Write per-sequence losses, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = losses_N.astype("<f8")
    metadata = {"cache_fingerprint": cache_fingerprint, "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
    with new_file(path) as part:
        save_file({"loss": values}, part, metadata=metadata)


def read_losses(path: Path, cache_fingerprint: str, sequences: int) -> np.ndarray:
    """Read the losses of so many sequences, f64 [n], nats.

    Raises:
        MissingError: the file is not there.
        CacheMismatchError: they were computed for another cache.
        CacheDamagedError: it is no such file, or its bytes are not those that were written, or a loss is not finite.
    """
    if not path.is_file():
        raise MissingError(f"per-sequence losses {path} are not there; run `footsteps losses CONFIG` first")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            losses_N = file.get_tensor("loss")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CacheDamagedError(f"{path} cannot be read: {reason}; remove it, and `footsteps run` makes it") from error
    quoted = metadata.get("cache_fingerprint")
    if quoted != cache_fingerprint:
        raise CacheMismatchError(
            f"{path} belongs to the cache {str(quoted)[:12]}…, this one is {cache_fingerprint[:12]}…; "
            "run `footsteps losses CONFIG` again"
        )
    digest = metadata.get("sha256")
    if digest is not None and digest != hashlib.sha256(losses_N.tobytes()).hexdigest():
        raise CacheDamagedError(f"{path}: its bytes are not those that were written; remove it and make it again")
    if losses_N.dtype != np.float64 or losses_N.shape != (sequences,) or not np.isfinite(losses_N).all():
        raise CacheDamagedError(
            f"{path}: expected {sequences} finite losses, float64, got {losses_N.dtype} {list(losses_N.shape)}, of "
            f"which {int(np.count_nonzero(~np.isfinite(losses_N)))} are not finite; remove it and make it again"
        )
    return losses_N

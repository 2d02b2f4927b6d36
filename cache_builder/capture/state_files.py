"""Hidden states that another engine has written: a file per sequence, found by the tokens that it was made of.

    DIR/requests.json, requests/00000.jsonl         what is to be run (build/requests.py)
    DIR/states/<checkpoint>/engine.json             what ran it: engine, version, dtype, and the weights' fingerprint
    DIR/states/<checkpoint>/ab/ab3f….safetensors    token_ids [T], hidden_states [T, D] or [T, 1, D], of one sequence

The states are those that the final norm reads: the last layer's output, before the norm. A file's name is a digest of
its tokens, so a sequence finds its own whatever its row, and equal sequences share one.

Shapes: T tokens of a sequence, D hidden size.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache_builder.atomic import new_file, write_text
from cache_builder.errors import MissingError, ModelError, first_line
from cache_builder.format.manifest import check_name

ENGINE_FILE, REQUESTS_FILE, REQUESTS_FOLDER = "engine.json", "requests.json", "requests"
_POLL_SECONDS = 0.5


class RanBy(BaseModel):
    """What `engine.json` says of the engine that wrote a checkpoint's states."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    """Its name, such as "vllm"."""
    version: str
    dtype: str
    """What it computed in, as torch names it: "bfloat16"."""
    weights_fingerprint: str
    """That of the checkpoint which it ran, as `weights_fingerprint` gives it."""


def sequence_key(tokens: np.ndarray) -> str:
    """Return the name of a sequence's file, without its ending: a digest of its token ids."""
    data = np.ascontiguousarray(tokens, "<u4").tobytes()
    return hashlib.sha256(b"footsteps tokens 1 " + data).hexdigest()[:32]


def shared_keys(folder: Path) -> frozenset[str]:
    """Return the names of files that several rows of the requests share.

    Raises:
        MissingError: there are no requests in the folder.
        ModelError: they cannot be read.
    """
    path = folder / REQUESTS_FILE
    try:
        return frozenset(json.loads(path.read_bytes())["shared"])
    except FileNotFoundError:
        raise MissingError(f"{path}: not there; write it with `footsteps cache requests CONFIG`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a list of requests ({first_line(error)}); write it again") from error


@dataclass(frozen=True)
class StateFiles:
    """The files of one checkpoint."""

    folder: Path
    wait_seconds: float = 0.0
    """How long to wait for a file that is not there yet."""

    @classmethod
    def of(cls, folder: Path, checkpoint: str, wait_seconds: float = 0.0) -> "StateFiles":
        """Return those of a checkpoint in a folder of several."""
        check_name(checkpoint)
        return cls(folder / "states" / checkpoint, wait_seconds)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def ran_by(self) -> RanBy:
        """Return what ran the checkpoint.

        Raises:
            MissingError: nothing says so, after waiting.
            ModelError: what is there is no such note.
        """
        path = self.folder / ENGINE_FILE
        self._wait_for(path, "what ran the checkpoint; its writer begins by saying so")
        try:
            return RanBy.model_validate_json(path.read_bytes(), strict=True)
        except ValidationError as error:
            raise ModelError(f"{path}: not a note of what ran the checkpoint: {first_line(error)}") from None

    def read(self, tokens: np.ndarray, hidden_size: int) -> Tensor:
        """Return a sequence's states, [T, D], in the dtype in which they lie.

        Raises:
            MissingError: its file is not there, after waiting.
            ModelError: it is damaged, of other tokens or of another shape, or not finite.
        """
        path = self.path(sequence_key(tokens))
        self._wait_for(path, f"the hidden states of a sequence of {len(tokens)} tokens")
        try:
            with safe_open(path, "pt") as file:
                names = set(file.keys())
                if names != {"token_ids", "hidden_states"}:
                    raise _unfit(path, f"tensors {sorted(names)}", "token_ids and hidden_states")
                ids = file.get_tensor("token_ids")
                lying = file.get_slice("hidden_states")
                shape = [size for axis, size in enumerate(lying.get_shape()) if not (axis == 1 and size == 1)]
                if shape != [len(tokens), hidden_size] or not lying.get_dtype().startswith(("F", "BF")):
                    kind = f"{lying.get_dtype()} {lying.get_shape()}"
                    raise _unfit(path, kind, f"floating point [{len(tokens)}, {hidden_size}], of the last layer alone")
                states = file.get_tensor("hidden_states").reshape(len(tokens), hidden_size)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: damaged ({first_line(error)}); delete it and write it again") from error
        if ids.is_floating_point() or not np.array_equal(ids.flatten().numpy(), tokens):
            raise _unfit(path, "other token ids", "those of the sequence that its name stands for")
        if not torch.isfinite(states).all():
            raise ModelError(f"{path}: NaN or infinite hidden states; run it in another dtype, or leave it out")
        return states

    def write(self, tokens: np.ndarray, states_TD: Tensor) -> None:
        """Write a sequence's states, whole or not at all."""
        from safetensors.torch import save_file

        path = self.path(sequence_key(tokens))
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part:
            save_file(
                {"token_ids": torch.from_numpy(tokens.astype(np.int64)), "hidden_states": states_TD.contiguous()}, part
            )

    def begin(self, ran_by: RanBy) -> None:
        """Say what runs the checkpoint, before its first file.

        Raises:
            ModelError: the folder holds what something else ran.
        """
        path = self.folder / ENGINE_FILE
        if path.exists():
            if self.ran_by() != ran_by:
                raise ModelError(
                    f"{path}: the folder holds states of {self.ran_by()}, expected {ran_by}; give another folder"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(ran_by.model_dump(), indent=1) + "\n")

    def has(self, key: str) -> bool:
        return self.path(key).is_file()

    def count(self) -> int:
        """Return how many sequences' files are there."""
        return sum(1 for _ in self.folder.glob("??/*.safetensors"))

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def _wait_for(self, path: Path, what: str) -> None:
        end = time.monotonic() + self.wait_seconds
        while not path.is_file():
            if time.monotonic() >= end:
                waited = f" after {self.wait_seconds:g} s" if self.wait_seconds else ""
                raise MissingError(
                    f"{path}: not there{waited}, expected {what}; run the engine on all of the requests, or let the "
                    "build wait with teacher.hidden_states_wait"
                )
            time.sleep(_POLL_SECONDS)


def _unfit(path: Path, got: str, expected: str) -> ModelError:
    return ModelError(f"{path}: got {got}, expected {expected}; delete it and write it again")

"""A checkpoint divided among n of torchrun's processes: the first of them builds, the others run their part of it.

    world of 8, tensor_parallel = 4     processes 0–3 build part 0/2, processes 4–7 part 1/2, each group for itself
    first     load ─▶ tokens ─▶ its part of every layer ⇄ ─▶ hidden states ─▶ head, targets, commits
    others    load ◀─ tokens ─▶ their part of every layer ⇄                   told by the first what to load and to run

Transformers divides the layers (its `tp_plan`). The head is left whole, so that it is the plain matmul of `head.py`.
The first process builds as it would alone: a hook on the model passes its tokens on to the others.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cache_builder.config import CacheExperiment, TeacherConfig
from cache_builder.data.tokenizer import is_gguf, resolve
from cache_builder.errors import ConfigError, ModelError, UserError
from cache_builder.models.adapters import adapter_at
from cache_builder.models.lm_head import base_of
from cache_builder.models.loading import load_model
from cache_builder.models.placement import local_device, quantisation_of

LONGEST_WAIT = timedelta(days=7)
"""Of the others for the first, which may itself wait for another group's turn with the cache."""
_STOP, _LOAD, _RUN, _RUN_PACKED = range(4)
_group: "Group | None" = None


def run_together(experiment: CacheExperiment, build: Callable[[], bool]) -> bool:
    """Let the first process of each tensor-parallel group build, and the others run their part of what it runs.

    Raises:
        ConfigError: torchrun has not started a multiple of `teacher.tensor_parallel` processes.
        UserError: this process is not the first, and the first has stopped.
    """
    if experiment.teacher.tensor_parallel == 1:
        return build()
    with _joined(experiment.teacher.tensor_parallel) as group:
        return group.run_leader(build) if group.leads else group.run_follower(experiment)


def load_divided(config: TeacherConfig, seed: int, location: str) -> PreTrainedModel:
    """Load a checkpoint on every process of this process's group; only the first may call it, and run the model.

    Raises:
        ConfigError: there is no group, because nothing is being built.
        ModelError: this model cannot be divided among so many processes.
    """
    if _group is None:
        raise ConfigError(
            "teacher.tensor_parallel is for `torchrun … footsteps cache build`; for this, set it to 1 and give "
            'teacher.device_map = "auto"'
        )
    return _group.load(config, seed, location)


@dataclass
class Group:
    """The processes that hold one checkpoint; each is a world of its own for torch.distributed."""

    size: int
    leads: bool
    control: Any
    """A gloo group for what the first process tells the others: waiting in it keeps no GPU busy."""
    listening: bool = True
    """Whether the others wait to be told something; they do not while a model is loaded or runs."""

    def run_leader(self, work: Callable[[], bool]) -> bool:
        """Do the work, and send the others home with its result."""
        try:
            complete = work()
        except BaseException:
            # While a model loads or runs the others are inside collectives, not waiting for a word: one more broadcast
            # would hang with them. torchrun ends them when this process exits.
            if self.listening:
                self._broadcast(_STOP, 0)
            raise
        self._broadcast(_STOP, 1 + complete)
        return complete

    def load(self, config: TeacherConfig, seed: int, location: str) -> PreTrainedModel:
        """Load a checkpoint here and on the others; what it runs from now on they run, too."""
        name = torch.tensor(list(location.encode()), dtype=torch.int64)
        self._broadcast(_LOAD, len(name))  # a broadcast must know its size beforehand, so each comes in two
        distributed.broadcast(name, 0, self.control)
        self.listening = False
        model = _load_part(config, seed, location, self.size)
        self.listening = True
        base = base_of(model)  # not the model: the head is whole and runs here alone
        base.register_forward_pre_hook(self._pass_on, with_kwargs=True)
        base.register_forward_hook(self._listen_again)
        return model

    def run_follower(self, experiment: CacheExperiment) -> bool:
        """Load and run what the first process says, until it is done; return its result.

        Raises:
            UserError: the first process has stopped.
        """
        model: PreTrainedModel | None = None
        while True:
            kind, first, second = self._receive()
            if kind == _STOP and first == 0:
                raise UserError("the first process of this tensor-parallel group has stopped; its message says why")
            if kind == _STOP:
                return first == 2
            if kind == _LOAD:
                model = None  # before the next part is loaded: both may not fit
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                location = bytes(self._receive_tensor(first).tolist()).decode()
                model = _load_part(experiment.teacher, experiment.run.seed, location, self.size)
            else:
                assert model is not None
                tokens = self._receive_tensor(2, first, second).to(local_device())
                beside = "position_ids" if kind == _RUN_PACKED else "attention_mask"
                with torch.no_grad():
                    base_of(model)(**{"input_ids": tokens[0], beside: tokens[1]}, use_cache=False)

    def _pass_on(self, base: torch.nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        # Hooks see the call as it was written; the others need ids and mask, whether they came by place or by name.
        given = signature(base.forward).bind_partial(*args, **inputs).arguments
        packed = given.get("attention_mask") is None
        beside = given["position_ids" if packed else "attention_mask"]
        tokens = torch.stack([given["input_ids"], beside]).to("cpu", torch.int64)
        self._broadcast(_RUN_PACKED if packed else _RUN, *tokens.shape[1:])
        distributed.broadcast(tokens, 0, self.control)
        self.listening = False

    def _listen_again(self, base: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.listening = True

    def _broadcast(self, kind: int, first: int, second: int = 0) -> None:
        distributed.broadcast(torch.tensor([kind, first, second]), 0, self.control)

    def _receive(self) -> list[int]:
        return self._receive_tensor(3).tolist()

    def _receive_tensor(self, *shape: int) -> Tensor:
        heard = torch.empty(shape, dtype=torch.int64)
        distributed.broadcast(heard, 0, self.control)
        return heard


@contextmanager
def _joined(size: int) -> Iterator[Group]:
    """Join this process's group of `size`, with torch.distributed set up for that group alone.

    Raises:
        ConfigError: torchrun has not started a multiple of `size` processes, or this run trains with another number.
    """
    global _group
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world % size:
        raise ConfigError(
            f"teacher.tensor_parallel = {size} needs torchrun with {size} processes, or a multiple of that; got {world}"
        )
    theirs = distributed.is_initialized()
    if theirs and distributed.get_world_size() != size:
        raise ConfigError(
            f"this run trains on {distributed.get_world_size()} processes, which cannot become groups of "
            f"teacher.tensor_parallel = {size} for the build; run `footsteps cache build` by itself"
        )
    if not theirs:
        _start_world(rank // size, rank % size, size)
    _group = Group(size, rank % size == 0, distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))
    try:
        yield _group
    finally:
        _group = None
        if not theirs:
            distributed.destroy_process_group()


def _start_world(group: int, rank: int, size: int) -> None:
    """Set torch.distributed up, as transformers would for a world that is this group alone."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    options: dict[str, Any] = {"backend": "gloo"}
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
        options = {"backend": "nccl", "device_id": local_device()}
    distributed.init_process_group(
        store=distributed.PrefixStore(f"tensor-parallel-{group}", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(hours=2),
        **options,
    )


def _load_part(config: TeacherConfig, seed: int, location: str, size: int) -> PreTrainedModel:
    """Load this process's part of a checkpoint; every process of the group does so at the same time."""
    adapter = adapter_at(*resolve(location))
    name, revision = resolve(location if adapter is None else adapter.base_location)
    if is_gguf(name):
        raise ModelError(
            f"model {location!r} is one file, which is read whole, so teacher.tensor_parallel cannot divide it"
        )
    if (quantisation_of(name, revision) or {}).get("quant_method") == "bitsandbytes":
        raise ModelError(f"model {location!r}: transformers cannot divide bitsandbytes weights; use teacher.device_map")
    _check_heads(name, revision, config.trust_remote_code, size)
    try:
        from transformers.distributed import DistributedConfig

        divided = DistributedConfig(tp_size=size, tp_plan=_whole_head(name, revision, config.trust_remote_code))
    except (ImportError, TypeError) as error:
        raise ModelError("teacher.tensor_parallel needs transformers 5.21 or newer; update it") from error
    model = load_model(config, seed, location, distributed_config=divided)
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise ModelError(
            f"model {location!r}: {type(model).__name__} has no layers that transformers knows how to divide; "
            "use teacher.device_map"
        )
    return model


def _check_heads(name: str, revision: str | None, trust_remote_code: bool, size: int) -> None:
    """Refuse a number of processes among which the heads of attention cannot be divided evenly."""
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code).get_text_config()
    for heads in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(config, heads, None)
        if isinstance(count, int) and count % size:
            raise ModelError(
                f"model {name!r} has {heads} = {count}, which teacher.tensor_parallel = {size} cannot divide"
            )


def _whole_head(name: str, revision: str | None, trust_remote_code: bool) -> dict[str, str]:
    """Return the rules that leave the head, and an embedding whose weight it shares, on every process."""
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    names = {module: name for name, module in skeleton.named_modules()}
    whole = [skeleton.get_output_embeddings(), skeleton.get_input_embeddings()]
    return {names[module]: "replicate" for module in whole[: 1 + bool(config.tie_word_embeddings)]}

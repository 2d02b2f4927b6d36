"""Two sharded gloo processes: refused, stopped, resumed. Run by tests/pipelines/test_fsdp.py under torchrun.

Accelerate 1.15 turns FSDP on for GPUs and other accelerators only, not for MULTI_CPU; all below that switch works
on CPUs, so this sets it.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, DistributedType
from torch.distributed.tensor import DTensor

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import TrainingError
from tests.support.interruption import stops_at
from tests.support.toys import load_toy
from trainer.config import Experiment
from trainer.loop import callbacks
from trainer.stages.distill import distill

set_up = AcceleratorState.__init__


def set_up_with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    set_up(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
    if self.__dict__.get("fsdp_plugin") is not None:
        self.distributed_type = DistributedType.FSDP


def main(config: str, *overrides: str) -> None:
    """Train the toy's students as `tests/pipelines/test_fsdp.py` expects them: one for what stands before each "--"."""
    AcceleratorState.__init__ = set_up_with_fsdp  # type: ignore[method-assign]
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    while overrides:
        end = overrides.index("--")
        train(load_toy(Path(config), *overrides[:end]))
        overrides = overrides[end + 1 :]
    torch.distributed.destroy_process_group()


def train(experiment: Experiment) -> None:
    """Be refused, stopped and resumed."""
    cache, prepared = open_cache(experiment.cache_url), Prepared(experiment)
    os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
    with pytest.raises(TrainingError, match="FULL_STATE_DICT"):
        distill(experiment, "scd", 0, cache, prepared)
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    cleared = []
    clear = callbacks._clear_optimizer

    def recording_clear(optimizer: Any) -> None:
        moments = [state["exp_avg"] for state in optimizer.optimizer.state.values()]
        cleared.append((len(moments), all(isinstance(moment, DTensor) for moment in moments)))
        clear(optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "_clear_optimizer", recording_clear)
        stop_and_resume(experiment, cache, prepared)
    assert cleared[0][0] == 0 and all(count > 0 and sharded for count, sharded in cleared[1:]), cleared


def stop_and_resume(experiment: Experiment, cache: Cache, prepared: Prepared) -> None:
    with stops_at(20):
        distill(experiment, "scd", 0, cache, prepared)
    distill(experiment, "scd", 0, cache, prepared)


if __name__ == "__main__":
    main(*sys.argv[1:])

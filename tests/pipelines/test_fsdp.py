"""FSDP2: a sharded student, stopped and resumed, has the weights of one process, in plain folders."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cache_builder.models.loading import load_model
from tests.support.paths import ROOT
from tests.support.toys import without_dropout
from trainer.stages.distill import distill


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use
def test_two_sharded_processes_stopped_and_resumed_give_the_weights_of_one(toy: Any, built_toy: Path) -> None:
    """Pitfall 14; for whole students and for adapters."""
    adapted = [f"student.model='{built_toy / 'run' / 'student' / 'last'}'", "student.lora={r=4}"]
    commands, folders = [], {}
    for weights, options in (("model.safetensors", []), ("adapter_model.safetensors", adapted)):
        experiment, cache, prepared = toy(*options)
        without_dropout(experiment)
        alone = distill(experiment, "scd", 0, cache, prepared)
        sharded, _, _ = toy()
        commands += [
            *options,
            f"student.model='{experiment.student.model}'",
            f"run.output_dir='{sharded.output_dir}'",
            "distill.per_device_train_batch_size=4",
            "distill.save_steps=6",
            "--",
        ]
        folders[weights] = (sharded.output_dir / "distill" / "scd" / "seed-0", alone)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*launcher, "tests.support.fsdp_processes", str(built_toy / "experiment.toml"), *commands]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for weights, (folder, alone) in folders.items():
        for which in ("best", "last"):
            load_model(experiment.student, 0, str(folder / which))
            ours, theirs = load_file(folder / which / weights), load_file(alone / which / weights)
            assert ours.keys() - {"lm_head.weight"} == theirs.keys()  # which is its embedding, in a sharded model twice
            for name, values in theirs.items():
                np.testing.assert_allclose(ours[name], values, rtol=0, atol=2e-5, err_msg=f"{which} {name}")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("accelerate-*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_config_which_begins_with_its_command(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(path))
    first, *_ = path.read_text().split("compute_environment")
    assert f"accelerate launch --config_file configs/{path.name} " in first
    sharded = "fsdp" in path.name
    assert str(read.distributed_type).endswith("FSDP" if sharded else "MULTI_GPU")
    assert read.fsdp_config.get("fsdp_state_dict_type") == ("FULL_STATE_DICT" if sharded else None)
    assert read.fsdp_config.get("fsdp_version") == (2 if sharded else None)
    assert bool(read.fsdp_config.get("fsdp_offload_params")) == ("offload" in path.name)

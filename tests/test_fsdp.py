"""FSDP2: a sharded student, stopped and resumed, has the weights of one process, in plain folders."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from cache_builder.models import load_model
from tests.toys import without_dropout
from trainer.distill import distill

ROOT = Path(__file__).parents[1]


def test_two_sharded_processes_stopped_and_resumed_give_the_weights_of_one(toy: Any, built_toy: Path) -> None:
    """Pitfall 14."""
    experiment, cache, prepared = toy()
    without_dropout(experiment)
    alone = distill(experiment, "scd", 0, cache, prepared)
    sharded, _, _ = toy()
    overrides = [
        f"run.output_dir='{sharded.output_dir}'",
        f"student.model='{experiment.student.model}'",
        "distill.per_device_train_batch_size=4",
        "distill.save_steps=6",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*launcher, "tests.fsdp_processes", str(built_toy / "experiment.toml"), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = sharded.output_dir / "distill" / "scd" / "seed-0"
    for which in ("best", "last"):
        load_model(sharded.student, 0, str(folder / which))
        ours = load_file(folder / which / "model.safetensors")
        for name, values in load_file(alone / which / "model.safetensors").items():
            np.testing.assert_allclose(ours[name], values, rtol=0, atol=2e-5, err_msg=f"{which} {name}")

"""What two trained students are compared by."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


def weights(folder: Path, which: str = "last") -> dict[str, np.ndarray]:
    return load_file(folder / which / "model.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    for which in ("best", "last"):
        for name, values in weights(one, which).items():
            np.testing.assert_array_equal(values, weights(other, which)[name], err_msg=f"{which} {name}")
    assert json.loads((one / "plan.json").read_text()) == json.loads((other / "plan.json").read_text())
    assert recorded(one) == recorded(other)
    np.testing.assert_array_equal(
        load_file(one / "losses.safetensors")["loss"], load_file(other / "losses.safetensors")["loss"]
    )


def recorded(folder: Path) -> dict[str, Any]:
    """Return what a step recorded, but for the digest of its log, which tells the time."""
    record = json.loads((folder / "stage.json").read_text())
    del record["files"]["log.json"], record["record_sha256"]
    return dict(record)

"""What two trained students are compared by."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def weights(folder: Path, which: str = "last") -> dict[str, np.ndarray]:
    return load_file(folder / which / "model.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    for which in ("best", "last"):
        for name, values in weights(one, which).items():
            np.testing.assert_array_equal(values, weights(other, which)[name], err_msg=f"{which} {name}")
    for file in ("plan.json", "stage.json"):
        assert json.loads((one / file).read_text()) == json.loads((other / file).read_text())
    np.testing.assert_array_equal(
        load_file(one / "losses.safetensors")["loss"], load_file(other / "losses.safetensors")["loss"]
    )

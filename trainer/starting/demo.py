"""The demo: an experiment and two model configs that travel with the package, written into a folder of the user's.

demo.toml + models/{teacher,student}/config.json ──▶ OUTPUT/models, and the experiment that names them
"""

import tomllib
from importlib.resources import files
from pathlib import Path

from cache_builder.atomic import write_text
from cache_builder.config import make_experiment
from trainer.config import Experiment

QUICK = (
    "data.train_examples=600",
    "data.test_examples=60",
    "teacher.checkpoints=2",
    "sft.teacher.num_train_epochs=3",
    "sft.student.num_train_epochs=2",
    'distill.methods=["td", "scd+aw"]',
    "distill.seeds=[0]",
    "distill.epochs_per_stage=1",
)
"""What makes it end within a minute: every stage, and too little training for any figure to mean something."""


def demo_experiment(output: Path, quick: bool = False, overrides: tuple[str, ...] = ()) -> Experiment:
    """Return the demo's experiment for a folder, in which its two models' configs are written.

    Raises:
        ConfigError: an override does not fit.
    """
    package = files(__package__)
    values = tomllib.loads((package / "demo.toml").read_text(encoding="utf-8"))
    values["run"]["output_dir"] = str(output)
    for role in ("teacher", "student"):
        folder = output / "models" / role
        values[role]["model"] = str(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.json", (package / "models" / role / "config.json").read_text(encoding="utf-8"))
    return make_experiment(Experiment, values, (*(QUICK if quick else ()), *overrides), "the demo")

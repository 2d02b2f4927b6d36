"""A whole experiment in seconds: colors, two tiny Llamas, three teacher checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.config import load_experiment
from cache_builder.data.examples import Example
from cache_builder.data.prepare import Prepared
from trainer.config import Experiment

DROPOUT = 0.1
COLORS = ("red", "green", "blue", "amber", "violet", "grey")


def color_examples(count: int) -> list[Example]:
    """Return examples whose answer is the color that the question names last."""
    return [
        {
            "id": f"color-{index}",
            "task": "color",
            "messages": [
                {"role": "user", "content": f"case {index}: {COLORS[index % 6]} then {COLORS[index * 7 % 5]}?"},
                {"role": "assistant", "content": COLORS[index * 7 % 5]},
            ],
        }
        for index in range(count)
    ]


TOML = """
[run]
output_dir = "{folder}/run"
[data]
train = "{folder}/train.jsonl"
test = "{folder}/test.jsonl"
[text]
chat_template = "plain"
max_length = 64
[tokenizer]
train_vocab_size = 320
[teacher]
model = "{folder}/teacher-init"
checkpoints = 3
[student]
model = "{folder}/student-init"
[sft.teacher]
learning_rate = 3e-3
num_train_epochs = 3
[sft.student]
learning_rate = 3e-3
num_train_epochs = 2
[distill]
learning_rate = 3e-3
methods = ["sft", "scd+aw"]
epochs_per_stage = 1
[cache]
top_k = 8
tail_samples = 2
tail_blocks = 0
probe_sequences = 16
probe_top_k = 32
shard_positions = 128
chunk_positions = 32
[tasks.color]
kind = "exact"
"""


def write_toy(folder: Path, examples: int = 120, **student_options: object) -> Path:
    """Write data, model folders with only a config, and experiment.toml; return the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = color_examples(examples + 24)
    for name, part in (("train", rows[:examples]), ("test", rows[examples:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name, hidden_size in (("teacher", 48), ("student", 24)):
        options = student_options if name == "student" else {}
        write_model_config(folder / f"{name}-init", hidden_size=hidden_size, **options)
    path = folder / "experiment.toml"
    path.write_text(TOML.format(folder=folder))
    return path


def write_model_config(folder: Path, *, hidden_size: int, **options: Any) -> Path:
    """Write a model folder with only a config, of more rows than the toy's 320 tokens."""
    sizes = {"vocab_size": 328, "num_hidden_layers": 2, "tie_word_embeddings": True, **options}
    LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        **sizes,
    ).save_pretrained(folder)
    return folder


def load_toy(path: Path, *overrides: str) -> Experiment:
    return load_experiment(Experiment, path, overrides)


Opened = tuple[Experiment, Cache, Prepared]


def open_toy(built_toy: Path, output_dir: Path, *overrides: str) -> Opened:
    """Open what the fixture `built_toy` has built with other settings; what is trained goes below `output_dir`."""
    output_dir.mkdir(exist_ok=True)
    for name in ("tokenizer", "corpus", "cache", "student", "losses", "teacher"):
        (output_dir / name).symlink_to(built_toy / "run" / name)
    experiment = load_toy(built_toy / "experiment.toml", f"run.output_dir='{output_dir}'", *overrides)
    return experiment, open_cache(experiment.cache_url), Prepared(experiment)


def without_dropout(experiment: Experiment) -> None:
    """Give the student a config of its own, without dropout."""
    folder = experiment.output_dir / "student-init"
    shutil.copytree(experiment.student.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    object.__setattr__(experiment, "student", experiment.student.model_copy(update={"model": str(folder)}))

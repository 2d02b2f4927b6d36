"""A plan against what this machine really takes: build a cache of two checkpoints and train one student, then compare.

    python -m tools.capacity_check [--examples 400] [--hidden 512 256] [--threads 1]

The models are random Llamas of 8 layers, the text is the demo's. The device's peak is measured first, by a large
matmul; the shares of it that are reached are the plan's defaults, so they are what is being judged. Prints predicted
and actual seconds and bytes, and their ratio; times on a busy machine say nothing.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tools.measuring import make_model

VOCABULARY = 2_000


def matmul_flops(size: int = 2048, rounds: int = 5) -> float:
    """Return the FLOP/s of a large matmul in float32, the best of some."""
    left = torch.randn(size, size)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(left, left)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def write_config(folder: Path, arguments: argparse.Namespace) -> Path:
    """Write two teachers and a student without weights, and the experiment."""
    for name, hidden in zip(("step-1", "step-2", "student"), [arguments.hidden[0], *arguments.hidden], strict=True):
        model = make_model(VOCABULARY, hidden, 8, torch.float32, torch.device("meta"), seed=0)
        model.config.eos_token_id, model.config.pad_token_id, model.config.bos_token_id = 0, 1, None
        model.config.save_pretrained(folder / name)
    config = folder / "check.toml"
    config.write_text(
        f"""
[run]
output_dir = "{folder}/run"
[data]
source = "demo"
train_examples = {arguments.examples}
[text]
max_length = 96
chat_template = "plain"
[tokenizer]
train_vocab_size = {VOCABULARY}
[teacher]
model = "{folder}/step-2"
checkpoints = ["{folder}/step-1", "{folder}/step-2"]
[student]
model = "{folder}/student"
[cache]
probe_sequences = 32
probe_top_k = 64
[distill]
methods = ["td"]
epochs_per_stage = 1
per_device_train_batch_size = 32
"""
    )
    return config


def run(config: Path) -> dict[str, float]:
    """Build and train; return the seconds and bytes that it took."""
    from cache_builder.build.build import build_cache, teacher_checkpoints
    from cache_builder.build.costs import read_costs
    from cache_builder.cache.reader import open_cache
    from cache_builder.config import load_experiment
    from cache_builder.data.prepare import Prepared
    from trainer.config import Experiment
    from trainer.stages.distill import distill

    experiment = load_experiment(Experiment, config)
    prepared = Prepared(experiment)
    build_cache(experiment, prepared.train, prepared.tokenizer, teacher_checkpoints(experiment), prepared.validation)
    costs, _ = read_costs(experiment.output_dir)
    folder = distill(experiment, "td", 0, open_cache(experiment.cache_url), prepared)
    log = json.loads((folder / "log.json").read_text())
    cache = Path(experiment.cache_url)
    return {
        "cache build": sum(cost.seconds for cost in costs),
        "students": next(entry["train_runtime"] for entry in log if "train_runtime" in entry),
        "bytes": float(sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())),
        "files": float(sum(1 for path in cache.rglob("*") if path.is_file() and ".locks" not in path.parts)),
    }


def plan(config: Path, flops: float) -> dict[str, Any]:
    """Return what `footsteps plan --json` says of it."""
    from click.testing import CliRunner

    from trainer.cli import main as footsteps

    result = CliRunner().invoke(footsteps, ["plan", str(config), "--json", "--gpu-flops", str(flops)])
    return json.loads(result.stdout)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--hidden", type=int, nargs=2, default=[512, 256], help="of the teacher and of the student")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), arguments)
        flops = matmul_flops()
        actual = run(config)
        facts = plan(config, flops)
    stages = {stage["name"]: stage["seconds"] for stage in facts["stages"]}
    predicted = {"cache build": stages["cache build"] + stages["… complete it"], "students": stages["students"]}
    predicted |= {"bytes": facts["cache"]["bytes"], "files": facts["cache"]["files"]}
    table = Table("what", "predicted", "actual", "actual / predicted", title=f"matmuls: {flops / 1e9:,.0f} GFLOP/s")
    for name, value in predicted.items():
        table.add_row(name, f"{value:,.1f}", f"{actual[name]:,.1f}", f"{actual[name] / value:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

"""`footsteps plan`: time, bytes, memory and money of an experiment, or of one of which only the sizes are known."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from cache_builder.cli.options import set_option
from cache_builder.errors import ConfigError
from trainer.planning.hardware import GPUS, Hardware, parse_field

if TYPE_CHECKING:
    from trainer.config import Experiment
    from trainer.planning.tables import Plan

WIDTH = 120
"""Columns where there is no terminal."""

HARDWARE_OPTIONS = {
    "gpus": "GPUs that work at the same time.",
    "gpus_per_node": "GPUs of one machine.",
    "gpu_flops": "FLOP/s of one GPU at its peak, in the number type that is computed in.",
    "gpu_memory": "Bytes of one GPU.",
    "gpu_price": "$ per GPU and hour.",
    "mfu_forward": "Share of the peak that a forward pass reaches.",
    "mfu_train": "Share of the peak that a training step reaches.",
    "bandwidth": "Bytes per second between all machines and the store.",
    "loader_workers": "dataloader_num_workers per GPU.",
    "storage_price": "$ per GB and month.",
    "storage_months": "Months that the cache is kept.",
}


def hardware_options(command: Any) -> Any:
    """Add an option for every field of `Hardware`."""
    for name, text in reversed(HARDWARE_OPTIONS.items()):
        text = f"{text} {getattr(Hardware, name):g} unless given."
        command = click.option(f"--{name.replace('_', '-')}", name, metavar="N", help=text)(command)
    return command


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@set_option
@click.option("--teacher", metavar="SIZE", help="A folder, a config.json, or parameters such as 8B.")
@click.option("--student", metavar="SIZE", help="As --teacher.")
@click.option("--positions", metavar="N", help="Completion tokens of the corpus; the config's data unless given.")
@click.option("--share", metavar="X", help="Positions per token, with --positions; 0.5 unless given.")
@click.option("--length", metavar="N", help="Tokens of a sequence, with --positions; text.max_length unless given.")
@click.option("--checkpoints", type=click.IntRange(1), help="As teacher.checkpoints.")
@click.option("--vocabulary", metavar="N", help="Tokens of the tokenizer; the models' unless given.")
@click.option("--gpu", metavar="NAME", help="Peak and memory of a100, h100, h200, l40s or rtx4090, by data sheet.")
@hardware_options
@click.option("--sources", is_flag=True, help="Also list every measured figure, and where it was measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: seconds, bytes, dollars.")
def plan(config: Path | None, overrides: tuple[str, ...], sources: bool, as_json: bool, **options: Any) -> None:
    """Estimate time, bytes, memory and money, from CONFIG or from sizes alone; no model is loaded.

    \b
    footsteps plan my-experiment.toml --gpus 8
    footsteps plan --teacher 8B --student 3B --positions 1e9 --checkpoints 5
    """
    from trainer.planning.dry_run import describe_plan
    from trainer.planning.tables import measured_figures, plan_tables, to_json

    experiment = read_experiment(config, overrides, options)
    found = make_plan(experiment, options, from_config=config is not None)
    if as_json:
        click.echo(json.dumps(to_json(found), indent=1))
        return
    console = Console(highlight=False)
    if not console.is_terminal or console.width < WIDTH:
        console.width = WIDTH
    if config is not None:
        console.print(describe_plan(experiment, found.workload.corpus))
    console.print(plan_tables(found))
    if sources:
        console.print(measured_figures(found.measured))


def read_experiment(config: Path | None, overrides: tuple[str, ...], options: dict[str, Any]) -> "Experiment":
    """Return the config's experiment, or one of defaults around the sizes given.

    Raises:
        ConfigError: there is no config, and a size that it would give is missing.
    """
    from cache_builder.config import load_experiment, make_experiment
    from trainer.config import Experiment

    more = (f"teacher.checkpoints={options['checkpoints']}",) if options.get("checkpoints") else ()
    if config is not None:
        return load_experiment(Experiment, config, overrides + more)
    missing = [f"--{name}" for name in ("teacher", "student", "positions") if not options.get(name)]
    if missing:
        raise ConfigError(f"without a CONFIG, {', '.join(missing)} must be given, such as --teacher 8B")
    values = {
        "run": {"output_dir": "runs/plan"},
        "data": {},
        "teacher": {"model": options["teacher"], "dtype": "bfloat16"},
        "student": {"model": options["student"]},
        "distill": {"methods": ["scd+aw"], "bf16": True},
    }
    return make_experiment(Experiment, values, overrides + more, "what was given")


def make_plan(experiment: "Experiment", options: dict[str, Any], *, from_config: bool = True) -> "Plan":
    """Bring an experiment, the options and the measured figures together."""
    from trainer.planning.estimate import estimate
    from trainer.planning.measured import load_measured
    from trainer.planning.model_size import model_size
    from trainer.planning.tables import Plan
    from trainer.planning.units import parse_number
    from trainer.planning.workload import corpus_size, given_size, workload

    given = {name: parse_field(name, text) for name, text in options.items() if name in HARDWARE_OPTIONS and text}
    if options.get("gpu"):
        if options["gpu"] not in GPUS:
            raise ConfigError(f"--gpu {options['gpu']!r} is not known; expected one of {', '.join(GPUS)}")
        flops, memory = GPUS[options["gpu"]]
        given = {"gpu_flops": flops, "gpu_memory": memory, **given}
    workers = int(experiment.distill.other_arguments.get("dataloader_num_workers", 0))
    machine: dict[str, Any] = {"loader_workers": workers, **given}
    hardware = Hardware(**machine)
    origins = {name: "given" for name in (*given, *(["loader_workers"] if workers else []))}
    measured = load_measured()
    if options.get("positions"):
        share, length = parse_number(options.get("share") or "0.5"), options.get("length")
        if share > 1:
            raise ConfigError(f"--share {share:g}: there are at most as many positions as tokens; give 0 < share ≤ 1")
        tokens = parse_number(length) if length else float(experiment.text.max_length)
        held_out = experiment.data.validation_fraction
        corpus = given_size(parse_number(options["positions"]), share, tokens, held_out)
    else:
        corpus = corpus_size(experiment)
        if corpus.problem:
            raise ConfigError(f"the corpus is {corpus.source}; give --positions, such as --positions 1e6")
    vocabulary = experiment.tokenizer.train_vocab_size
    if options.get("vocabulary"):
        vocabulary = round(parse_number(options["vocabulary"]))
    teacher = model_size(options.get("teacher") or experiment.teacher.model, vocabulary)
    student = model_size(options.get("student") or experiment.student.model, vocabulary)
    work = workload(experiment, corpus, teacher.vocabulary, measured, sft=from_config)
    return Plan(
        teacher, student, work, hardware, origins, measured, estimate(work, teacher, student, hardware, measured)
    )

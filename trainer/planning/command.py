"""`footsteps plan`: what an experiment will take, or one of which only the sizes are known; no model is loaded."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from cache_builder.cli.options import set_option
from cache_builder.errors import ConfigError

if TYPE_CHECKING:
    from trainer.config import Experiment
    from trainer.planning.plan import Plan

WIDTH = 120
"""Columns where there is no terminal."""


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@set_option
@click.option("--teacher", metavar="SIZE", help="A folder, a config.json, or parameters such as 8B.")
@click.option("--student", metavar="SIZE", help="As --teacher.")
@click.option("--positions", metavar="N", help="Completion tokens of the corpus; the config's data unless given.")
@click.option("--share", metavar="X", help="Positions per token, with --positions; 0.5 unless given.")
@click.option("--length", metavar="N", help="Tokens of a sequence, with --positions; text.max_length unless given.")
@click.option("--flops", metavar="N", help="FLOP/s that one GPU reaches; what this run has measured unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    config: Path | None, overrides: tuple[str, ...], flops: str | None, as_json: bool, **given: str | None
) -> None:
    """Say steps, bytes, memory and GPU hours before anything is run.

    From CONFIG, or from sizes alone.

    \b
    footsteps plan my-experiment.toml
    footsteps plan --teacher 8B --student 3B --positions 1e9 --set teacher.checkpoints=5 --flops 4e14
    """
    from trainer.planning.rates import given_rates, measured_rates
    from trainer.planning.tables import plan_tables, to_json
    from trainer.planning.units import parse_number

    found = make_plan(read_experiment(config, overrides, given), given)
    rates = given_rates(parse_number(flops)) if flops else measured_rates(found)
    if as_json:
        click.echo(json.dumps(to_json(found, rates), indent=1))
        return
    console = Console(highlight=False)
    if not console.is_terminal or console.width < WIDTH:
        console.width = WIDTH
    console.print(plan_tables(found, rates))


def read_experiment(config: Path | None, overrides: tuple[str, ...], given: dict[str, str | None]) -> "Experiment":
    """Return the config's experiment, or one of defaults around the sizes given.

    Raises:
        ConfigError: there is no config, and a size that it would give is missing.
    """
    from cache_builder.config import load_experiment, make_experiment
    from trainer.config import Experiment

    if config is not None:
        return load_experiment(Experiment, config, overrides)
    missing = [f"--{name}" for name in ("teacher", "student", "positions") if not given.get(name)]
    if missing:
        raise ConfigError(f"without a CONFIG, {', '.join(missing)} must be given, such as --teacher 8B")
    values = {
        "run": {"output_dir": "runs/plan"},
        "data": {},
        "teacher": {"model": given["teacher"], "dtype": "bfloat16"},
        "student": {"model": given["student"]},
        "distill": {"methods": ["scd+aw"], "bf16": True},
    }
    return make_experiment(Experiment, values, overrides, "what was given")


def make_plan(experiment: "Experiment", given: dict[str, str | None]) -> "Plan":
    """Bring an experiment and the sizes that are given in place of its own together.

    Raises:
        ConfigError: a size is no number, or there would be more positions than tokens.
        MissingError: the size of a model is not known here.
    """
    from trainer.planning.corpus_size import corpus_size, given_size
    from trainer.planning.model_size import model_size, shrunk_size
    from trainer.planning.plan import Plan
    from trainer.planning.units import parse_number

    positions, share = given.get("positions"), parse_number(given.get("share") or "0.5")
    if share > 1:
        raise ConfigError(f"--share {share:g}: there are at most as many positions as tokens; give 0 < share ≤ 1")
    length = parse_number(given.get("length") or str(experiment.text.max_length))
    held_out = experiment.data.validation_fraction
    corpus = given_size(parse_number(positions), share, length, held_out) if positions else corpus_size(experiment)
    rows = experiment.tokenizer.train_vocab_size
    teacher = model_size(given.get("teacher") or experiment.teacher.model, rows)
    if experiment.shrink is not None and not given.get("student"):
        student = shrunk_size(experiment.student.model, experiment.shrink, rows)
    else:
        student = model_size(given.get("student") or experiment.student.model, rows)
    return Plan(experiment, corpus, teacher, student)

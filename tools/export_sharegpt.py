"""Write an experiment's examples as ShareGPT conversations, one JSONL file per task, for other trainers.

    python -m tools.export_sharegpt configs/snips.toml --output exported          exported/train/intent.jsonl, …

    {"id": …, "conversations": [{"from": "system" | "human" | "gpt", "value": …}, …]}

What is written reads back as `data.train` of a config with `source = "files"`.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import click

from cache_builder.atomic import write_text
from cache_builder.cli.options import takes_config
from cache_builder.config import load_experiment
from cache_builder.data.examples import Example, named
from cache_builder.data.splits import load_splits
from cache_builder.errors import DataError, UserError
from trainer.config import Experiment

SENDERS = {"system": "system", "user": "human", "assistant": "gpt"}


def conversation(example: Example) -> dict[str, object]:
    """Return one ShareGPT record; the fields that judging an answer needs are kept beside it.

    Raises:
        DataError: the example has something that ShareGPT has no place for.
    """
    used = {key for message in example["messages"] for key in message} | example.keys()
    lost = used & {"tools", "tool_calls", "reasoning_content", "chat_template_kwargs", "train", "text", "tool_call_id"}
    if lost or any(message["role"] not in SENDERS for message in example["messages"]):
        raise DataError(f"{named(example)}: ShareGPT has no place for {', '.join(sorted(lost)) or 'a tool turn'}")
    record: dict[str, object] = {"id": example["id"], "task": example["task"]}
    record["conversations"] = [
        {"from": SENDERS[message["role"]], "value": message["content"]} for message in example["messages"]
    ]
    return record | {key: example[key] for key in ("answer", "choices", "group") if key in example}


def export(examples: Iterable[Example], folder: Path) -> dict[str, int]:
    """Write `<folder>/<task>.jsonl` for each task and return how many rows each has."""
    by_task: dict[str, list[str]] = {}
    for example in examples:
        by_task.setdefault(example["task"], []).append(json.dumps(conversation(example), ensure_ascii=False))
    folder.mkdir(parents=True, exist_ok=True)
    for task, lines in by_task.items():
        write_text(folder / f"{task}.jsonl", "\n".join(lines) + "\n")
    return {task: len(lines) for task, lines in by_task.items()}


@click.command()
@takes_config
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
@click.option("--split", "splits", type=click.Choice(["train", "validation", "test"]), multiple=True, default=["train"])
def main(config: Path, output: Path, splits: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Export the examples of CONFIG."""
    try:
        experiment = load_experiment(Experiment, config, overrides)
        examples = load_splits(experiment.data, experiment.run.seed)
        for split in splits:
            for task, rows in export(examples[split], output / split).items():
                click.echo(f"{output / split / task}.jsonl: {rows} rows")
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()

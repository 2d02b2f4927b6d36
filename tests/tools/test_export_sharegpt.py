"""ShareGPT export: what is written is read back as the same examples."""

import json
from pathlib import Path

from click.testing import CliRunner

from cache_builder.config import DataConfig
from cache_builder.data.sources import turns
from cache_builder.data.splits import load_splits
from tools.cache_curve.texts import texts_in
from tools.export_sharegpt import conversation, export, main


def test_senders_have_their_sharegpt_names() -> None:
    record = conversation({"id": "1", "task": "t", "messages": turns("ask", "say", system="be")})
    assert record["conversations"] == [
        {"from": "system", "value": "be"},
        {"from": "human", "value": "ask"},
        {"from": "gpt", "value": "say"},
    ]


def test_exported_examples_read_back_the_same(tmp_path: Path) -> None:
    examples = load_splits(DataConfig(source="demo", train_examples=30), 0)["train"]
    assert export(examples, tmp_path) == {"department": 10, "findings": 10, "question": 10}
    for task in ("department", "findings", "question"):
        config = DataConfig(train=str(tmp_path / f"{task}.jsonl"), validation_fraction=0)
        read = [{**example, "where": ""} for example in load_splits(config, 0)["train"]]
        assert read == [{**example, "where": ""} for example in examples if example["task"] == task]


def test_the_curve_s_texts_are_the_conversations_whole(tmp_path: Path) -> None:
    messages = turns("ask\u2028more", "say")
    export([{"id": str(row), "task": "t", "messages": messages} for row in range(2)], tmp_path)
    assert list(texts_in(tmp_path / "t.jsonl")) == ["ask\u2028more\nsay"] * 2


def test_the_command_writes_one_file_per_task_and_names_what_it_cannot_do(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[run]\noutput_dir = "run"\n[data]\nsource = "demo"\ntrain_examples = 6\n'
        '[teacher]\nmodel = "a"\n[student]\nmodel = "b"\n'
    )
    result = CliRunner().invoke(main, [str(config), "--output", str(tmp_path / "out"), "--split", "train"])
    assert result.exit_code == 0 and "department.jsonl: 2 rows" in result.output
    row = json.loads((tmp_path / "out" / "train" / "question.jsonl").read_text().splitlines()[0])
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
    refused = CliRunner().invoke(main, [str(config), "--output", str(tmp_path), "--set", "data.tasks=['x']"])
    assert refused.exit_code == 2 and "demo has no task 'x'" in refused.output

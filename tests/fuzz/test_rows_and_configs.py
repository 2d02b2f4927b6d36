"""Rows, data files, configs and imports of any content: read, or refused in one message."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.config import TextConfig, load_experiment
from cache_builder.data.rows.shapes import normalize
from cache_builder.data.rows.tables import open_table
from cache_builder.data.tokenising import encode_all, store_sequences
from cache_builder.interchange.axolotl import AxolotlSource
from cache_builder.interchange.check import Reading, checked
from cache_builder.interchange.distillkit import DistillKitSource
from tests.support import foreign_rows
from tests.support.foreign_rows import EXACT, LEGACY, RECOMMENDED
from tests.support.fuzz import Tally, cases, damaged, text_of, twisted
from tests.support.toys import color_examples
from trainer.config import Experiment

CONFIG = """
[run]
output_dir = "runs/x"
seed = 3
[data]
train = "a.jsonl"
[text]
chat_template = "plain"
[teacher]
model = "org/teacher"
checkpoints = 3
[student]
model = "org/student"
[student.lora]
r = 8
[distill]
methods = ["scd+aw"]
seeds = [0]
learning_rate = 1e-3
[cache]
top_k = 8
[tasks.color]
kind = "exact"
"""
ROWS: list[dict[str, Any]] = [
    *color_examples(2),
    {"id": "a", "prompt": "red?", "completion": "red"},
    {"instruction": "say", "input": "red", "output": "red"},
    {"conversations": [{"from": "human", "value": "red?"}, {"from": "gpt", "value": "red", "weight": 1}]},
    {"text": "red green blue"},
]


@cases(60, 3000)
@given(data=st.data())
def test_a_row_of_any_shape(data: st.DataObject, tokenizer: PreTrainedTokenizerBase, tally: dict[str, Tally]) -> None:
    row = data.draw(twisted(data.draw(st.sampled_from(ROWS))))

    def read() -> Any:
        example = normalize(row, "row-0", "x.jsonl, line 1")
        return [*encode_all([example], tokenizer, TextConfig(chat_template="plain", max_length=64))]

    tally["rows"].end(read)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_data_file_of_any_bytes(suffix: str, tmp_path: Path, tally: dict[str, Tally]) -> None:
    path = tmp_path / f"rows{suffix}"
    rows = [{"id": f"r{i}", "prompt": "red, or\ngreen?", "completion": "né"} for i in range(3)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        path.write_text("id,prompt,completion\n" + 'a,"red, or\ngreen?",né\n' * 3, encoding="utf-8")
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    honest = path.read_bytes()

    @cases(40, 1500)
    @given(content=damaged(honest))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        read = lambda: [normalize(row, "r", where) for where, row in open_table(str(path), "data.train", "train")]  # noqa: E731
        tally[f"data files {suffix}"].end(read)

    check()


@cases(60, 3000)
@given(content=damaged(CONFIG.encode()))
def test_a_config_of_any_bytes(content: bytes, tmp_path: Path, tally: dict[str, Tally]) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    tally["configs"].end(lambda: load_experiment(Experiment, path))


@pytest.fixture(scope="module")
def teacher(make_model: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    return make_model(seed=3, hidden_size=16)


SEQUENCE = np.array([5, 9, 200, 31, 7, 0], np.uint32), np.array([0, 0, 0, 1, 1, 1], np.bool_)


def imported(source: Any, size: int) -> list[Any]:
    """Read all rows twice, as an import does: once to check them, once for their targets."""
    reading = Reading(size, source.default_tail, 1.0, source.roundoff)
    with tempfile.TemporaryDirectory() as folder:
        store_sequences(checked(source, reading), Path(folder))
    return [reading.targets(row) for row in source.rows() if len(row.positions)]


@pytest.mark.parametrize("shape", ["prepared", "raw", "messages"])
def test_axolotls_rows_of_any_shape(
    shape: str, teacher: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, tally: dict[str, Tally]
) -> None:
    tokens, completion = SEQUENCE
    if shape == "prepared":
        row = foreign_rows.axolotl_prepared(teacher, tokens, completion, 3)
    else:
        row = {"logprobs": foreign_rows.axolotl_raw(teacher, tokens, completion, 3)}
        labels = np.where(completion, tokens.astype(np.int64), -100).tolist()
        row |= {"input_ids": tokens.tolist(), "labels": labels} if shape == "raw" else {}
        row |= {"messages": color_examples(1)[0]["messages"]} if shape == "messages" else {}
    row["id"] = "a"
    path = tmp_path / "rows.jsonl"

    @cases(50, 1500)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        lines = [text_of(data.draw(twisted(row))).encode() for _ in range(data.draw(st.integers(1, 2)))]
        content = b"\n".join(lines)
        path.write_bytes(data.draw(damaged(content)) if data.draw(st.integers(0, 3)) == 0 else content)
        template = "plain" if shape == "messages" else None
        read = lambda: imported(AxolotlSource(path, tokenizer, chat_template=template), len(tokenizer))  # noqa: E731
        tally[f"axolotl {shape}"].end(read)

    check()


@pytest.mark.parametrize("codec", [RECOMMENDED, EXACT, LEGACY], ids=["recommended", "exact", "legacy"])
@pytest.mark.parametrize("what", ["codec", "rows", "bytes"])
def test_distillkits_files_of_any_content(
    what: str,
    codec: dict[str, Any],
    teacher: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    tally: dict[str, Tally],
) -> None:
    rows = foreign_rows.distillkit_rows(teacher, [SEQUENCE], codec)
    folder = foreign_rows.write_distillkit(tmp_path / "kit", rows, codec)
    table, config = folder / "data_0.parquet", folder / "compression_config.yaml"
    honest, row = table.read_bytes(), pq.read_table(table).to_pylist()[0]

    @cases(20, 500)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        if what == "codec":
            text = yaml.safe_dump(data.draw(twisted(codec)), allow_unicode=True).encode("utf-8", "surrogatepass")
            config.write_bytes(data.draw(damaged(text)) if data.draw(st.booleans()) else text)
        elif what == "bytes":
            table.write_bytes(data.draw(damaged(honest)))
        else:
            try:
                pq.write_table(pa.Table.from_pylist([data.draw(twisted(row))]), table)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                return  # Arrow would not hold such a row
        read = lambda: imported(DistillKitSource(folder, tokenizer, None), len(tokenizer))  # noqa: E731
        tally[f"DistillKit {what}"].end(read)

    check()

"""Every file format becomes the same examples, and what is held out is never trained on."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from cache_builder.config import DataConfig
from cache_builder.data.examples import Example
from cache_builder.data.prepare import Prepared
from cache_builder.data.splits import SPLITS, load_splits
from cache_builder.errors import CacheMismatchError, ConfigError, DataError, MissingError
from tests.support.toys import load_toy, write_toy

MESSAGES = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "green"}]


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_file_format_reads_the_same(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": f"r{index}", "prompt": f"red {index}?", "completion": "green"} for index in range(20)]
    path = tmp_path / f"train.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, rows)
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    splits = load_splits(DataConfig(train=str(path), validation_fraction=0.2), seed=0)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [16, 4, 0]
    both = sorted([*splits["train"], *splits["validation"]], key=lambda example: int(example["id"][1:]))
    assert [example["messages"][0]["content"] for example in both] == [row["prompt"] for row in rows]


def test_what_is_held_out_depends_on_the_seed_alone_and_is_not_trained_on(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [{"id": str(i), "messages": MESSAGES} for i in range(50)])
    config = DataConfig(train=path)
    one, same, other = (load_splits(config, seed)["validation"] for seed in (1, 1, 2))
    assert [e["id"] for e in one] == [e["id"] for e in same] != [e["id"] for e in other]
    assert not {e["id"] for e in one} & {e["id"] for e in load_splits(config, 1)["train"]}


@pytest.mark.parametrize("limit", [None, 40])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_of_a_group_are_held_out_together_and_others_as_if_there_were_none(
    tmp_path: Path, suffix: str, limit: int | None
) -> None:
    def held_out(groups: list[object]) -> tuple[list[Example], list[Example]]:
        path = tmp_path / f"train.{suffix}"
        rows = [{"id": f"r{i}", "prompt": "a", "completion": "b", "group": group} for i, group in enumerate(groups)]
        if suffix == "jsonl":
            write_jsonl(path, rows)
        else:
            lines = [f"{row['id']},a,b,{'' if row['group'] is None else row['group']}" for row in rows]
            path.write_text("\n".join(["id,prompt,completion,group", *lines]))
        splits = load_splits(DataConfig(train=str(path), validation_fraction=0.2, train_examples=limit), seed=3)
        return list(splits["train"]), list(splits["validation"])

    kept, found = held_out([index // 3 for index in range(50)])
    assert not {row["group"] for row in kept} & {row["group"] for row in found}
    assert len(found) in range(4, (limit or 50) // 5 + 1) and len(kept) + len(found) == (limit or 50)
    (_, alone), (_, ungrouped) = held_out([f"g{index}" for index in range(50)]), held_out([None] * 50)
    assert [row["id"] for row in alone] == [row["id"] for row in ungrouped] and len(alone) == (limit or 50) // 5


def test_a_group_that_is_larger_than_what_is_held_out_is_so_only_where_all_are(tmp_path: Path) -> None:
    def groups_of(groups: str) -> set[str]:
        rows = [{"prompt": "a", "completion": "b", "group": group} for group in groups]
        config = DataConfig(train=write_jsonl(tmp_path / "train.jsonl", rows), validation_fraction=0.25)
        return {row["group"] for seed in range(5) for row in load_splits(config, seed)["validation"]}

    assert groups_of("aaaaaabb") == {"b"}
    assert groups_of("aaaaabbb") == {"b"}
    with pytest.raises(DataError, match=r"every training row has the same `group`.*data.validation"):
        groups_of("aaaaaaaa")


def test_an_empty_file_and_a_missing_one_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        load_splits(DataConfig(train=str(tmp_path / "empty.jsonl")), 0)
    with pytest.raises(MissingError, match=r"nowhere\.jsonl"):
        load_splits(DataConfig(train=str(tmp_path / "nowhere.jsonl")), 0)


def test_a_file_that_is_not_what_its_name_says_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"messages": [\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 1: expected one JSON object per line"):
        list(load_splits(DataConfig(train=str(tmp_path / "broken.jsonl")), 0)["train"])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"broken\.parquet: expected a Parquet file"):
        load_splits(DataConfig(train=str(tmp_path / "broken.parquet")), 0)


def test_a_path_with_an_unset_variable_says_so() -> None:
    with pytest.raises(ValueError, match="environment variable"):
        load_splits(DataConfig(train="$FOOTSTEPS_UNSET/train.jsonl"), 0)


def test_a_limited_file_gives_a_random_part_by_the_seed_in_its_order(tmp_path: Path) -> None:
    rows = [{"id": f"{index:03d}", "task": f"intent-{index // 10}", "messages": MESSAGES} for index in range(200)]
    path = write_jsonl(tmp_path / "sorted.jsonl", rows)
    limits = {f"{split}_examples": 40 for split in SPLITS}
    config = DataConfig(train=path, validation=path, test=path, **limits)
    splits, again, other = (load_splits(config, seed) for seed in (1, 1, 2))
    for split in SPLITS:
        ids = [example["id"] for example in splits[split]]
        assert len(set(ids)) == 40 and ids == sorted(ids)
        assert len({example["task"] for example in splits[split]}) >= 12, "the first 40 rows are of 4 intents"
        assert ids == [example["id"] for example in again[split]] != [example["id"] for example in other[split]]
    whole = load_splits(config.model_copy(update={"train_examples": 500}), 1)["train"]
    assert [example["id"] for example in whole] == [row["id"] for row in rows]


def test_a_limit_on_a_validation_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [{"messages": MESSAGES}] * 20)
    with pytest.raises(ConfigError, match=r"data\.validation_examples is 5, but data\.train .* has no validation set"):
        load_splits(DataConfig(train=path, validation_examples=5), 0)


def test_a_corpus_of_a_file_s_first_rows_is_refused_by_name(tmp_path: Path) -> None:
    experiment = load_toy(write_toy(tmp_path), "data.train_examples=40")
    inputs = Prepared(experiment).train.folder / "inputs.json"
    recorded = json.loads(inputs.read_text())
    assert recorded.pop("train_examples_taken") == "at random by run.seed"
    inputs.write_text(json.dumps(recorded))
    with pytest.raises(CacheMismatchError, match=r"corpus/train was made from other.*\n  train_examples_taken: it has"):
        Prepared(experiment)


def test_a_corpus_of_whole_files_has_the_inputs_that_it_had_before(tmp_path: Path) -> None:
    inputs = Prepared(load_toy(write_toy(tmp_path))).train.folder / "inputs.json"
    assert "train_examples_taken" not in json.loads(inputs.read_text())

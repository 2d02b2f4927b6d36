"""What a run starts from is made of the data's content, not of its name, size or time."""

import json
import os
from pathlib import Path

import pytest

from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheDamagedError, CacheMismatchError, DataError
from cache_builder.steps import SEAL
from tests.support.toys import load_toy, write_toy


def test_a_data_file_that_changed_with_its_size_kept_is_noticed(tmp_path: Path) -> None:
    experiment = load_toy(write_toy(tmp_path, 12))
    Prepared(experiment)
    data = tmp_path / "train.jsonl"
    before = data.stat()
    data.write_text(data.read_text().replace("red", "der"))
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert data.stat().st_size == before.st_size
    with pytest.raises(CacheMismatchError, match=r"sha256 of .*train\.jsonl"):
        Prepared(experiment)


def test_so_is_one_of_a_pattern_and_one_more(tmp_path: Path) -> None:
    config = write_toy(tmp_path, 12)
    rows = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    for part in (0, 1):
        (tmp_path / f"part-{part}.jsonl").write_text("".join(rows[part::2]))
    experiment = load_toy(config, f"data.train='{tmp_path}/part-*.jsonl'")
    Prepared(experiment)
    path = tmp_path / "part-1.jsonl"
    honest = path.read_text()
    path.write_text(honest.replace("red", "der"))
    with pytest.raises(CacheMismatchError, match=r"sha256 of .*part-1\.jsonl"):
        Prepared(experiment)
    path.write_text(honest)
    Prepared(experiment)
    (tmp_path / "part-2.jsonl").write_text(rows[0].replace("color-0", "color-x"))
    with pytest.raises(CacheMismatchError, match=r"sha256 of .*part-2\.jsonl: it has None"):
        Prepared(experiment)


def test_a_damaged_test_set_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    experiment = load_toy(write_toy(tmp_path, 12))
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "red?"}]}\n')
    with pytest.raises(DataError, match=r"test\.jsonl, line 25, .* has no completion"):
        Prepared(experiment)
    assert not (experiment.output_dir / "corpus").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_refused_by_name(name: str, tmp_path: Path) -> None:
    experiment = load_toy(write_toy(tmp_path, 12))
    Prepared(experiment)
    Prepared(experiment)
    path = experiment.output_dir / "tokenizer" / name
    path.write_text(path.read_text() + " ")
    with pytest.raises(CacheDamagedError, match=rf"{name} does not have the bytes .*the tokenizer is damaged: remove"):
        Prepared(experiment)


def as_older(folder: Path, data: Path) -> None:
    """Record in a folder what one of an older version has: its data files' sizes, no digests and no seal."""
    inputs = json.loads((folder / "inputs.json").read_text())
    inputs = {key: value for key, value in inputs.items() if not key.startswith("sha256 of ")}
    (folder / "inputs.json").write_text(json.dumps({**inputs, "file_bytes": {str(data): data.stat().st_size}}))
    result = json.loads((folder / "stage.json").read_text())
    result = {key: value for key, value in result.items() if key not in ("files", SEAL)}
    (folder / "stage.json").write_text(json.dumps(result))


def test_an_older_run_is_kept_where_its_corpus_comes_out_the_same(tmp_path: Path) -> None:
    experiment = load_toy(write_toy(tmp_path, 12))
    first = Prepared(experiment)
    for name in ("tokenizer", "corpus/train", "corpus/validation"):
        as_older(experiment.output_dir / name, tmp_path / "train.jsonl")
    again = Prepared(experiment)
    assert again.train.fingerprint == first.train.fingerprint
    assert "file_bytes" not in json.loads((experiment.output_dir / "corpus" / "train" / "inputs.json").read_text())
    assert not list((experiment.output_dir / "corpus").glob("*.again"))


def test_an_older_run_whose_data_changed_is_refused_by_name(tmp_path: Path) -> None:
    experiment = load_toy(write_toy(tmp_path, 12))
    Prepared(experiment)
    as_older(experiment.output_dir / "corpus" / "train", tmp_path / "train.jsonl")
    data = tmp_path / "train.jsonl"
    data.write_text(data.read_text().replace("red", "der"))
    as_older(experiment.output_dir / "tokenizer", data)
    with pytest.raises(CacheMismatchError, match=r"corpus/train was made by an older version"):
        Prepared(experiment)

"""A stage's records are what was written, or refused by their file's name."""

from pathlib import Path

import pytest

from cache_builder.errors import CacheDamagedError, OtherInputsError
from cache_builder.steps import finish_stage, finished_result, read_record, stage_result, write_record

NO_RECORDS = [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"a":1}x', b"9" * 9999]


@pytest.mark.parametrize("content", NO_RECORDS, ids=lambda content: repr(content[:8]))
@pytest.mark.parametrize("name", ["stage.json", "inputs.json"])
def test_what_is_no_record_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    assert stage_result(tmp_path / "stage", {"seed": 1}) is None
    finish_stage(tmp_path / "stage", {"steps": 12})
    assert stage_result(tmp_path / "stage", {"seed": 1}) == {"steps": 12}
    (tmp_path / "stage" / name).write_bytes(content)
    with pytest.raises(CacheDamagedError, match=f"{name} is damaged: .*remove .*stage to make it again"):
        stage_result(tmp_path / "stage", {"seed": 1})
    if name == "stage.json":
        with pytest.raises(CacheDamagedError, match=r"stage\.json is damaged"):
            finished_result(tmp_path / "stage", "it", "footsteps run")


def test_of_settings_that_changed_only_those_are_named(tmp_path: Path) -> None:
    stage_result(tmp_path, {"training": {"learning_rate": 3e-3, "epochs": 1, "lora": None}, "seed": 0})
    stage_result(tmp_path, {"training": {"learning_rate": 3e-3, "epochs": 1, "lora": None}, "seed": 0})
    with pytest.raises(OtherInputsError) as refused:
        stage_result(tmp_path, {"training": {"learning_rate": 1e-3, "epochs": 1, "lora": {"r": 4}}, "seed": 0})
    assert str(refused.value).splitlines()[1:] == [
        "  training.learning_rate: it has 0.003, now 0.001",
        "  training.lora.r: it has None, now 4",
    ]


@pytest.mark.parametrize(
    ("recorded", "now"), [({"a": None}, None), ({}, None), ({"b": {"c": 1}}, {"b.c": 1}), ({"b": {}}, {"b": [None]})]
)
def test_settings_that_print_alike_are_still_told_apart(recorded: object, now: object, tmp_path: Path) -> None:
    stage_result(tmp_path, {"section": recorded})
    with pytest.raises(OtherInputsError, match="section"):
        stage_result(tmp_path, {"section": now})


def test_a_changed_record_is_refused_and_one_without_a_seal_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    write_record(path, {"steps": 12, "best": None, "loss": float("nan"), "by": {1: "é"}})
    assert read_record(path) | {"loss": 0} == {"steps": 12, "best": None, "loss": 0, "by": {"1": "é"}}
    path.write_text(path.read_text().replace("12", "13"))
    with pytest.raises(CacheDamagedError, match="not what was written"):
        read_record(path)
    path.write_text('{"steps": 13}')
    assert read_record(path) == {"steps": 13}

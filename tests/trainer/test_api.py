"""The whole way in Python, as docs/python.md has it: its code is what runs here."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.cache.reader import open_cache
from cache_builder.errors import ConfigError, MissingError
from tests.support.paths import ROOT
from tests.support.toys import color_examples
from trainer.api import build, load_student, new_run, open_run, train

PAGE = (ROOT / "docs" / "python.md").read_text()
WHOLE, CACHE, LOSS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
TEXT = {"max_length": 64, "chat_template": "plain"}


def rows(count: int) -> list[dict[str, Any]]:
    return [{**row, "task": "default"} for row in color_examples(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase, make_model: Any) -> Path:
    """Where the page's first block has run: two models, and runs/mine."""
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for role, size in (("teacher", 48), ("student", 24)):
            make_model(hidden_size=size).save_pretrained(role)
        tokenizer.save_pretrained("teacher")
        names: dict[str, Any] = {"rows": rows(60), "test_rows": rows(72)[60:]}
        exec(WHOLE, names)
        assert {"teacher", "student_sft", "td/seed-0/best", "scd+aw/seed-0/last"} <= set(names["scores"])
    return folder


def test_the_page_s_whole_way_ends_with_a_report_and_is_a_run_for_the_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = open_run("runs/mine")
    assert (run.folder / "report" / "index.html").is_file()
    assert run.cache.checkpoints == open_cache("runs/mine/cache").checkpoints
    assert load_student(run, "td").config.hidden_size == 24


def test_a_student_that_there_is_not_is_refused_by_what_is_wrong_with_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = open_run("runs/mine")
    for name in ("tdd", "../../student", "td+nothing", ""):
        with pytest.raises(ConfigError, match=r"method .* is not known; expected one of sft, td"):
            load_student(run, name)
    with pytest.raises(ConfigError, match=r"which = '\.\./last': expected \"best\" or \"last\""):
        load_student(run, "td", which="../last")  # type: ignore[arg-type]
    for method, seed in (("td", 7), ("rkl", 0)):
        with pytest.raises(MissingError, match=rf"holds no student; train\(run, '{method}', {seed}\) trains it"):
            load_student(run, method, seed)


def test_the_page_reads_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(CACHE, names)
    assert names["targets"].ids.shape == names["targets"].logp.shape


def test_the_page_s_loop_lowers_the_loss_of_a_model_of_one_s_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, make_model: Any
) -> None:
    monkeypatch.chdir(folder)
    losses: list[float] = []
    names: dict[str, Any] = {"model": make_model(hidden_size=24), "losses": losses}
    exec(
        LOSS.replace("    output.loss.backward()", "    losses.append(output.loss.item())\n    output.loss.backward()"),
        names,
    )
    assert len(LOSS[LOSS.index("for row") :].splitlines()) <= 20
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_models_in_memory_teach_as_finished_checkpoints(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make_model: Any
) -> None:
    teachers: list[LlamaForCausalLM] = [make_model(seed) for seed in (1, 2)]
    run = new_run(
        tmp_path / "run",
        train=rows(40),
        test=rows(50)[40:],
        teacher=teachers,
        student=make_model(3, hidden_size=24),
        tokenizer=tokenizer,
        settings={"text": TEXT, "cache": {"probe_sequences": 8}, "distill": {"methods": ["td"], "epochs_per_stage": 1}},
    )
    assert build(run).checkpoints == ("teacher-0", "teacher-1")
    best = train(run, "td") / "best"
    assert AutoModelForCausalLM.from_pretrained(best).config.hidden_size == 24


def test_a_setting_that_is_said_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.model is said twice"):
        new_run(
            tmp_path, train="t.jsonl", test="u.jsonl", teacher="a", student="b", settings={"teacher": {"model": "c"}}
        )

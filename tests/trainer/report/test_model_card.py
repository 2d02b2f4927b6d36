"""A student's card says what it was made from and how well it does, and cannot be broken by what it quotes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tomli_w

from cache_builder.errors import MissingError
from tests.support.run_folder import CHECKPOINTS, make_run, write_json
from trainer.report.model_card import write_model_card, write_model_cards
from trainer.report.run.run_reader import read_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "demo", methods=("td", "scd"), seeds=(0,))
    config = {
        "run": {"output_dir": str(folder)},
        "teacher": {"model": "owner/big | model"},
        "student": {"model": "owner/<small>"},
        "distill": {
            "methods": ["td", "scd"],
            "seeds": [0],
            "epochs_per_stage": 2,
            "learning_rate": 5e-5,
            "init": "base",
        },
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    for method in ("td", "scd"):
        for which in ("best", "last"):
            write_json(folder / "distill" / method / "seed-0" / which / "config.json", {})
    return folder


def test_every_student_gets_a_card_with_its_own_scores(run_dir: Path) -> None:
    cards = write_model_cards(run_dir)
    assert [card.relative_to(run_dir).as_posix() for card in cards] == [
        f"distill/{method}/seed-0/{which}/README.md" for method in ("td", "scd") for which in ("best", "last")
    ]
    for card in cards:
        model = card.parent.relative_to(run_dir / "distill").as_posix()
        metrics = json.loads((run_dir / "evaluate" / model / "metrics.json").read_text())["tasks"]["triage"]["metrics"]
        value = metrics["accuracy"]
        shown = f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
        assert f"| triage | accuracy (primary) | 90 | {shown} |" in card.read_text(encoding="utf-8")


def test_the_card_names_teacher_data_cache_and_who_taught(run_dir: Path) -> None:
    text = write_model_card(run_dir / "distill/scd/seed-0/best", read_run(run_dir)).read_text(encoding="utf-8")
    run = read_run(run_dir)
    assert run.cache is not None
    assert run.cache.fingerprint in text
    assert "240 sequences, fingerprint corpus" in text
    assert ", ".join(CHECKPOINTS) in text
    assert re.search(r"who taught, stage by stage \| checkpoint-\d+ → checkpoint-\d+", text)
    assert "AutoModelForCausalLM.from_pretrained" in text


def test_licence_fields_are_left_to_the_user(run_dir: Path) -> None:
    text = write_model_card(run_dir / "distill/td/seed-0/best", read_run(run_dir)).read_text(encoding="utf-8")
    assert re.search(r"^# license:$", text, re.MULTILINE)
    assert not re.search(r"^license:", text, re.MULTILINE)


def test_the_control_is_not_called_distilled(tmp_path: Path) -> None:
    for method in ("sft", "td"):
        write_json(tmp_path / "run" / "distill" / method / "seed-0" / "best" / "config.json", {})
    control, distilled = (card.read_text(encoding="utf-8") for card in write_model_cards(tmp_path / "run"))
    assert "on the labels alone" in control and "distilled with footsteps from" not in control
    assert "distilled with footsteps from" in distilled


def test_adapters_say_what_they_need_and_weights_what_they_compare(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "distill" / "td+aw" / "seed-0" / "best"
    write_json(folder / "adapter_config.json", {})
    (tmp_path / "run" / "config.toml").write_text('[distill]\naw_source = "crossfit"\n')
    (text,) = (card.read_text(encoding="utf-8") for card in write_model_cards(tmp_path / "run"))
    assert "loading it needs `peft`" in text
    assert "| losses that the weights compare | of models fine-tuned on the other half of the training data |" in text


def test_a_name_cannot_break_out_of_its_cell(run_dir: Path) -> None:
    text = write_model_card(run_dir / "distill/td/seed-0/last", read_run(run_dir)).read_text(encoding="utf-8")
    assert (
        f"| teacher | owner/big &#124; model, fine-tuned; checkpoint {CHECKPOINTS[-1]} is the one judged below |"
        in text
    )
    assert "owner/&lt;small&gt;" in text


def test_a_student_without_scores_or_cache_still_has_a_card(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "distill" / "td" / "seed-0" / "best"
    write_json(folder / "config.json", {})
    text = write_model_cards(tmp_path / "run")[0].read_text(encoding="utf-8")
    assert "had not been evaluated" in text and "not readable when this card was written" in text
    assert "| teacher | not recorded, fine-tuned |" in text


def test_a_card_says_how_to_prompt_where_the_template_is_there(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    folder = tmp_path / "run" / "distill" / "td" / "seed-0" / "best"
    card = write_model_card(folder, read_run(tmp_path / "run"))
    assert "apply_chat_template" not in card.read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    text = write_model_card(folder, read_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert "apply_chat_template" in text and "vllm serve" in text


def test_a_folder_of_another_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not a student of run"):
        write_model_card(tmp_path / "best", read_run(run_dir))

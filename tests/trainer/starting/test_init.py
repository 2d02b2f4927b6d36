"""`footsteps init` finds how rows are read and writes a config that runs as it is."""

import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner, Result
from transformers import LlamaConfig

from cache_builder.data.tokenizer import load_tokenizer, train_tokenizer
from tests.support.toys import COLORS, write_toy
from trainer.cli import main


def footsteps(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two models' configs: teacher-init and student-init."""
    write_toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def init(
    train: str, test: str | None, *more: str, teacher: str = "teacher-init", student: str = "student-init"
) -> Result:
    tests = [] if test is None else ["--test", test]
    return footsteps("init", "--train", train, *tests, "--teacher", teacher, "--student", student, "--force", *more)


def written(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return tomllib.loads(Path("experiment.toml").read_text())


def refused(result: Result) -> str:
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert not Path("experiment.toml").exists() or "is there already" in result.output
    return " ".join(result.output.split())


def conversations(count: int) -> list[dict[str, Any]]:
    """ShareGPT as it is shared: keys beside the turns, and in them, that nothing uses."""
    return [
        {
            "id": f"row-{index}",
            "model": "somebody",
            "conversations": [
                {"from": "human", "value": f"case {index}: {COLORS[index % 6]} or {COLORS[index % 5]}?", "time": index},
                {"from": "gpt", "value": COLORS[index % 5]},
            ],
        }
        for index in range(count)
    ]


def remove_toy(folder: Path) -> None:
    (folder / "experiment.toml").unlink()


@pytest.mark.slow
def test_sharegpt_rows_with_foreign_keys_make_a_config_that_runs_unchanged(folder: Path) -> None:
    remove_toy(folder)
    train = write_jsonl(folder / "chats.jsonl", conversations(60))
    test = write_jsonl(folder / "chats-test.jsonl", [{**row, "id": f"t-{row['id']}"} for row in conversations(12)])
    config = written(init(train, test))
    assert config["data"]["ignore_keys"] == ["conversations.time", "model"]
    assert config["tasks"]["default"]["choices"] == sorted(COLORS[:5])
    assert config["tokenizer"]["train_vocab_size"] == 328
    assert footsteps("run", "experiment.toml").exit_code == 0
    assert Path("runs/experiment/report/index.html").is_file()


def test_columns_become_a_prompt_and_an_answer_by_their_names(folder: Path) -> None:
    remove_toy(folder)
    for name, count in (("train.csv", 40), ("test.csv", 10)):
        with (folder / name).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["row_id", "utterance", "intent"])
            rows.writerows(
                [[index, f"paint it {COLORS[index % 3]}", f"paint-{COLORS[index % 3]}"] for index in range(count)]
            )
    config = written(init("train.csv", "test.csv"))
    assert config["data"]["rows"]["main"]["prompt"] == "{utterance}"
    assert config["data"]["rows"]["main"]["answer"] == "{intent}"
    assert len(config["tasks"]["main"]["choices"]) == 3
    assert "# columns that nothing uses: row_id" in Path("experiment.toml").read_text()


def papers(count: int) -> list[dict[str, Any]]:
    return [
        {
            "pubid": index,
            "question": f"does {COLORS[index % 6]} help?",
            "context": {"contexts": [f"we gave {COLORS[index % 6]}", "we waited"], "labels": ["AIM", "METHODS"]},
            "long_answer": "it does, we say",
            "final_decision": ("yes", "no")[index % 2],
        }
        for index in range(count)
    ]


def test_columns_of_an_object_are_found_and_the_conclusion_is_not_asked(folder: Path) -> None:
    remove_toy(folder)
    train, test = (write_jsonl(folder / name, papers(20)) for name in ("papers.jsonl", "papers-test.jsonl"))
    config = written(init(train, test))
    task = config["data"]["rows"]["main"]
    assert task["prompt"] == "contexts: {context.contexts}\nquestion: {question}"
    assert task["answer"] == "{final_decision}"


def test_columns_with_names_that_say_nothing_have_to_be_told(folder: Path) -> None:
    remove_toy(folder)
    rows = [{"a": f"x {index}", "b": "yes" if index % 2 else "no"} for index in range(20)]
    train, test = write_jsonl(folder / "t.jsonl", rows), write_jsonl(folder / "u.jsonl", rows)
    assert "give --answer COLUMN" in refused(init(train, test))
    assert 'give --prompt, a text such as "{a}"' in refused(init(train, test, "--answer", "b"))
    assert "no column 'c'" in refused(init(train, test, "--answer", "b", "--prompt", "{c}"))
    config = written(init(train, test, "--answer", "b", "--prompt", "Is {a} so?"))
    assert config["data"]["rows"]["main"]["prompt"] == "Is {a} so?"


def test_names_from_the_data_end_no_comment_and_begin_no_setting(folder: Path) -> None:
    remove_toy(folder)
    rows = [{"text": f"x {index}", "label": "ab"[index % 2], "y\n[student]\nmodel = 'z'": 1} for index in range(20)]
    train, test = write_jsonl(folder / "t.jsonl", rows), write_jsonl(folder / "u.jsonl", rows)
    assert written(init(train, test))["student"]["model"] == "student-init"


def test_long_answers_are_judged_as_text(folder: Path) -> None:
    remove_toy(folder)
    rows = [{"prompt": f"tell {index}", "completion": f"a long story of {index}\nwhich goes on"} for index in range(20)]
    train, test = write_jsonl(folder / "t.jsonl", rows), write_jsonl(folder / "u.jsonl", rows)
    assert written(init(train, test))["tasks"]["default"]["kind"] == "text"


def write_pretrained(folder: Path, name: str, hidden_size: int, layers: int) -> str:
    """Write what is read of a pretrained model: its config, its tokenizer, and the name of its weights' file."""
    LlamaConfig(
        vocab_size=328,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        dtype="bfloat16",
    ).save_pretrained(folder / name)
    train_tokenizer(["red green blue amber violet grey case"], 328, folder / name)
    (folder / name / "model.safetensors").touch()
    return name


def test_of_a_teacher_that_no_usual_gpu_could_fine_tune_adapters_are_trained(folder: Path) -> None:
    remove_toy(folder)
    small = write_pretrained(folder, "small", 64, 2)
    for teacher, lora in ((write_pretrained(folder, "large", 4096, 16), {"r": 16}), (small, None)):
        result = init("train.jsonl", "test.jsonl", teacher=teacher, student=small)
        config = written(result)
        assert config["teacher"].get("lora") == lora
        assert ("teacher: fine-tuned are adapters" in result.output) == (lora is not None)
    assert config["sft"]["teacher"]["learning_rate"] == 5e-5


def test_a_teacher_that_is_fine_tuned_already_is_its_checkpoints(folder: Path) -> None:
    remove_toy(folder)
    base = write_pretrained(folder, "base", 64, 2)
    (folder / "adapters").mkdir()
    (folder / "adapters" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    given = ("--checkpoints", write_pretrained(folder, "step-1", 64, 2), "--checkpoints", "adapters")
    config = written(init("train.jsonl", "test.jsonl", *given, teacher=base, student=base))
    assert config["teacher"]["checkpoints"] == ["step-1", "adapters"]
    assert "teacher" not in config["sft"] and "lora" not in config["teacher"]
    assert "reach" in config["distill"]["methods"]
    assert "tokenizer" not in config and config["text"]["chat_template"] == "plain"
    config = written(init("train.jsonl", "test.jsonl", *given[:2], teacher=base, student=base))
    assert config["distill"]["methods"] == ["sft", "td"], "with one checkpoint reach is td"


def test_checkpoints_that_hold_their_tokenizer_and_template_are_read_with_these(folder: Path) -> None:
    remove_toy(folder)
    base, tuned = (write_pretrained(folder, name, 64, 2) for name in ("base", "tuned"))
    tokenizer = load_tokenizer(tuned)
    tokenizer.chat_template = (
        "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.pad_token = tokenizer.eos_token  # as many save it, and no other token
    tokenizer.save_pretrained(tuned)
    config = written(init("train.jsonl", "test.jsonl", "--checkpoints", tuned, teacher=base, student=base))
    assert config["tokenizer"]["path"] == "tuned"
    assert "chat_template" not in config["text"]

    del config["tokenizer"]
    Path("experiment.toml").write_text(tomli_w.dumps(config))
    expected = "tokenizer in tuned makes other tokens of the first rows than that of teacher.model base"
    for command in (("sft", "experiment.toml", "student"), ("doctor", "experiment.toml")):
        assert expected in " ".join(footsteps(*command).output.split())


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("nowhere/step-1", "--checkpoints nowhere/step-1: no such folder"),
        ("empty", "--checkpoints empty: expected a model"),
        ("teacher-init", "--checkpoints teacher-init: expected a model"),
    ],
)
def test_a_checkpoint_that_is_no_model_is_refused_by_name(checkpoint: str, message: str, folder: Path) -> None:
    remove_toy(folder)
    (folder / "empty").mkdir()
    assert message in refused(init("train.jsonl", "test.jsonl", "--checkpoints", checkpoint))


def test_the_methods_are_those_that_the_methods_page_begins_with_and_each_says_why(folder: Path) -> None:
    remove_toy(folder)
    config = written(init("train.jsonl", "test.jsonl"))
    assert config["distill"]["methods"] == ["sft", "td", "reach"]
    assert config["distill"]["epochs_per_stage"] == 2
    text = Path("experiment.toml").read_text()
    for words in ('"td",    # taught in every stage by the checkpoint with the lowest held-out loss', "raise it until"):
        assert words in text


@pytest.mark.parametrize("source", ["pubmedqa", "jmed-llm", "clinc150", "snips"])
def test_a_benchmarks_folder_is_known_and_needs_no_test_set(source: str, folder: Path, shared_data: Path) -> None:
    remove_toy(folder)
    path = str(shared_data / "data" / source)
    config = written(init(path, None))
    assert config["data"] == {"source": source, "path": path}
    assert "has its own" in refused_again(init(path, "t.jsonl"))


def test_a_folder_of_no_benchmark_is_refused(folder: Path) -> None:
    remove_toy(folder)
    assert "but not that of pubmedqa, jmed-llm, clinc150, snips" in refused(init(".", None))


def refused_again(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return result.output


def test_what_is_not_given_is_refused_by_name_where_nobody_can_be_asked(folder: Path) -> None:
    remove_toy(folder)
    assert "--train is not given" in refused(footsteps("init"))
    assert "--test is not given" in refused(footsteps("init", "--train", "train.jsonl"))


def test_a_config_that_is_there_is_not_replaced(folder: Path) -> None:
    before = Path("experiment.toml").read_text()
    assert "--force" in refused(footsteps("init", "--train", "train.jsonl"))
    assert Path("experiment.toml").read_text() == before


def test_models_with_different_tokenizers_are_refused_naming_both(folder: Path, shared_data: Path) -> None:
    remove_toy(folder)
    models = {
        role: str(shared_data / "models" / name)
        for role, name in (("teacher", "stories260K"), ("student", "baby105-940K"))
    }
    message = refused(init("train.jsonl", "test.jsonl", **models))
    assert "models of one family" in message and message.count("…") == 2


@pytest.mark.slow
@pytest.mark.parametrize("data", ["clinc150", "pubmedqa"])
def test_rows_of_a_benchmark_make_a_config_that_runs_unchanged(data: str, folder: Path, shared_data: Path) -> None:
    remove_toy(folder)
    if data == "clinc150":
        content = json.loads((shared_data / "data/clinc150/data/data_full.json").read_text())
        tables = {
            split: [{"text": text, "intent": intent} for text, intent in content[split]] for split in ("train", "test")
        }
        tables = {"train": tables["train"][::20], "test": tables["test"][::90]}
    else:
        papers = list(json.loads((shared_data / "data/pubmedqa/data/ori_pqal.json").read_text()).values())
        rows = [{key.lower(): paper[key] for key in ("QUESTION", "CONTEXTS", "final_decision")} for paper in papers]
        tables = {"train": rows[:150], "test": rows[150:190]}
    for split, rows in tables.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
    written(init("train.jsonl", "test.jsonl"))
    assert footsteps("run", "experiment.toml").exit_code == 0


@pytest.mark.slow
def test_a_benchmarks_own_folder_makes_a_config_that_runs(folder: Path, shared_data: Path) -> None:
    remove_toy(folder)
    written(init(str(shared_data / "data/clinc150"), None))
    fewer = ("data.train_examples=400", "data.test_examples=40", "sft.teacher.num_train_epochs=1")
    few = (*fewer, "sft.student.num_train_epochs=1", 'distill.methods=["td"]')
    assert footsteps("run", "experiment.toml", *(part for each in few for part in ("--set", each))).exit_code == 0
    assert Path("runs/experiment/report/index.html").is_file()

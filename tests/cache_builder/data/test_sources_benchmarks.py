"""The importers of published benchmarks: made-up files of the published sizes, and the real ones where they are."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_builder.config import DataConfig
from cache_builder.data.examples import Example
from cache_builder.data.sources import clinc150, jmed_llm, pubmedqa, snips
from cache_builder.errors import ConfigError, DataError, MissingError

Splits = dict[str, list[Example]]


def config(source: str, path: Path, **options: object) -> DataConfig:
    return DataConfig.model_validate({"source": source, "path": str(path), **options})


def write_pubmedqa(folder: Path) -> Path:
    labels = [label for label, count in pubmedqa.COUNTS.items() for _ in range(count)]
    papers = {
        str(pmid): {
            "QUESTION": f"Is {pmid} even?",
            "CONTEXTS": [f"We counted to {pmid}.", "It ended."],
            "LABELS": ["METHODS", "RESULTS"],
            "LONG_ANSWER": "the conclusion",
            "final_decision": labels[pmid % 500],
        }
        for pmid in range(1000)
    }
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "ori_pqal.json").write_text(json.dumps(papers))
    truth = {pmid: paper["final_decision"] for pmid, paper in papers.items() if int(pmid) < 500}
    (folder / "data" / "test_ground_truth.json").write_text(json.dumps(truth))
    return folder


def write_clinc150(folder: Path) -> Path:
    content = {
        part: [
            [f"{part} {label} {row}", label]
            for label in (["oos"] if part.startswith("oos") else [f"intent_{index}" for index in range(150)])
            for row in range(count)
        ]
        for parts in clinc150.PARTS.values()
        for part, count in parts
    }
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "data_full.json").write_text(json.dumps(content))
    return folder


def write_snips(folder: Path) -> Path:
    for intent, count in snips.TRAIN_COUNTS.items():
        (folder / snips.FOLDER / intent).mkdir(parents=True)
        for file, size in ((f"train_{intent}_full.json", count), (f"validate_{intent}.json", 100)):
            rows = [{"data": [{"text": f"do  {row} "}, {"text": "Café", "entity": "place"}]} for row in range(size)]
            encoding = "latin-1" if file == "train_PlayMusic_full.json" else "utf-8"
            text = json.dumps({intent: rows}, ensure_ascii=False)
            (folder / snips.FOLDER / intent / file).write_bytes(text.encode(encoding))
    return folder


def write_jmed_llm(folder: Path) -> Path:
    (folder / "datasets" / "all").mkdir(parents=True)
    for table in (jmed_llm.POOLS, jmed_llm.OFFICIAL):
        for task, file in table.items():
            labels = [label for label, count in file.counts.items() for _ in range(count)]
            choices, last = set(labels) <= set("ABCDEF"), max(labels)
            columns = ["tag", "question", *(f"option{letter}" for letter in "ABCDEF" if choices), "answer"]
            with (folder / "datasets" / file.name).open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(columns)
                for row, label in enumerate(labels):
                    question = (
                        f"{task}、これは何ですか？\n「文書{row // 4}、\n{row % 4}」"
                        if row % 2
                        else f"{task} {row}？\n「{row}」"
                    )
                    if choices:
                        options = [f"選択{letter}" if letter <= last else "" for letter in "ABCDEF"]
                        writer.writerow(["", question, *options, label])
                    else:
                        writer.writerow([label, question, "['咳', '熱']"])
    return folder


BENCHMARKS: dict[str, tuple[Callable[[Path], Path], Callable[[DataConfig, int], Splits]]] = {
    "pubmedqa": (write_pubmedqa, pubmedqa.load),
    "clinc150": (write_clinc150, clinc150.load),
    "snips": (write_snips, snips.load),
    "jmed-llm": (write_jmed_llm, jmed_llm.load),
}


@pytest.mark.parametrize("source", BENCHMARKS)
def test_reading_twice_gives_the_same_and_limits_keep_a_part(source: str, tmp_path: Path) -> None:
    write, load = BENCHMARKS[source]
    folder = write(tmp_path / source)
    whole = load(config(source, folder), 0)
    assert whole == load(config(source, folder), 0)
    part = load(config(source, folder, train_examples=20, validation_examples=3, test_examples=10), 0)
    assert (len(part["train"]), len(part["test"])) == (20, 10)
    assert len(part["validation"]) == min(3, len(whole["validation"]))
    assert all(example in whole["train"] for example in part["train"])
    for examples in whole.values():
        assert len({example["id"] for example in examples}) == len(examples)


@pytest.mark.parametrize("source", BENCHMARKS)
def test_a_missing_folder_a_missing_file_and_no_path_are_each_named(source: str, tmp_path: Path) -> None:
    load = BENCHMARKS[source][1]
    with pytest.raises(MissingError, match=r"data\.path .*elsewhere: no such folder"):
        load(config(source, tmp_path / "elsewhere"), 0)
    with pytest.raises(MissingError, match=r"\.(json|csv): no such file"):
        load(config(source, tmp_path), 0)
    with pytest.raises(ConfigError, match=r"data\.path is not given"):
        load(DataConfig.model_validate({"source": source}), 0)


@pytest.mark.parametrize(
    "source, file",
    [
        ("pubmedqa", "data/ori_pqal.json"),
        ("pubmedqa", "data/test_ground_truth.json"),
        ("clinc150", "data/data_full.json"),
        ("snips", f"{snips.FOLDER}/PlayMusic/train_PlayMusic_full.json"),
        ("snips", f"{snips.FOLDER}/RateBook/validate_RateBook.json"),
        ("jmed-llm", "datasets/all/SMDIS.csv"),
        ("jmed-llm", "datasets/nrner.csv"),
    ],
)
def test_a_file_that_ends_early_is_refused_by_name(source: str, file: str, tmp_path: Path) -> None:
    write, load = BENCHMARKS[source]
    path = write(tmp_path / source) / file
    content = path.read_bytes()
    path.write_bytes(content[: 9 * len(content) // 10])
    with pytest.raises(DataError, match=rf"{path.name}.* (damaged|partial)"):
        load(config(source, tmp_path / source), 0)


def test_a_paper_with_another_label_is_refused(tmp_path: Path) -> None:
    path = write_pubmedqa(tmp_path) / "data" / "ori_pqal.json"
    papers = json.loads(path.read_text())
    papers["999"]["final_decision"] = "yes"
    path.write_text(json.dumps(papers))
    with pytest.raises(DataError, match=r"maybe 54 instead of 55, yes 277 instead of 276"):
        pubmedqa.load(config("pubmedqa", tmp_path), 0)


def test_a_test_label_that_the_papers_contradict_is_refused(tmp_path: Path) -> None:
    path = write_pubmedqa(tmp_path) / "data" / "test_ground_truth.json"
    truth = json.loads(path.read_text())
    truth["0"], truth["499"] = truth["499"], truth["0"]
    path.write_text(json.dumps(truth))
    with pytest.raises(DataError, match=r"disagree on 2 papers, the first is 0"):
        pubmedqa.load(config("pubmedqa", tmp_path), 0)


def test_a_pubmedqa_prompt_has_the_abstract_and_never_the_conclusion(tmp_path: Path) -> None:
    splits = pubmedqa.load(config("pubmedqa", write_pubmedqa(tmp_path)), 0)
    prompt = splits["test"][3]["messages"][0]["content"]
    assert prompt.endswith("METHODS: We counted to 3.\nRESULTS: It ended.\n\nQuestion: Is 3 even?")
    assert "conclusion" not in json.dumps(splits)


def test_snips_reads_the_latin_1_file_and_keeps_slots_as_entities(tmp_path: Path) -> None:
    splits = snips.load(config("snips", write_snips(tmp_path), tasks=["slots"]), 0)
    example = next(e for e in splits["train"] if "PlayMusic" in e["id"])
    assert example["messages"][0]["content"] == "Utterance: do 0 Café\nSlots:"
    assert example["answer"] == ["place: Café"] and example["messages"][1]["content"] == "['place: Café']"


def test_jmed_llm_prompts_are_the_official_ones(tmp_path: Path) -> None:
    folder = write_jmed_llm(tmp_path)
    choice = jmed_llm.load(config("jmed-llm", folder, tasks=["smdis"]), 0)["test"][0]
    system, user, assistant = choice["messages"]
    assert (
        system["content"].endswith("含めないことを厳守してください。")
        and "アルファベット（例：A）" in system["content"]
    )
    assert user["content"] == "質問: smdis 0？\n「0」\n選択肢:\nA. 選択A\nB. 選択B\n"
    assert assistant["content"] == "A" and choice["choices"] == ["選択A", "選択B"]
    entity = jmed_llm.load(config("jmed-llm", folder, tasks=["nrner"]), 0)["test"][0]
    assert "Pythonのリスト形式（例：['回答1', '回答2']）" in entity["messages"][0]["content"]
    assert entity["answer"] == ["咳", "熱"]


def test_jmed_llm_official_rows_are_never_trained_on(tmp_path: Path) -> None:
    splits = jmed_llm.load(config("jmed-llm", write_jmed_llm(tmp_path)), 0)
    prompts = {split: {e["messages"][1]["content"] for e in splits[split]} for split in ("train", "test")}
    assert not prompts["train"] & prompts["test"]
    assert Counter(e["task"] for e in splits["test"]) == dict.fromkeys(jmed_llm.OFFICIAL, 100)


def test_a_split_by_row_has_the_sizes_of_the_paper_and_one_by_group_shares_no_document(tmp_path: Path) -> None:
    folder = write_jmed_llm(tmp_path)
    by_row = jmed_llm.load(config("jmed-llm", folder, split_by="row"), 0)
    sizes = Counter(example["task"] for example in by_row["test"])
    assert (sizes["jmmlu_med"], sizes["crade"], sizes["rrtnm"]) == (137, 326, 65)
    assert by_row["test"] != jmed_llm.load(config("jmed-llm", folder, split_by="row"), 1)["test"]
    by_group = jmed_llm.load(config("jmed-llm", folder, split_by="group"), 0)
    groups = {split: {(e["task"], e["group"]) for e in examples} for split, examples in by_group.items()}
    assert not groups["train"] & groups["test"] and not groups["validation"] & groups["test"]
    assert not groups["train"] & groups["validation"] and groups["validation"]
    assert sum(map(len, by_row.values())) == sum(map(len, by_group.values()))
    with pytest.raises(ConfigError, match="'jcsts' has no pool to split"):
        jmed_llm.load(config("jmed-llm", folder, split_by="row", tasks=["jcsts"]), 0)


def test_the_real_files_have_the_published_counts(shared_data: Path) -> None:
    data = shared_data / "data"
    splits = pubmedqa.load(config("pubmedqa", data / "pubmedqa"), 0)
    assert (len(splits["train"]), len(splits["test"])) == (500, 500)
    splits = clinc150.load(config("clinc150", data / "clinc150"), 0)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [15_100, 3_100, 5_500]
    splits = snips.load(config("snips", data / "snips", tasks=["intent"]), 0)
    assert (len(splits["train"]), len(splits["test"])) == (13_784, 700)
    splits = jmed_llm.load(config("jmed-llm", data / "jmed-llm", split_by="row"), 0)
    rows = Counter(example["task"] for examples in splits.values() for example in examples)
    expected = {
        "jmmlu_med": 681,
        "crade": 1630,
        "rrtnm": 324,
        "smdis": 15_360,
        "nrner": 1539,
        "crner": 265,
        "rrner": 72,
    }
    assert rows == expected


def test_the_real_documents_leak_by_row_and_not_by_group(shared_data: Path) -> None:
    leaks = {}
    for split_by in ("row", "group"):
        splits = jmed_llm.load(config("jmed-llm", shared_data / "data" / "jmed-llm", split_by=split_by), 0)
        trained = {(e["task"], e["group"]) for e in splits["train"] + splits["validation"]}
        leaks[split_by] = Counter(e["task"] for e in splits["test"] if (e["task"], e["group"]) in trained)
    assert leaks["row"]["crade"] == 326 and leaks["row"]["smdis"] == 3072
    assert not leaks["group"]

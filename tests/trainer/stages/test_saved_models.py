"""Whatever a run saves can be used as it was trained: its template and its end of turn travel with the weights."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from cache_builder.data.chat import encode_prompt
from tests.support.toys import color_examples
from trainer.stages.distill import distill


def check_saved(folder: Path, tokenizer: Any) -> None:
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    for example in color_examples(3):
        given = loaded.apply_chat_template(example["messages"][:1], add_generation_prompt=True, return_dict=False)
        assert given == encode_prompt(example, tokenizer, "plain")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [tokenizer.eos_token_id]


def test_teachers_students_and_checkpoints_are_prompted_as_they_were_trained(toy: Any) -> None:
    experiment, cache, prepared = toy()
    student = distill(experiment, "scd", 0, cache, prepared)
    folders = [
        path.parent
        for name in ("teacher", "student", "distill")
        for path in (experiment.output_dir / name).resolve().rglob("config.json")
    ]
    assert (student / "best").resolve() in folders and (student / "last").resolve() in folders
    assert any(folder.name.startswith("checkpoint-") for folder in folders)
    for folder in folders:
        check_saved(folder, prepared.tokenizer)

"""What does not belong to a cache, or cannot be built, is refused by its name."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.config import TextConfig
from cache_builder.data.tokenising import build_corpus
from cache_builder.errors import (
    CacheMismatchError,
    ConfigError,
    MissingError,
)
from tests.support.caches import Teaching
from tests.support.toys import color_examples

SEQUENCES = 120
"""Of the teaching."""


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"top_k": 5}, "targets.top_k: it has 4, now 5"),
        ({"tail_samples": 3}, "targets.tail_samples"),
        ({"tail_blocks": 3}, "version: it has 1, now 3"),
        ({"shard_positions": 126}, "layout.shard_positions"),
        ({"probe_sequences": 7}, "probe.sequences"),
    ],
)
def test_options_that_change_the_result_are_refused_by_name(
    teaching: Teaching, built: Path, changes: dict[str, int], field: str
) -> None:
    with pytest.raises(CacheMismatchError, match=field):
        teaching.build(built, **changes)


def test_another_corpus_tokenizer_template_or_teacher_is_refused_by_name(
    teaching: Teaching, built: Path, tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    experiment, tokenizer = teaching.experiment(built), teaching.tokenizer
    corpus, held_out, checkpoints = teaching.corpus, teaching.held_out, teaching.checkpoints
    other = build_corpus(
        color_examples(119),
        tokenizer,
        tmp_path / "other",
        text=TextConfig(chat_template="plain", max_length=64),
        inputs={},
    )
    with pytest.raises(CacheMismatchError, match=r"corpus\.fingerprint"):
        build_cache(experiment, other, tokenizer, checkpoints, held_out)
    with pytest.raises(CacheMismatchError, match=r"held_out\.fingerprint"):
        build_cache(experiment, corpus, tokenizer, checkpoints, other)
    templated = experiment.model_copy(update={"text": experiment.text.model_copy(update={"chat_template": "{{ x }}"})})
    with pytest.raises(CacheMismatchError, match="chat_template_fingerprint"):
        build_cache(templated, corpus, tokenizer, checkpoints, held_out)
    tokenizer.add_tokens(["unheard"])
    with pytest.raises(
        CacheMismatchError, match=r"tokenizer\.fingerprint[^\n]*\n  tokenizer\.size: it has 300, now 301"
    ):
        build_cache(experiment, corpus, tokenizer, checkpoints, held_out)
    make_model(seed=9, hidden_size=16).save_pretrained(tmp_path / "step-1")
    with pytest.raises(CacheMismatchError, match="checkpoint 'step-1'"):
        build_cache(
            experiment, corpus, teaching.tokenizer, [("step-1", str(tmp_path / "step-1")), checkpoints[1]], held_out
        )


def test_a_vocabulary_below_an_id_of_the_corpus_is_refused(teaching: Teaching, tmp_path: Path) -> None:
    corpus = teaching.corpus
    corpus.tokens = np.where(np.arange(len(corpus.tokens)) == 5, 300, corpus.tokens).astype("<u4")
    with pytest.raises(CacheMismatchError, match="token id 300, the tokenizer only 300 tokens"):
        build_cache(teaching.experiment(tmp_path / "cache"), corpus, teaching.tokenizer, teaching.checkpoints)


def test_a_folder_that_is_no_cache_is_left_alone(teaching: Teaching, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(CacheMismatchError, match=re.escape("not empty (it holds 'thesis.tex')")):
        teaching.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_teachers_own_list_is_read_and_its_absence_names_the_command(teaching: Teaching, tmp_path: Path) -> None:
    experiment = teaching.experiment(tmp_path / "cache")
    assert teacher_checkpoints(experiment) == teaching.checkpoints
    own = experiment.model_copy(
        update={
            "run": experiment.run.model_copy(update={"output_dir": str(tmp_path)}),
            "teacher": experiment.teacher.model_copy(update={"checkpoints": 4}),
        }
    )
    with pytest.raises(MissingError, match="run `footsteps sft CONFIG teacher` first"):
        teacher_checkpoints(own)
    (tmp_path / "teacher" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "teacher" / "checkpoints.json").write_text(
        '{"checkpoints": [{"name": "checkpoint-5", "path": "checkpoint-5", "step": 5}]}'
    )
    assert teacher_checkpoints(own) == [("checkpoint-5", str(tmp_path / "teacher" / "checkpoint-5"))]
    twice = experiment.teacher.model_copy(update={"checkpoints": ["a/x", "b/x"]})
    with pytest.raises(CacheMismatchError, match="'x' names two checkpoints"):
        teacher_checkpoints(experiment.model_copy(update={"teacher": twice}))


def test_more_blocks_than_tokens_are_refused(teaching: Teaching, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.tail_blocks is 301, but the tokenizer has only 300 tokens"):
        teaching.build(tmp_path / "cache", tail_blocks=301)
    assert not (tmp_path / "cache").exists()

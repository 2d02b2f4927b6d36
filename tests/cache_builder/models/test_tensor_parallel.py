"""A checkpoint divided among processes says what it says alone, to rounding; real gloo processes on CPUs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.build.build import build_cache
from cache_builder.cache.reader import open_cache
from cache_builder.config import CacheExperiment
from cache_builder.errors import ConfigError, ModelError
from cache_builder.models.tensor_parallel import _load_part
from tests.support.caches import Teaching, make_teaching
from tests.support.paths import ROOT
from tests.support.teachers import load, save_adapters

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's use
    pytest.mark.usefixtures("on_the_cpu"),
]


@pytest.fixture(scope="module")
def teaching(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., LlamaForCausalLM],
) -> Teaching:
    """A plain checkpoint whose head is its embedding, adapters of it, and the name of a folder that is not there."""
    teaching = make_teaching(tmp_path_factory.mktemp("teaching"), tokenizer, make_model, sequences=30)
    make_model(seed=0, hidden_size=16, tie_word_embeddings=True).save_pretrained(teaching.folder / "step-1")
    os.rename(teaching.folder / "step-2", teaching.folder / "base")
    save_adapters(teaching.folder / "base", teaching.folder / "step-2", 1, target_modules=["q_proj", "down_proj"])
    return teaching


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["padded", "packed"])
def test_two_groups_of_two_processes_build_what_one_process_builds(
    teaching: Teaching, tmp_path: Path, batches: str
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.tensor_parallel_processes",
            teaching.folder,
            tmp_path / "divided",
            batches,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert teaching.build(tmp_path / "alone")
    ours, theirs = open_cache(str(tmp_path / "divided")), open_cache(str(tmp_path / "alone"))
    assert ours.checkpoints == theirs.checkpoints == ("step-1", "step-2")
    rows = list(range(len(ours.corpus)))
    exact = []
    for name in ours.checkpoints:
        assert ours.checkpoint(name).identity == theirs.checkpoint(name).identity
        divided, alone = ours.read(name, rows), theirs.read(name, rows)
        assert (divided.ids == alone.ids).mean() > 0.99
        np.testing.assert_allclose(divided.logp, alone.logp, atol=1 / 256 + 1e-6)
        for field in ("gold", "entropy", "log_tail"):
            np.testing.assert_allclose(getattr(divided, field), getattr(alone, field), atol=1e-4, err_msg=field)
            exact.append(np.array_equal(getattr(divided, field), getattr(alone, field)))
        np.testing.assert_allclose(ours.losses(name), theirs.losses(name), rtol=1e-5)
        assert ours.held_out(name) == pytest.approx(theirs.held_out(name), rel=1e-5)
        np.testing.assert_allclose(ours.probe_logp(name), theirs.probe_logp(name), atol=1 / 256 + 1e-6)
    assert not all(exact)  # sums in another order: the layers were divided


def divided(teaching: Teaching, size: int) -> CacheExperiment:
    values = teaching.experiment("unused").model_dump()
    return CacheExperiment.model_validate({**values, "teacher": {**values["teacher"], "tensor_parallel": size}})


def test_a_group_needs_its_number_of_processes(teaching: Teaching, monkeypatch: pytest.MonkeyPatch) -> None:
    for world in ("1", "3"):
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(ConfigError, match=f"torchrun with 2 processes, or a multiple of that; got {world}"):
            build_cache(divided(teaching, 2), teaching.corpus, teaching.tokenizer, teaching.checkpoints)


def test_a_divided_teacher_is_for_building_alone(teaching: Teaching) -> None:
    with pytest.raises(ConfigError, match=r"footsteps cache build.*device_map"):
        load(teaching, teaching.folder / "base", tensor_parallel=2)


@pytest.mark.parametrize("other", [{"device_map": "auto"}, {"quantization": "4bit"}])
def test_two_ways_at_once_are_refused(teaching: Teaching, other: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(other))}.*tensor_parallel"):
        load(teaching, teaching.folder / "base", tensor_parallel=2, **other)


def test_a_device_map_on_several_processes_is_refused(teaching: Teaching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process use every GPU, but this run has several"):
        load(teaching, teaching.folder / "base", device_map="auto")


def test_heads_that_cannot_be_divided_are_refused_by_name(teaching: Teaching) -> None:
    with pytest.raises(ModelError, match=r"num_key_value_heads = 2, which teacher\.tensor_parallel = 4 cannot divide"):
        _load_part(divided(teaching, 4).teacher, 0, str(teaching.folder / "base"), 4)

"""States that another engine has written give what the whole model gives, and nothing else is taken for them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from cache_builder.build.build import build_cache
from cache_builder.build.requests import write_requests
from cache_builder.cache.reader import open_cache
from cache_builder.capture.hidden_states import HiddenStatesEngine
from cache_builder.capture.probe import batches_of
from cache_builder.capture.state_files import RanBy, StateFiles, sequence_key
from cache_builder.capture.teacher import TransformersEngine
from cache_builder.config import CacheExperiment
from cache_builder.errors import CacheMismatchError, ConfigError, MissingError, ModelError
from cache_builder.models.last_parts import final_norm
from cache_builder.models.loading import weights_fingerprint
from cache_builder.positions import rows_between
from cache_builder.targets.sparse import Targets
from tests.support.caches import SMALL, Teaching
from tests.support.hybrid_families import BASE
from tests.support.teachers import OPTIONS, assert_same
from tools.hidden_states import record, requests_of, run_transformers

SHAPE = {**BASE, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "phi3": {},
    "olmo2": {},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.5},
}


def family(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """Save a random model of a family, whose norm and logits are not those of an untrained one."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **FAMILIES.get(kind, {})})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    model.to(dtype).save_pretrained(folder)
    return str(folder)


def experiment(teaching: Teaching, states: Path, location: str, **teacher: Any) -> CacheExperiment:
    values = teaching.experiment("unused").model_dump()
    values["teacher"] |= {"model": location, "engine": "hidden-states", "hidden_states": str(states), **teacher}
    return CacheExperiment.model_validate(values)


def whole_targets(teaching: Teaching, location: str, dtype: str = "float32") -> tuple[Targets, Any]:
    values = teaching.experiment("unused").model_dump()
    values["teacher"] |= {"model": location, "dtype": dtype}
    teacher = TransformersEngine(CacheExperiment.model_validate(values), teaching.tokenizer).load("step", location)
    return teacher.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS), teacher


def write_as_run(teaching: Teaching, teacher: Any, files: StateFiles, location: str, dtype: str = "float32") -> None:
    """Write the states of the batches that the whole teacher ran."""
    files.begin(RanBy(engine="test", version="1", dtype=dtype, weights_fingerprint=weights_fingerprint(location, 0)))
    corpus = teaching.corpus
    rows = rows_between(corpus.position_offsets, 0, corpus.n_positions)
    for members, batch in batches_of(corpus, rows, teacher.batching):
        for row, states in zip(members, record(teacher.model, final_norm(teacher.model), batch), strict=True):
            files.write(corpus.sequence(int(row))[0], states)


@pytest.mark.parametrize("kind", FAMILIES)
def test_states_written_in_float32_give_the_targets_of_the_whole_model_to_the_bit(
    teaching: Teaching, tmp_path: Path, kind: str
) -> None:
    location = family(kind, tmp_path / "model")
    expected, teacher = whole_targets(teaching, location)
    write_as_run(teaching, teacher, StateFiles.of(tmp_path, "step"), location)
    engine = HiddenStatesEngine(experiment(teaching, tmp_path, location), teaching.tokenizer)
    backend = engine.load("step", location)
    layers = sum(parameter.numel() for parameter in teacher.model.parameters()) - sum(
        parameter.numel() for parameter in backend.model.parameters()
    )
    assert layers > 2 * 32 * 32, "the layers are not in memory"
    assert_same(backend.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS), expected)


def test_a_family_whose_last_hidden_state_no_norm_gives_is_refused_by_name(teaching: Teaching, tmp_path: Path) -> None:
    location = family("gpt2", tmp_path / "model")
    ran_by = RanBy(engine="test", version="1", dtype="float32", weights_fingerprint=weights_fingerprint(location, 0))
    StateFiles.of(tmp_path, "step").begin(ran_by)
    with pytest.raises(ModelError, match=r"model_type 'gpt2'.*teacher\.engine = \"transformers\""):
        HiddenStatesEngine(experiment(teaching, tmp_path, location), teaching.tokenizer).load("step", location)


def test_half_precision_states_are_within_their_rounding(teaching: Teaching, tmp_path: Path) -> None:
    location = family("llama", tmp_path / "model")
    expected, teacher = whole_targets(teaching, location)
    files = StateFiles.of(tmp_path, "step")
    write_as_run(teaching, teacher, files, location)
    for path in files.folder.glob("??/*.safetensors"):
        tensors = load_file(path)
        save_file({**tensors, "hidden_states": tensors["hidden_states"].bfloat16()[:, None].contiguous()}, path)
    backend = HiddenStatesEngine(experiment(teaching, tmp_path, location), teaching.tokenizer).load("step", location)
    ours = backend.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS)
    assert not np.array_equal(ours.gold, expected.gold)
    # bfloat16 keeps 8 bits: relative errors of 2⁻⁹ at most in each of 32 states, of logits of a few nats
    np.testing.assert_allclose(ours.gold, expected.gold, atol=0.05)
    np.testing.assert_allclose(ours.entropy, expected.entropy, atol=0.05)


@pytest.fixture(scope="module")
def written(teaching: Teaching, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of requests that the tool has run through both of the teaching's checkpoints."""
    folder = tmp_path_factory.mktemp("states")
    write_requests(folder, teaching.corpus, teaching.held_out, [name for name, _ in teaching.checkpoints])
    for name, location in teaching.checkpoints:
        run_transformers(location, "float32", 256, iter([list(requests_of(folder))]), StateFiles.of(folder, name))
    return folder


def build(teaching: Teaching, states: Path, cache: Path, **teacher: Any) -> bool:
    values = teaching.experiment(cache).model_dump()
    values["teacher"] |= {"engine": "hidden-states", "hidden_states": str(states), **teacher}
    return build_cache(
        CacheExperiment.model_validate(values),
        teaching.corpus,
        teaching.tokenizer,
        teaching.checkpoints,
        teaching.held_out,
    )


def test_a_whole_cache_is_built_from_states_and_says_so(teaching: Teaching, written: Path, tmp_path: Path) -> None:
    assert build(teaching, written, tmp_path / "ours") and teaching.build(tmp_path / "theirs")
    ours, theirs = open_cache(tmp_path / "ours"), open_cache(tmp_path / "theirs")
    for name, _ in teaching.checkpoints:
        identity = ours.checkpoint(name).identity
        assert identity.attn_implementation.startswith("hidden states of transformers 5.")
        assert identity.weights_fingerprint == theirs.checkpoint(name).identity.weights_fingerprint
        mine, other = (cache.read_spans(name, [(0, teaching.corpus.n_positions)]) for cache in (ours, theirs))
        np.testing.assert_allclose(mine.gold, other.gold, atol=1.5 / SMALL["logp_steps_per_nat"])
        np.testing.assert_allclose(ours.held_out(name), theirs.held_out(name), rtol=1e-4)


def test_files_are_deleted_once_committed_and_a_build_goes_on_from_those_left(
    teaching: Teaching, written: Path, tmp_path: Path
) -> None:
    states = shutil.copytree(written, tmp_path / "states")
    name, _ = teaching.checkpoints[0]
    held = StateFiles.of(states, name)
    missing = held.path(sequence_key(teaching.held_out.sequence(0)[0]))
    kept = missing.read_bytes()
    missing.unlink()
    with pytest.raises(MissingError, match=missing.name):
        build(teaching, states, tmp_path / "cache", hidden_states_delete=True)
    assert 0 < held.count() < StateFiles.of(written, name).count()
    missing.write_bytes(kept)
    assert build(teaching, states, tmp_path / "cache", hidden_states_delete=True)
    assert build(teaching, written, tmp_path / "whole")
    shared = json.loads((states / "requests.json").read_text())["shared"]
    assert held.count() == len(shared), "what several rows share is kept"
    ours, whole = open_cache(tmp_path / "cache"), open_cache(tmp_path / "whole")
    for name, _ in teaching.checkpoints:
        assert_same(*(cache.read_spans(name, [(0, teaching.corpus.n_positions)]) for cache in (ours, whole)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "token_ids": t["token_ids"] + 1}, "other token ids"),
        (lambda t: {**t, "hidden_states": t["hidden_states"][:-1].contiguous()}, r"expected floating point \["),
        (lambda t: {**t, "hidden_states": t["hidden_states"][:, None].repeat(1, 2, 1)}, "of the last layer alone"),
        (lambda t: {**t, "hidden_states": t["hidden_states"] * float("nan")}, "NaN or infinite"),
        (lambda t: {"hidden_states": t["hidden_states"]}, "expected token_ids and hidden_states"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(
    teaching: Teaching, written: Path, tmp_path: Path, change: Any, message: str
) -> None:
    states = shutil.copytree(written, tmp_path / "states")
    path = StateFiles.of(states, "step-2").path(sequence_key(teaching.corpus.sequence(4)[0]))
    save_file(change(load_file(path)), path)
    with pytest.raises(ModelError, match=f"{path.name}.*{message}"):
        build(teaching, states, tmp_path / "cache")


def test_a_file_cut_short_and_a_missing_one_are_named(teaching: Teaching, written: Path, tmp_path: Path) -> None:
    states = shutil.copytree(written, tmp_path / "states")
    path = StateFiles.of(states, "step-2").path(sequence_key(teaching.corpus.sequence(4)[0]))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ModelError, match=f"{path.name}: damaged"):
        build(teaching, states, tmp_path / "cache")
    path.unlink()
    with pytest.raises(MissingError, match=f"{path.name}: not there after 0.2 s"):
        build(teaching, states, tmp_path / "cache", hidden_states_wait=0.2)


def test_states_of_other_weights_are_refused(teaching: Teaching, written: Path, tmp_path: Path) -> None:
    states = shutil.copytree(written, tmp_path / "states")
    shutil.rmtree(states / "states" / "step-2")
    (states / "states" / "step-1").rename(states / "states" / "step-2")
    with pytest.raises(CacheMismatchError, match="run the engine on this checkpoint"):
        build(teaching, states, tmp_path / "cache")


def test_requests_of_other_data_are_not_mixed(teaching: Teaching, written: Path) -> None:
    with pytest.raises(CacheMismatchError, match="give another folder"):
        write_requests(written, teaching.held_out, None, ["step-1"])


def test_a_row_that_was_deleted_is_not_asked_for_again(teaching: Teaching, written: Path, tmp_path: Path) -> None:
    states = shutil.copytree(written, tmp_path / "states")
    name, location = teaching.checkpoints[0]
    backend = HiddenStatesEngine(experiment(teaching, states, location), teaching.tokenizer).load(name, location)
    corpus = teaching.corpus
    middle, end = int(corpus.position_offsets[5]), corpus.n_positions
    StateFiles.of(states, name).delete(sequence_key(corpus.sequence(0)[0]))
    keys = {sequence_key(corpus.sequence(row)[0]) for row in range(5, len(corpus))}
    assert sequence_key(corpus.sequence(0)[0]) not in keys
    assert len(backend.targets(corpus, middle, end, OPTIONS)) == end - middle


def test_a_damaged_list_of_requests_is_named_and_what_a_killed_command_left_is_not_run(
    teaching: Teaching, tmp_path: Path
) -> None:
    write_requests(tmp_path, teaching.corpus, None, ["step-1"])
    (tmp_path / "requests" / "00007.jsonl").write_text('{"id": "x", "token_ids": [1]}\n')
    write_requests(tmp_path, teaching.corpus, None, ["step-1"])
    assert all(len(tokens) > 1 for tokens in requests_of(tmp_path))
    (tmp_path / "requests.json").write_text("[]")
    with pytest.raises(CacheMismatchError, match="not a list of requests"):
        write_requests(tmp_path, teaching.corpus, None, ["step-1"])


def test_requests_hold_each_sequence_once(teaching: Teaching, written: Path) -> None:
    keys = [sequence_key(tokens) for tokens in requests_of(written)]
    wanted = {sequence_key(c.sequence(row)[0]) for c in (teaching.corpus, teaching.held_out) for row in range(len(c))}
    assert len(keys) == len(set(keys)) and set(keys) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "hidden-states"},
        {"hidden_states": "x"},
        {"hidden_states_wait": 3.0},
        {"engine": "hidden-states", "hidden_states": "x", "attn_implementation": "eager"},
        {"engine": "hidden-states", "hidden_states": "x", "quantization": "4bit"},
    ],
)
def test_settings_that_go_together_are_asked_for(teaching: Teaching, options: dict[str, Any]) -> None:
    values = teaching.experiment("unused").model_dump()
    values["teacher"] |= options
    with pytest.raises((ConfigError, ValueError), match=r"hidden.states"):
        CacheExperiment.model_validate(values)

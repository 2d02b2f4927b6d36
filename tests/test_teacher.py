"""Teachers that are loaded in other ways than whole on one device say the same, or are refused by name."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.adapters import SharedBase
from cache_builder.config import CacheExperiment
from cache_builder.errors import MissingError, ModelError
from cache_builder.format import TargetOptions
from cache_builder.models import load_model, weights_fingerprint
from cache_builder.records import Targets
from cache_builder.teacher import Teacher
from tests.caches import Teaching, make_teaching

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use
OPTIONS = TargetOptions(top_k=4, top_p=1.0, tail_samples=2, logp_steps_per_nat=256, seed=0)
ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture(scope="module")
def teaching(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., LlamaForCausalLM],
) -> Teaching:
    return make_teaching(tmp_path_factory.mktemp("teaching"), tokenizer, make_model, sequences=24)


def say(teaching: Teaching, location: Path | str, base: SharedBase | None = None, **options: Any) -> Targets:
    """What a checkpoint says of every position, loaded with these options of [teacher]."""
    teacher = load(teaching, location, base, **options)
    targets = teacher.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS)
    teacher.release()
    return targets


def load(teaching: Teaching, location: Path | str, base: SharedBase | None = None, **options: Any) -> Teacher:
    values = teaching.experiment("unused").model_dump()
    experiment = CacheExperiment.model_validate({**values, "teacher": {**values["teacher"], **options}})
    return Teacher(experiment, "step-2", str(location), teaching.tokenizer, "", base)


def assert_same(ours: Targets, theirs: Targets) -> None:
    for field in ("ids", "logp", "samples", "log_tail", "gold", "entropy"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)


def differ(ours: Targets, theirs: Targets) -> bool:
    return not np.array_equal(ours.gold, theirs.gold)


def save_adapters(base: Path, folder: Path, seed: int | None, **options: Any) -> Path:
    """Save LoRA adapters for a base: random and large enough to change what it says, or untrained without a seed."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **{"r": 2, **options})
    )
    generator = torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and seed is not None:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(teaching: Teaching, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, one, two = tmp_path_factory.mktemp("adapters"), teaching.folder / "step-1", teaching.folder / "step-2"
    return {
        "first": save_adapters(one, folder / "first", 1, target_modules=["q_proj"]),
        "second": save_adapters(one, folder / "second", 2, r=4, target_modules=["q_proj", "v_proj", "down_proj"]),
        "whole head": save_adapters(one, folder / "head", 3, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "other base": save_adapters(two, folder / "other", 4, target_modules=["q_proj"]),
    }


@pytest.mark.parametrize("device_map", [ON_DISK, {"": "disk"}, {"": "cpu"}], ids=["mixed", "disk", "cpu"])
def test_layers_and_head_in_memory_and_on_disk_say_the_same(teaching: Teaching, device_map: dict[str, str]) -> None:
    plain = say(teaching, teaching.folder / "step-2")
    teacher = load(teaching, teaching.folder / "step-2", device_map=device_map)
    head, layer = teacher.model.lm_head.weight, teacher.model.model.layers[0].mlp.up_proj.weight
    assert (head.is_meta, layer.is_meta) == (device_map != {"": "cpu"},) * 2
    assert_same(teacher.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS), plain)
    assert head.is_meta == (device_map != {"": "cpu"})  # read in for the batch, and let go again


def test_a_map_may_be_left_to_accelerate(teaching: Teaching, tmp_path: Path) -> None:
    options = {"device_map": "auto", "max_memory": {"cpu": "30KB"}, "offload_folder": str(tmp_path / "offload")}
    teacher = load(teaching, teaching.folder / "step-2", **options)
    assert "disk" in set(teacher.model.hf_device_map.values())
    teacher.release()
    assert_same(
        say(teaching, teaching.folder / "step-2", **options),
        say(teaching, teaching.folder / "step-2"),
    )


def test_adapters_swapped_on_one_base_say_what_each_says_freshly_loaded(
    teaching: Teaching, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def counting_load(config: Any, seed: int, location: str) -> Any:
        loaded.append(Path(location).name)
        return load_model(config, seed, location)

    names = ("first", "second", "first", "whole head", "whole head", "other base", "second")
    fresh = {name: say(teaching, adapters[name]) for name in set(names)}
    plain = say(teaching, teaching.folder / "step-1")
    assert all(differ(fresh[name], plain) for name in names)
    monkeypatch.setattr("cache_builder.teacher.load_model", counting_load)
    base = SharedBase()
    for name in names:
        assert_same(say(teaching, adapters[name], base), fresh[name])
    assert loaded == ["step-1", "step-1", "step-1", "step-2", "step-1"]


def test_memory_does_not_grow_with_the_number_of_adapters(teaching: Teaching, adapters: dict[str, Path]) -> None:
    base = SharedBase()
    say(teaching, adapters["second"], base)
    model = base._model
    assert model is not None
    alone = sum(
        parameter.numel() for parameter in LlamaForCausalLM.from_pretrained(teaching.folder / "step-1").parameters()
    )
    for name in ("first", "second", "first"):
        say(teaching, adapters[name], base)
        assert base._model is model
        assert sum(parameter.numel() for parameter in model.parameters()) == alone
    gone = weakref.ref(model)
    del model
    say(teaching, teaching.folder / "step-2", base)  # a whole checkpoint needs the room
    gc.collect()
    assert gone() is None


def test_a_base_that_was_changed_is_not_used_again(teaching: Teaching, adapters: dict[str, Path]) -> None:
    fresh = say(teaching, adapters["second"])
    base = SharedBase()
    teacher = load(teaching, adapters["first"], base)
    with torch.no_grad():
        teacher.model.model.norm.weight += 0.5
    teacher.release()
    assert_same(say(teaching, adapters["second"], base), fresh)


def test_two_teachers_at_once_have_a_base_each(teaching: Teaching, adapters: dict[str, Path], tmp_path: Path) -> None:
    untrained = save_adapters(teaching.folder / "step-1", tmp_path / "untrained", None, target_modules=["q_proj"])
    base = SharedBase()
    teachers = [(load(teaching, folder, base), folder) for folder in (untrained, adapters["second"], untrained)]
    for teacher, folder in teachers:
        targets = teacher.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS)
        assert_same(targets, say(teaching, folder))
        teacher.release()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")  # peft's, as it saves the head
def test_adapters_that_cannot_be_read_are_refused_by_name(
    teaching: Teaching, adapters: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"peft.*lm_head.*target_modules"):
        load(
            teaching,
            save_adapters(teaching.folder / "step-1", tmp_path / "head", 5, target_modules=["q_proj", "lm_head"]),
        )
    with pytest.raises(ModelError, match="where adapters cannot be added"):
        load(teaching, adapters["first"], device_map=ON_DISK)
    broken = Path(shutil.copytree(adapters["first"], tmp_path / "no-base"))
    rewrite(broken, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(MissingError, match="gone"):
        load(teaching, broken)
    rewrite(broken, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        load(teaching, broken)
    rewrite(broken, base_model_name_or_path=str(teaching.folder / "step-1"), target_modules=["v_proj"])
    with pytest.raises(ModelError, match=r"do not fit their base .*step-1"):
        load(teaching, broken)
    (broken / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors"):
        load(teaching, broken)


def test_the_fingerprint_of_adapters_covers_their_base_and_not_where_it_lies(
    teaching: Teaching, adapters: dict[str, Path], tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    before = weights_fingerprint(str(adapters["first"]), 0)
    moved = Path(shutil.copytree(adapters["first"], tmp_path / "moved"))
    rewrite(moved, base_model_name_or_path=shutil.copytree(teaching.folder / "step-1", tmp_path / "base"))
    assert weights_fingerprint(str(moved), 0) == before
    make_model(seed=7, hidden_size=16).save_pretrained(tmp_path / "base")
    assert weights_fingerprint(str(moved), 0) != before


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, default=str))

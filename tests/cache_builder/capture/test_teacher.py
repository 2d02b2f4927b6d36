"""Teachers that are loaded in other ways than whole on one device say the same, or are refused by name."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from cache_builder.errors import MissingError, ModelError
from cache_builder.models.adapters import SharedBase
from cache_builder.models.loading import load_model, weights_fingerprint
from tests.support.caches import Teaching
from tests.support.teachers import OPTIONS, assert_same, differ, load, save_adapters, say

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's use
    pytest.mark.usefixtures("on_the_cpu"),
]
ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


SEQUENCES = 12
"""Of the teaching."""


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_with_layers_and_head_in_memory_says_what_it_says_alone(teaching: Teaching) -> None:
    device_map = {module: "cpu" if where == "disk" else "0" for module, where in ON_DISK.items()}
    teacher = load(teaching, teaching.folder / "step-2", device_map=device_map)
    assert teacher.model.lm_head.weight.is_meta and teacher.device.type == "cuda"
    said = teacher.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS)
    assert_same(said, say(teaching, teaching.folder / "step-2", device_map={"": "0"}))


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

    names = ("first", "second", "whole head", "whole head", "other base")
    fresh = {name: say(teaching, adapters[name]) for name in set(names)}
    plain = say(teaching, teaching.folder / "step-1")
    assert all(differ(fresh[name], plain) for name in names)
    monkeypatch.setattr("cache_builder.capture.teacher.load_model", counting_load)
    base = SharedBase()
    for name in names:
        assert_same(say(teaching, adapters[name], base), fresh[name])
    assert loaded == ["step-1", "step-1", "step-1", "step-2"]


def test_memory_does_not_grow_with_the_number_of_adapters(teaching: Teaching, adapters: dict[str, Path]) -> None:
    base = SharedBase()
    say(teaching, adapters["second"], base)
    model = base._model
    assert model is not None
    alone = sum(
        parameter.numel() for parameter in LlamaForCausalLM.from_pretrained(teaching.folder / "step-1").parameters()
    )
    for name in ("first", "second"):
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


def test_a_folder_without_weights_is_not_loaded_in_another_way(teaching: Teaching, tmp_path: Path) -> None:
    shutil.copy(teaching.folder / "step-2" / "config.json", tmp_path)
    assert load(teaching, tmp_path).identity.dtype == "float32"
    for way in ({"device_map": "auto"}, {"quantization": "4bit"}):
        with pytest.raises(ModelError, match=f"has no weights to load, so teacher.{next(iter(way))}"):
            load(teaching, tmp_path, **way)

"""A model's folder is loaded whole, or initialised because it holds nothing but a config, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from cache_builder.config import ModelConfig
from cache_builder.errors import MissingError, ModelError
from cache_builder.memory import peak_memory_mib, reset_peak_memory
from cache_builder.models.adapters import adapter_at
from cache_builder.models.loading import load_model, weights_fingerprint
from tests.support.fuzz import in_time


@pytest.fixture
def saved(tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]) -> Path:
    make_model(hidden_size=16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path | str) -> torch.nn.Module:
    return load_model(ModelConfig(model=str(folder)), 0)


def as_files_without_tensors(folder: Path, *names: str) -> None:
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"weights")


@pytest.mark.parametrize(
    "names",
    [
        ("pytorch_model.bin",),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
        ("pytorch_model.bin.index.json",),
        ("Q4_K_M.gguf",),
        ("consolidated.00.pth",),
        ("tf_model.h5",),
        ("flax_model.msgpack",),
        ("weights.model",),
        ("original/consolidated.00.pth",),
        ("whatever",),
    ],
)
def test_weights_in_another_form_are_refused_and_never_replaced_by_random_ones(
    saved: Path, names: tuple[str, ...]
) -> None:
    as_files_without_tensors(saved, *names)
    first = sorted(names)[0].split("/")[0]
    for use in (load, lambda folder: weights_fingerprint(str(folder), 0)):
        with pytest.raises(ModelError, match=rf"no safetensors weights, but '{first}'.*save_pretrained"):
            use(saved)


def test_a_folder_with_nothing_but_a_config_and_a_tokenizer_is_initialised_and_says_so(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = "tokenizer.json", "tokenizer.model", "vocab.txt", "merges.txt", "README.md", "LICENSE", ".gitattributes"
    as_files_without_tensors(saved, *others, "chat_template.jinja")
    model, again = load(saved), load(saved)
    assert f"model {saved}: no weights in its folder, so they are initialised from seed 0" in capsys.readouterr().err
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_whole_checkpoint_is_loaded_as_it_was_saved(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(saved / "model.safetensors")
    for name, parameter in load(saved).named_parameters():
        assert torch.equal(parameter, tensors[name])
    assert "initialised" not in capsys.readouterr().err


def test_tied_heads_and_shards_lack_nothing(tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]) -> None:
    make_model(hidden_size=16, tie_word_embeddings=True).save_pretrained(tmp_path / "tied", max_shard_size="10KB")
    assert len(list((tmp_path / "tied").glob("*.safetensors"))) > 1
    model = load(tmp_path / "tied")
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_checkpoint_that_lacks_tensors_is_refused_by_their_names(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    for lacking in (["model.norm.weight"], [name for name in tensors if ".0.mlp." in name]):
        kept = {name: tensor for name, tensor in tensors.items() if name not in lacking}
        save_file(kept, saved / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=rf"{len(lacking)} are missing \({min(lacking)}"):
            load(saved)


def test_tensors_that_are_no_part_of_the_model_are_refused_by_their_names(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    save_file({**tensors, "value_head.weight": torch.zeros(2)}, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 are not the model's \(value_head.weight\)"):
        load(saved)


def test_tensors_of_another_shape_are_refused_by_their_names(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 8}))
    with pytest.raises(ModelError, match=r"2 have another shape \(lm_head.weight: \[304, 16\] for \[312, 16\], model"):
        load(saved)


@pytest.mark.parametrize("value", [2**22, 2**31, 2**62])
@pytest.mark.parametrize(
    "key", ["head_dim", "intermediate_size", "num_hidden_layers", "vocab_size", "hidden_size", "num_key_value_heads"]
)
def test_a_config_that_says_far_more_than_its_weights_is_refused_before_room_is_made_for_it(
    key: str, value: int, saved: Path
) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, key: value}))
    reset_peak_memory()
    before = peak_memory_mib()
    with in_time(), pytest.raises(ModelError, match=r"saved with|cannot be loaded|cannot be read"):
        load(saved)
    assert peak_memory_mib() - before < 64


@pytest.fixture
def on_the_hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of org/model in a cache of the hub, which cannot be reached."""
    import huggingface_hub

    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "models--org--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    shutil.copytree(saved, folder / "snapshots" / revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    return folder / "snapshots" / revision


def test_a_model_of_the_hub_is_loaded_from_its_snapshot(saved: Path, on_the_hub: Path) -> None:
    ours, theirs = load(saved).state_dict(), load("org/model").state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert weights_fingerprint("org/model", 0) == weights_fingerprint(str(saved), 0)


@pytest.mark.parametrize("key", ["intermediate_size", "num_hidden_layers", "vocab_size"])
def test_a_model_of_the_hub_is_measured_before_room_is_made_for_it(key: str, on_the_hub: Path) -> None:
    config = json.loads((on_the_hub / "config.json").read_text())
    (on_the_hub / "config.json").write_text(json.dumps({**config, key: 2**22}))
    reset_peak_memory()
    before = peak_memory_mib()
    with in_time(), pytest.raises(ModelError, match=r"'org/model': its config.json says .*saved with"):
        load("org/model")
    assert peak_memory_mib() - before < 64


@pytest.mark.parametrize("name", ["org/absent", "org/model@other", "org/model@" + "f" * 40])
def test_what_is_not_in_the_hubs_cache_is_one_message_where_the_hub_cannot_be_reached(
    name: str, on_the_hub: Path
) -> None:
    with pytest.raises(MissingError, match=rf"model '{name}' could not be loaded"):
        weights_fingerprint(name, 0)
    with pytest.raises(MissingError, match=rf"model '{name}' could not be loaded"):
        load(name)


@pytest.mark.parametrize("layers", [10_001, 2**31])
def test_a_config_alone_has_no_more_layers_than_any_model(layers: int, saved: Path) -> None:
    as_files_without_tensors(saved)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with in_time(), pytest.raises(ModelError, match="num_hidden_layers = "):
        load(saved)


def test_weights_of_another_kind_of_model_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neox"}))
    with pytest.raises(ModelError, match=r"are missing .*are not the model's"):
        load(saved)


def test_a_shard_that_is_not_there_is_refused(tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]) -> None:
    make_model(hidden_size=16).save_pretrained(tmp_path / "model", max_shard_size="10KB")
    last = max((tmp_path / "model").glob("*.safetensors"))
    shutil.move(last, tmp_path)
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        load(tmp_path / "model")


def test_a_file_that_was_cut_off_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    for size in (path.stat().st_size - 100, 50, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ModelError, match="a weights file is damaged"):
            load(saved)


@pytest.mark.parametrize("base", ["$HOME/base", "${HF_TOKEN}/x", "~/base", "", None, 5, ["x"], "a\0b"])
def test_adapters_name_their_base_without_variables(base: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(ModelError, match=r"adapter_config\.json names"):
        adapter_at(str(tmp_path), None)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b"null"])
def test_adapters_whose_config_is_none_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        adapter_at(str(tmp_path), None)

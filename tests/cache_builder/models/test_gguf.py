"""A model in one .gguf file is read as an ordinary one, which is trained and saved like any other, or is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from cache_builder.config import ModelConfig, TeacherConfig
from cache_builder.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cache_builder.errors import MissingError, ModelError
from cache_builder.models.last_parts import load_last_parts
from cache_builder.models.loading import load_model, weights_fingerprint
from tests.support.gguf_files import LAYERS, write_gguf
from tests.support.toys import color_examples, write_toy
from trainer.cli import main
from trainer.planning.model_size import model_size

pytest.importorskip("gguf", reason='pip install "footsteps[gguf]"')


@pytest.fixture
def file(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    write_gguf(tmp_path / "tiny.gguf", tokenizer)
    return tmp_path / "tiny.gguf"


def test_it_is_a_plain_model_with_the_files_weights_and_is_saved_as_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tensors = write_gguf(tmp_path / "tiny.gguf", tokenizer)
    model = load_model(ModelConfig(model=str(tmp_path / "tiny.gguf")), 0)
    state = model.state_dict()
    for layer in range(LAYERS):
        ours, theirs = f"model.layers.{layer}.mlp.up_proj.weight", f"blk.{layer}.ffn_up"
        np.testing.assert_array_equal(state[ours].numpy(), tensors[theirs])
    np.testing.assert_array_equal(state["model.embed_tokens.weight"].numpy(), tensors["token_embd"])
    assert model.dtype == torch.float32 and not model.training
    assert not hasattr(model.config, "quantization_config") and getattr(model, "hf_quantizer", None) is None
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in state.items())
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_its_tokenizer_reads_as_the_one_it_was_written_from(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = load_tokenizer(str(file))
    for example in color_examples(5):
        text = example["messages"][0]["content"]
        assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
    assert loaded.pad_token_id is not None and len(tokenizer_fingerprint(loaded)) == 64


def test_its_fingerprint_is_of_all_its_bytes(file: Path) -> None:
    before = weights_fingerprint(str(file), 0)
    assert before == weights_fingerprint(str(file), 1)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_fingerprint(str(file), 0) != before


def test_a_plan_counts_its_parameters(file: Path) -> None:
    model = load_model(ModelConfig(model=str(file)), 0)
    assert model_size(str(file)).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # peft looks for a folder
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use
def test_a_whole_run_starts_from_such_a_teacher(tmp_path: Path, file: Path) -> None:
    config = write_toy(tmp_path / "toy", examples=40)
    changed = ["tokenizer.train_vocab_size=300", "teacher.checkpoints=1", "sft.teacher.num_train_epochs=1"]
    changed += [
        "sft.student.num_train_epochs=1",
        "distill.methods=['td']",
        f"student.model='{file}'",
        "shrink.layers=1",
    ]
    changed += [f"teacher.model='{file}'", "teacher.lora.r=2", f"student.model='{file}'"]
    arguments = [part for each in changed for part in ("--set", each)]
    result = CliRunner().invoke(main, ["run", str(config), *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "toy" / "run" / "distill" / "td" / "seed-0" / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device_map": "auto"}, "device_map"),
        ({"quantization": "4bit"}, "quantization"),
        ({"tensor_parallel": 2}, "tensor_p"),
    ],
)
def test_ways_of_loading_parts_of_a_model_are_refused(file: Path, options: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=f"one file, which is read whole.*teacher.{named}"):
        load_model(TeacherConfig.model_validate({"model": str(file), **options}), 0)


def test_what_transformers_cannot_read_is_refused_by_name(
    tmp_path: Path, file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    write_gguf(tmp_path / "other.gguf", tokenizer, architecture="rwkv6")
    with pytest.raises(ModelError, match=r"other.gguf.*rwkv6"):
        load_model(ModelConfig(model=str(tmp_path / "other.gguf")), 0)
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cut.gguf"):
        load_model(ModelConfig(model=str(tmp_path / "cut.gguf")), 0)
    with pytest.raises(ModelError, match=r"cut.gguf is not that of a causal LM"):
        model_size(str(tmp_path / "cut.gguf"))
    with pytest.raises(MissingError, match=r"none.gguf': no such file"):
        load_model(ModelConfig(model=str(tmp_path / "none.gguf")), 0)
    with pytest.raises(ModelError, match="expected a folder"):
        load_last_parts(ModelConfig(model=str(file)), 0, str(file))


def test_without_the_package_it_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_builder.data.tokenizer.find_spec", lambda name: None)
    for load in (lambda: load_model(ModelConfig(model=str(file)), 0), lambda: load_tokenizer(str(file))):
        with pytest.raises(ModelError, match=r'pip install "footsteps\[gguf\]"'):
            load()

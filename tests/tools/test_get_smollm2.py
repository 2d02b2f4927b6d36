"""The model's file becomes a plain folder, which is only taken for whole where the model knows the answer."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from cache_builder.data.tokenizer import load_tokenizer
from tests.support.gguf_files import write_gguf
from tools import get_smollm2


def test_the_folder_holds_the_files_model_and_tokenizer_and_a_wrong_answer_is_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    pytest.importorskip("gguf", reason='pip install "footsteps[gguf]"')
    tensors, output = write_gguf(tmp_path / "tiny.gguf", tokenizer), tmp_path / "made"
    get_smollm2.convert(tmp_path / "tiny.gguf", output)
    model = AutoModelForCausalLM.from_pretrained(output)
    assert torch.equal(model.get_output_embeddings().weight, torch.from_numpy(tensors["output"]))
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    assert not any(str(tmp_path) in file.read_text(encoding="utf-8") for file in output.glob("*.json"))
    saved = AutoTokenizer.from_pretrained(output)
    assert saved.get_vocab() == load_tokenizer(str(tmp_path / "tiny.gguf")).get_vocab()
    saved.chat_template = "{{ messages[0]['content'] }}"
    saved.save_pretrained(output)
    with pytest.raises(SystemExit, match=r"made answers '.*' to 'What is the capital .*, expected 'Paris' in it"):
        get_smollm2.check(output)


def test_a_folder_of_other_files_is_refused_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr("sys.argv", ["get_smollm2", "--output", str(tmp_path)])
    monkeypatch.setattr(get_smollm2, "fetch", lambda folder: pytest.fail("it was fetched"))
    with pytest.raises(SystemExit, match=r"holds other files and no model\.safetensors"):
        get_smollm2.main()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

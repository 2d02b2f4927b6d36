"""Folders of models, adapters and tokenizers in any state: read as what they say, or refused in one message."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.config import ModelConfig
from cache_builder.data.digests import files_in
from cache_builder.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cache_builder.models.loading import load_model, weights_fingerprint
from cache_builder.steps import finish_stage
from tests.support.fuzz import Tally, cases, changed, holding

LOADED = ("config.json", "generation_config.json", "model.safetensors")
TOKENISED = ("tokenizer.json", "tokenizer_config.json")
ADAPTED = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """A folder of models that no step has recorded."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("models")
    model = make_model(hidden_size=16)
    model.save_pretrained(folder / "best")
    tokenizer.save_pretrained(folder / "best")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapters = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
        adapters.save_pretrained(folder / "adapters")
    config = json.loads((folder / "adapters" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(folder / "best")
    (folder / "adapters" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def model_of(folder: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights_fingerprint(str(folder), 0)
        model = load_model(ModelConfig(model=str(folder)), 0)
        with torch.no_grad():
            return model(input_ids=torch.tensor([[5, 9, 0]])).logits.numpy().tobytes()


def tokenizer_of(folder: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = load_tokenizer(str(folder))
        return tokenizer_fingerprint(tokenizer).encode() + repr(tokenizer.encode("red, né")).encode()


KINDS: dict[str, tuple[str, tuple[str, ...], Callable[[Path], bytes]]] = {
    "models": ("best", LOADED, model_of),
    "tokenizers": ("best", TOKENISED, tokenizer_of),
    "adapters": ("adapters", ADAPTED, model_of),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_any_content(kind: str, run: Path, tally: dict[str, Tally]) -> None:
    name, files, read = KINDS[kind]
    folder, expected = run / name, read(run / name)

    @cases(25, 1000)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        path = folder / data.draw(st.sampled_from(files))
        with holding(path, changed(data, path)):
            tally[kind].end(lambda: read(folder), expected)

    check()


def test_a_folder_that_a_step_has_recorded(run: Path, tally: dict[str, Tally]) -> None:
    finish_stage(run, {"files": {f"best/{name}": digest for name, digest in files_in(run / "best").items()}})
    folder, expected = run / "best", model_of(run / "best")

    @cases(25, 1000)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        path = folder / data.draw(st.sampled_from((*LOADED, *TOKENISED)))
        with holding(path, changed(data, path)):
            tally["models with a record"].end(lambda: model_of(folder), expected, silent_is_wrong=True)

    try:
        check()
    finally:
        (run / "stage.json").unlink()

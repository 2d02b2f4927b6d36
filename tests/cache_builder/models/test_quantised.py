"""Quantised teachers: folders through their normal loading, bitsandbytes on loading; the head stays whole."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.errors import ModelError
from cache_builder.models.adapters import SharedBase
from cache_builder.models.loading import weights_fingerprint
from tests.support.caches import Teaching, make_teaching
from tests.support.teachers import OPTIONS, assert_same, differ, load, save_adapters, say

pytestmark = [
    pytest.mark.usefixtures("on_the_cpu"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning"),  # bitsandbytes computes 8-bit layers in float16
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's use
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
]
KINDS = {
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
}


@pytest.fixture(scope="module")
def teaching(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., LlamaForCausalLM],
) -> Teaching:
    """Its checkpoints, and each of them quantised, in folders `<name>-4bit` and `<name>-8bit`."""
    teaching = make_teaching(tmp_path_factory.mktemp("teaching"), tokenizer, make_model, sequences=12)
    make_model(seed=1, hidden_size=64).save_pretrained(teaching.folder / "step-2")  # bitsandbytes wants multiples of 32
    for kind, config in KINDS.items():
        model = LlamaForCausalLM.from_pretrained(teaching.folder / "step-2", quantization_config=config)
        model.save_pretrained(teaching.folder / f"step-2-{kind}")
    return teaching


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_folder_says_what_its_own_logits_say(teaching: Teaching, kind: str) -> None:
    folder = teaching.folder / f"step-2-{kind}"
    teacher = load(teaching, folder, dtype="bfloat16")
    assert teacher.identity.dtype == f"bitsandbytes {kind}, float32"  # as it was saved; dtype is for whole weights
    said = teacher.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    tokens, completion = teaching.corpus.sequence(0)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :-1, :300]
    logp = logits[torch.from_numpy(completion[1:].copy())].log_softmax(1)
    np.testing.assert_allclose(
        said.logp[: len(logp)], logp.topk(4, dim=1).values, atol=2e-3 if kind == "8bit" else 1e-5
    )
    assert differ(said, say(teaching, teaching.folder / "step-2"))


@pytest.mark.parametrize("kind", KINDS)
def test_quantising_on_loading_says_what_the_quantised_folder_says(teaching: Teaching, kind: str) -> None:
    teacher = load(teaching, teaching.folder / "step-2", quantization=kind)
    assert teacher.identity.dtype == f"bitsandbytes {kind}, float32"
    said = teacher.targets(teaching.corpus, 0, teaching.corpus.n_positions, OPTIONS)
    assert_same(said, say(teaching, teaching.folder / f"step-2-{kind}"))


def test_adapters_are_swapped_on_a_quantised_base(teaching: Teaching, tmp_path: Path) -> None:
    folders = [
        save_adapters(teaching.folder / "step-2", tmp_path / str(seed), seed, target_modules=["q_proj"])
        for seed in (1, 2)
    ]
    base = SharedBase()
    first, second = (say(teaching, folder, base, quantization="4bit") for folder in folders)
    assert differ(first, second)
    assert_same(second, say(teaching, folders[1], quantization="4bit"))
    assert_same(first, say(teaching, folders[0], base, quantization="4bit"))


def test_how_it_is_quantised_is_part_of_the_fingerprint(teaching: Teaching, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teaching.folder / "step-2-4bit", tmp_path / "copy"))
    before = weights_fingerprint(str(folder), 0)
    assert before == weights_fingerprint(str(teaching.folder / "step-2-4bit"), 0)
    set_quantisation(folder, bnb_4bit_compute_dtype="bfloat16")
    assert weights_fingerprint(str(folder), 0) != before


def test_a_quantised_head_is_refused_by_name(teaching: Teaching, tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["model.norm"])
    model = LlamaForCausalLM.from_pretrained(teaching.folder / "step-2", quantization_config=config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"head is a bitsandbytes.*Linear4bit.*do not quantise it"):
        load(teaching, tmp_path)


@pytest.mark.skipif(find_spec("gptqmodel") is not None, reason="gptqmodel is installed")
@pytest.mark.parametrize(("kind", "package"), [("gptq", "[gG][pP][tT][qQ]"), ("compressed-tensors", "pip install")])
def test_a_missing_quantisation_package_is_one_message(
    teaching: Teaching, tmp_path: Path, kind: str, package: str
) -> None:
    folder = Path(shutil.copytree(teaching.folder / "step-2", tmp_path / "copy"))
    set_quantisation(folder, quant_method=kind, bits=4)
    with pytest.raises(ModelError, match=f"copy' is not a causal LM that can be loaded: .*{package}") as caught:
        load(teaching, folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_quantisation_is_refused_and_not_read_as_plain_weights(teaching: Teaching, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teaching.folder / "step-2", tmp_path / "copy"))
    set_quantisation(folder, quant_method="homeopathic")
    with pytest.raises(ModelError, match="does not know the quantisation"):
        load(teaching, folder)


def set_quantisation(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**config.get("quantization_config", {}), **changes}
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_that_are_made_whole_again_are_recorded_as_what_they_are(teaching: Teaching, tmp_path: Path) -> None:
    """FP8 needs hardware for it; elsewhere transformers computes with whole weights, and says so only in its log."""
    if torch.cuda.is_available():
        pytest.skip("a GPU may compute in FP8")
    folder = Path(shutil.copytree(teaching.folder / "step-2", tmp_path / "copy"))
    set_quantisation(folder, quant_method="fp8")
    assert load(teaching, folder, dtype="bfloat16").identity.dtype == "float32"  # as they are stored

"""A tiny random Llama and a tiny tokenizer, made in the test process; and where the shared real data is."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side, a core each

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.models import train_tokenizer
from tests.toys import color_examples


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A byte-level BPE of 300 tokens."""
    texts = [message["content"] for example in color_examples(200) for message in example["messages"]]
    return train_tokenizer(texts, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlamaForCausalLM]:
    """Build a random Llama: `make_model(seed=0, hidden_size=32, vocab_size=304)`, more rows than tokens."""

    def make(seed: int = 0, hidden_size: int = 32, vocab_size: int = 304, **options: object) -> LlamaForCausalLM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                bos_token_id=None,
                eos_token_id=0,
                pad_token_id=1,
                **options,
            )
            return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared real data; tests that need it skip where FOOTSTEPS_SHARED does not name it."""
    root = os.environ.get("FOOTSTEPS_SHARED")
    candidate = Path(root) if root else Path(__file__).resolve().parents[2] / "shared"
    if not (candidate / "data").is_dir():
        pytest.skip("the shared data is not here; set FOOTSTEPS_SHARED to its folder")
    return candidate

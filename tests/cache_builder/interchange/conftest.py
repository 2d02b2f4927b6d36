"""The teacher of every test of imports."""

from collections.abc import Callable

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from tests.support.caches import make_teaching
from tests.support.foreign_teacher import SEQUENCES, Teacher


@pytest.fixture(scope="module")
def teacher(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., LlamaForCausalLM],
) -> Teacher:
    teaching = make_teaching(tmp_path_factory.mktemp("foreign"), tokenizer, make_model, sequences=SEQUENCES)
    return Teacher(teaching, make_model(seed=3, hidden_size=16, initializer_range=0.3))

"""What cannot be shrunk is refused by name, before anything is loaded."""

import pytest
from transformers import GPT2Config, LlamaConfig, MistralConfig, MixtralConfig, Phi3Config

from cache_builder.errors import ConfigError, ModelError, UserError
from trainer.shrinking.families import Sizes, check_sizes

LLAMA = LlamaConfig(num_hidden_layers=4, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)


def refusal(kind: type[UserError], config: object, sizes: Sizes) -> str:
    with pytest.raises(kind) as refused:
        check_sizes(config, sizes, "org/source")
    return str(refused.value)


@pytest.mark.parametrize("config", [GPT2Config(), MixtralConfig()], ids=["gpt2", "mixtral"])
def test_another_family_is_refused_with_those_that_can_be(config: object) -> None:
    message = refusal(ModelError, config, Sizes(1))
    assert "'org/source'" in message and repr(config.model_type) in message  # type: ignore[attr-defined]
    assert "llama, mistral" in message and "student.model" in message


def test_quantised_weights_are_refused() -> None:
    config = LlamaConfig(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "quantised" in refusal(ModelError, config, Sizes(1))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (Sizes(5), "shrink.layers is 5, but model 'org/source' has only 4"),
        (Sizes(2, intermediate_size=65), "shrink.intermediate_size is 65, but model 'org/source' has only 64"),
        (Sizes(2, key_value_heads=3), "shrink.key_value_heads is 3, but model 'org/source' has only 2"),
    ],
)
def test_more_than_there_is_is_refused(sizes: Sizes, message: str) -> None:
    assert message in refusal(ConfigError, LLAMA, sizes)


def test_what_a_family_keeps_whole_is_refused() -> None:
    assert "shrink.intermediate_size: models of the family phi3" in refusal(
        ConfigError, Phi3Config(), Sizes(2, intermediate_size=8)
    )
    assert "shrink.key_value_heads" in refusal(ConfigError, Phi3Config(), Sizes(2, key_value_heads=1))


def test_heads_that_the_hidden_size_cannot_have_are_refused_with_those_that_it_can() -> None:
    sizes = {"hidden_size": 40, "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 4}
    config = LlamaConfig(num_hidden_layers=4, intermediate_size=64, **sizes)
    message = refusal(ConfigError, config, Sizes(2, key_value_heads=3))
    assert "shrink.key_value_heads is 3: the hidden size of model 'org/source', 40" in message
    assert message.endswith("it can be 1, 2, 4, 5")
    check_sizes(config, Sizes(2, key_value_heads=4), "org/source")
    check_sizes(MistralConfig(num_hidden_layers=4, intermediate_size=64, **sizes), Sizes(2, key_value_heads=3), "there")


def test_what_there_is_is_accepted() -> None:
    check_sizes(LLAMA, Sizes(4, 64, 2), "org/source")

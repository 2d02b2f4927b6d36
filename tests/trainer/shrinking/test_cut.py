"""What is cut out of a model is the model's own, in every family that can be shrunk."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.shrinkable import GROUPS, HEAD_DIM, LAYERS, NEURONS, OWN, tiny, tokens
from trainer.shrinking.cut import cut, only
from trainer.shrinking.families import FAMILIES, head_dim

KEPT = [0, 2, 3]
BY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
WITH_NEURONS = pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.feed_forward])
WITH_HEADS = pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.heads])


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def test_every_family_has_its_own_tiny_model() -> None:
    assert OWN.keys() == FAMILIES.keys()


@BY_FAMILY
def test_all_layers_are_the_model_itself_bit_for_bit(family: str) -> None:
    model = tiny(family)
    whole = cut(model, range(LAYERS))
    assert torch.equal(logits(whole, tokens()), logits(model, tokens()))
    theirs = model.state_dict()
    assert {name: tensor.shape for name, tensor in whole.state_dict().items()} == {
        n: t.shape for n, t in theirs.items()
    }
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in whole.state_dict().items())
    assert whole.config.to_dict() == {**model.config.to_dict(), "dtype": "float32"}


@BY_FAMILY
def test_the_kept_layers_have_the_sources_weights_and_new_numbers(family: str) -> None:
    model = tiny(family)
    smaller = cut(model, KEPT)
    assert len(smaller.base_model.layers) == smaller.config.num_hidden_layers == len(KEPT)
    for number, layer in enumerate(KEPT):
        ours, theirs = smaller.base_model.layers[number], model.base_model.layers[layer]
        assert ours.self_attn.layer_idx == number
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    outside = {name: tensor for name, tensor in model.state_dict().items() if ".layers." not in name}
    assert all(torch.equal(smaller.state_dict()[name], tensor) for name, tensor in outside.items())
    pointers = [each.weight.data_ptr() for each in (smaller.get_input_embeddings(), smaller.get_output_embeddings())]
    assert (pointers[0] == pointers[1]) == bool(model.config.tie_word_embeddings)


@BY_FAMILY
def test_it_computes_what_the_source_computes_without_the_other_layers(family: str) -> None:
    model, before = tiny(family), tiny(family).config.to_dict()
    with only(model, KEPT):
        by_hand = logits(model, tokens())
    assert torch.equal(logits(cut(model, KEPT), tokens()), by_hand)
    assert model.config.to_dict() == before
    assert not torch.equal(logits(model, tokens()), by_hand)


@BY_FAMILY
def test_generation_with_a_cache_is_generation_without(family: str) -> None:
    smaller = cut(tiny(family), [1, 3, 4], _all_but_last(NEURONS, family), _all_but_last(GROUPS, family, heads=True))
    texts = [
        smaller.generate(tokens(), attention_mask=torch.ones_like(tokens()), max_new_tokens=8, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert texts[0].shape[1] > tokens().shape[1]
    assert torch.equal(*texts)


@BY_FAMILY
def test_a_layer_keeps_its_own_kind_of_attention(family: str) -> None:
    model = tiny(family)
    smaller = cut(model, KEPT)
    for name in ("layer_types", "no_rope_layers"):
        entries = getattr(model.config, name, None)
        if entries is not None:
            assert list(getattr(smaller.config, name)) == [entries[layer] for layer in KEPT]
    if getattr(model.config, "max_window_layers", None) is not None:
        windowed = [kind == "sliding_attention" for kind in smaller.config.layer_types]
        assert windowed == [layer >= smaller.config.max_window_layers for layer in range(len(KEPT))]


def assert_same_but_for_rounding(smaller: PreTrainedModel, model: PreTrainedModel) -> None:
    """Compare logits to a few times what rounding to float32 moves the model's own: longer sums round differently."""
    expected = logits(model, tokens())
    rounding = (expected - logits(copy.deepcopy(model).double(), tokens())).abs().max().item()
    assert rounding < 1e-4  # a head of one layer moves logits by more than 3
    torch.testing.assert_close(logits(smaller, tokens()), expected, rtol=0, atol=4 * rounding)


@WITH_NEURONS
def test_neurons_that_say_nothing_are_not_missed(family: str) -> None:
    model = tiny(family)
    kept = [[0, 3, 4, 11, 19], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [2, 4, 6, 8, 10]]
    with torch.no_grad():
        for layer, neurons in zip(model.base_model.layers, kept, strict=True):
            silent = [neuron for neuron in range(NEURONS) if neuron not in neurons]
            layer.mlp.down_proj.weight[:, silent] = 0
    smaller = cut(model, range(LAYERS), neurons=kept)
    assert smaller.config.intermediate_size == 5
    assert smaller.base_model.layers[0].mlp.gate_proj.weight.shape == (5, 24)
    assert_same_but_for_rounding(smaller, model)


@WITH_HEADS
@pytest.mark.parametrize("groups", [2, 4], ids=["shared", "one-each"])
def test_heads_that_say_nothing_are_not_missed(family: str, groups: int) -> None:
    model = tiny(family, num_key_value_heads=groups)
    kept = [[layer % groups] for layer in range(LAYERS)]
    width = head_dim(model.config) * 4 // groups
    with torch.no_grad():
        for layer, ((group,),) in zip(model.base_model.layers, zip(kept, strict=True), strict=True):
            weight = layer.self_attn.o_proj.weight
            weight[:, [*range(group * width), *range((group + 1) * width, weight.shape[1])]] = 0
    smaller = cut(model, range(LAYERS), groups=kept)
    config = smaller.config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (1, 4 // groups, HEAD_DIM)
    assert_same_but_for_rounding(smaller, model)


def test_the_source_is_left_as_it_was() -> None:
    model, untouched = tiny("llama"), tiny("llama")
    cut(model, KEPT, [[0, 1]] * 3, [[1]] * 3)
    with pytest.raises(KeyboardInterrupt), only(model, KEPT):
        raise KeyboardInterrupt
    assert model.config.to_dict() == untouched.config.to_dict()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), untouched.parameters(), strict=True))


def test_a_cut_in_half_precision_stays_in_it() -> None:
    assert cut(tiny("llama").to(torch.bfloat16), KEPT).dtype == torch.bfloat16


def _all_but_last(count: int, family: str, *, heads: bool = False) -> list[list[int]] | None:
    row = FAMILIES[family]
    return [list(range(count - 1))] * len(KEPT) if (row.heads if heads else row.feed_forward) else None

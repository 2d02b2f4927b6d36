"""What a part does is measured as the formulas say, in float64, and whatever the batches are."""

import numpy as np
import pytest
import torch

from cache_builder.data.batching import collate
from tests.support.shrinkable import GROUPS, LAYERS, NEURONS, tiny
from trainer.shrinking.families import FAMILIES
from trainer.shrinking.importance import Importance, measure, strongest

SEQUENCES = [
    (np.random.default_rng(row).integers(2, 300, length).astype(np.uint32), np.arange(length) > 1)
    for row, length in enumerate((11, 5, 8, 13))
]


def measured(family: str, *batches: list[int]) -> Importance:
    return measure(tiny(family), [collate([SEQUENCES[row] for row in rows], pad_id=1) for rows in batches])


@pytest.mark.parametrize("family", FAMILIES)
def test_influence_is_one_minus_the_cosine_of_the_states_around_a_layer(family: str) -> None:
    model, sums, tokens = tiny(family).double(), np.zeros(LAYERS), 0
    for ids, _ in SEQUENCES:  # one text at a time, so that there is no padding to get wrong
        with torch.no_grad():
            states = model.base_model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True)
        # what transformers calls the last hidden state is after the final norm, so that layer is left out
        for layer in range(LAYERS - 1):
            for before, after in zip(
                states.hidden_states[layer][0].numpy(), states.hidden_states[layer + 1][0].numpy(), strict=True
            ):
                sums[layer] += 1 - before @ after / np.sqrt((before @ before) * (after @ after))
        tokens += len(ids)
    found = measured(family, [0, 1], [2, 3]).influence_L
    np.testing.assert_allclose(found[:-1], sums[:-1] / tokens, rtol=2e-4)
    assert found[-1] > 0


def test_neurons_and_groups_are_what_the_next_projection_reads() -> None:
    model, found = tiny("llama").double(), measured("llama", [0, 1, 2, 3])
    neurons, groups, tokens = np.zeros((LAYERS, NEURONS)), np.zeros((LAYERS, GROUPS)), 0
    reads: dict[int, list[np.ndarray]] = {}
    for ids, _ in SEQUENCES:
        handles = [
            part.register_forward_pre_hook(
                lambda module, args: reads.setdefault(id(module), []).append(args[0][0].numpy())
            )
            for layer in model.base_model.layers
            for part in (layer.mlp.down_proj, layer.self_attn.o_proj)
        ]
        with torch.no_grad():
            model(input_ids=torch.from_numpy(ids.astype(np.int64))[None])
        for handle in handles:
            handle.remove()
        tokens += len(ids)
    for number, layer in enumerate(model.base_model.layers):
        neurons[number] = np.abs(np.concatenate(reads[id(layer.mlp.down_proj)])).sum(0) / tokens
        heads = np.concatenate(reads[id(layer.self_attn.o_proj)]).reshape(tokens, GROUPS, 2, -1)
        groups[number] = np.sqrt((heads**2).sum(-1)).sum((0, 2)) / tokens
    assert found.neurons_LF is not None and found.groups_LG is not None
    np.testing.assert_allclose(found.neurons_LF, neurons, rtol=2e-4)
    np.testing.assert_allclose(found.groups_LG, groups, rtol=2e-4)


def test_it_does_not_matter_how_the_sample_is_batched() -> None:
    one, other = measured("qwen3", [0, 1, 2, 3]), measured("qwen3", [3], [1, 0], [2])
    np.testing.assert_allclose(one.influence_L, other.influence_L, rtol=1e-5)
    assert one.neurons_LF is not None and other.neurons_LF is not None
    np.testing.assert_allclose(one.neurons_LF, other.neurons_LF, rtol=1e-5)


def test_a_model_is_left_without_hooks() -> None:
    model = tiny("mistral")
    measure(model, [collate(SEQUENCES, pad_id=1)])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_fused_projections_are_not_measured() -> None:
    found = measured("phi3", [0, 1])
    assert found.neurons_LF is None and found.groups_LG is None


def test_the_strongest_stay_in_their_order_and_of_equals_the_earlier() -> None:
    scores = np.array([[0.1, 0.5, 0.3, 0.5], [1, 1, 1, 1], [3, 0, 0, 2]], float)
    assert strongest(scores, [0, 1, 2], 2) == [[1, 3], [0, 1], [0, 3]]
    assert strongest(scores, [2], 3) == [[0, 1, 3]]

"""What each layer, neuron and group of heads does on a sample: sums over its tokens, gathered by hooks in one pass.

    influence   [L]     1 − cos(h_in, h_out), h the hidden states before and after a layer
    neurons     [L, F]  |activation| of a neuron of the feed-forward: what down_proj reads
    groups      [L, G]  ‖output‖ of a group's heads, summed over them: what o_proj reads

Means over all tokens, the prompts' too, padding never; float64. Activations as importance are Minitron's
(arXiv 2407.14679).

Shapes: L layers, B sequences, T tokens, D hidden, F neurons, H heads, G groups, d of a head.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_builder.data.batching import Batch
from cache_builder.models.lm_head import input_device
from trainer.shrinking.families import Family, family_of, head_dim


@dataclass(frozen=True)
class Importance:
    """Means over a sample's tokens, float64."""

    influence_L: np.ndarray
    neurons_LF: np.ndarray | None
    """None where the family's feed-forward is kept whole."""
    groups_LG: np.ndarray | None


def measure(model: PreTrainedModel, batches: Iterable[Batch]) -> Importance:
    """Run a model in eval mode over batches and return what its parts do.

    Raises:
        ModelError: it is of no family that can be shrunk.
    """
    family = family_of(model.config, type(model).__name__)
    gathered = _Gathered(model, family)
    tokens, device = 0, input_device(model)
    with gathered.listening(), torch.no_grad():
        for batch in batches:
            mask_BT = batch["attention_mask"].to(device)
            gathered.mask_BT = mask_BT.bool()
            # The base alone: what the head would make of the last states is of no use here.
            model.base_model(input_ids=batch["input_ids"].to(device), attention_mask=mask_BT, use_cache=False)
            tokens += int(mask_BT.sum())

    def mean(sums: list[Tensor]) -> np.ndarray:
        return np.stack([each.cpu().numpy() / tokens for each in sums])

    return Importance(
        mean(gathered.influence),
        mean(gathered.neurons) if family.feed_forward else None,
        mean(gathered.groups) if family.heads else None,
    )


class _Gathered:
    """Sums over the tokens seen so far, one tensor per layer."""

    mask_BT: Tensor

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.config, self.family = model.config, family
        base: Any = model.base_model
        self.layers = list(base.layers)
        zero = torch.zeros((), dtype=torch.float64)
        self.influence, self.neurons, self.groups = ([zero] * len(self.layers) for _ in range(3))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what passes through the layers within the block."""
        handles = []
        try:
            for index, layer in enumerate(self.layers):
                handles.append(layer.register_forward_hook(self._layer(index), with_kwargs=True))
                if self.family.feed_forward:
                    handles.append(layer.mlp.down_proj.register_forward_pre_hook(self._neurons(index)))
                if self.family.heads:
                    handles.append(layer.self_attn.o_proj.register_forward_pre_hook(self._groups(index)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _layer(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = self._of_tokens(args[0] if args else kwargs["hidden_states"])
            after = self._of_tokens(output if isinstance(output, Tensor) else output[0])
            cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)
            self.influence[index] = self.influence[index].to(cosine.device) + (1 - cosine).sum()

        return hook

    def _neurons(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            total_F = self._of_tokens(args[0]).abs().sum(0)
            self.neurons[index] = self.neurons[index].to(total_F.device) + total_F

        return hook

    def _groups(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            states = self._of_tokens(args[0])
            norms_H = states.unflatten(-1, (-1, head_dim(self.config))).norm(dim=-1).sum(0)
            total_G = norms_H.view(self.config.num_key_value_heads, -1).sum(-1)
            self.groups[index] = self.groups[index].to(total_G.device) + total_G

        return hook

    def _of_tokens(self, states_BTD: Tensor) -> Tensor:
        """Return the states of what is no padding, [tokens, D], in float64: a sum over thousands costs digits."""
        return states_BTD[self.mask_BT.to(states_BTD.device)].double()


def strongest(scores_LN: np.ndarray, layers: list[int], count: int) -> list[list[int]]:
    """Return, for each of `layers`, which `count` entries have the highest scores, rising; of equals, the earlier."""
    return [sorted(np.argsort(-scores_LN[layer], kind="stable")[:count].tolist()) for layer in layers]

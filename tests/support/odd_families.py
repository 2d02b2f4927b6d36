"""Models that do something of their own with their logits, which a matmul with the head cannot know."""

from typing import Any

import torch
from transformers import LlamaForCausalLM


class OddOnRealTokens(LlamaForCausalLM):
    """A family whose logits are its own only for tokens that the first check does not use."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = torch.where((input_ids > 5)[..., None], output.logits * 1.05, output.logits)
        return output

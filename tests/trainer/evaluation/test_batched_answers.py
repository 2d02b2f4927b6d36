"""What a row is answered does not depend on its batch, whatever layers a family has."""

from typing import Any

import pytest
import torch

from tests.support.hybrid_families import HYBRIDS, RECURRENT, make
from tests.support.tiny_families import RECIPES, _made
from trainer.evaluation.generation import ALONE, generate

FAMILIES = (
    "llama",
    "mistral",
    "gemma2",
    "mamba",
    "falcon_mamba",
    "rwkv",
    "lfm2",
)
"""Made by a recipe; the others by a config of their own."""


class Numbers:
    """Stands where a tokenizer is only asked for its size, its pad token and a text that tells ids apart."""

    pad_token_id = 0

    def __len__(self) -> int:
        return 300

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def made(family: str) -> Any:
    own = {**HYBRIDS, **RECURRENT}.get(family)
    if own is None:
        recipes = ({**recipe, "sliding_window": 8} for recipe in RECIPES)
        return next(model for recipe in recipes if (model := _made(family, recipe)) is not None)
    model, generator = make(family, own), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS, *RECURRENT])
def test_padded_rows_are_answered_as_they_are_alone(family: str) -> None:
    """Windows of 8 tokens, prompts of 5 to 40."""
    model = made(family)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 300, (count,), generator=generator).tolist() for count in (5, 9, 14, 23, 31, 40)]

    def answers(batch_size: int) -> list[str]:
        outputs = generate(model, Numbers(), prompts, stop_ids=[2], max_new_tokens=12, batch_size=batch_size)  # type: ignore[arg-type]
        return outputs.texts

    alone = answers(1)
    assert answers(6) == alone and len(set(alone)) == len(alone)
    if family in ALONE:  # the name is needed
        model.config.model_type = "another"
        assert answers(6) != alone

"""Parameters and operations by formula, against torch's own count of real models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cache_builder.capture.capture import begin_capture
from cache_builder.data.batching import Batch, collate
from cache_builder.errors import ConfigError, MissingError, ModelError
from cache_builder.models.lm_head import hidden_states_at, verify_head
from cache_builder.targets.sampling import tail_uniforms
from cache_builder.targets.sparse import Targets
from tests.support.paths import ROOT
from tests.support.shrinkable import tiny
from trainer.config import ShrinkConfig
from trainer.loss.fused import distillation_loss
from trainer.planning.model_size import GUESSED, ModelSize, model_size, shrunk_size
from trainer.shrinking.cut import cut

MODELS = sorted([*ROOT.glob("configs/models/*"), *ROOT.glob("trainer/starting/models/*")])
ROWS, TOKENS = 3, 40
TOLERANCE = 1e-3
"""Of the count: the formula leaves out norms, rotations and softmaxes, which torch's counter does not count either."""


def load(folder: Path) -> tuple[PreTrainedModel, ModelSize]:
    """A random model whose attention is plain matmuls: torch does not count the fused kernel on a CPU."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").eval()
    return model, model_size(str(folder))


def batch(positions: int) -> Batch:
    generator = np.random.default_rng(0)
    completion = np.arange(TOKENS) >= TOKENS - positions
    return collate([(generator.integers(0, 300, TOKENS), completion) for _ in range(ROWS)], pad_id=0)


def count(action: object) -> int:
    with FlopCounterMode(display=False) as counter:
        action()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_forward_pass_has_the_operations_of_the_formula(folder: Path) -> None:
    model, size = load(folder)
    ids = batch(8)["input_ids"]
    with torch.no_grad():
        counted = count(lambda: model(input_ids=ids))
    tokens = ROWS * TOKENS
    assert counted == pytest.approx(size.body_flops(tokens, TOKENS) + size.head_flops(tokens), rel=TOLERANCE)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_tables_that_are_only_looked_up_are_parameters_but_no_operations(family: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": family == "gemma2"}
    if family == "gpt2":
        sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    AutoConfig.for_model(family, bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes).save_pretrained(tmp_path)
    model, size = load(tmp_path)
    ids = batch(8)["input_ids"]
    with torch.no_grad():
        counted = count(lambda: model(input_ids=ids))
    assert counted == pytest.approx(
        size.body_flops(ROWS * TOKENS, TOKENS) + size.head_flops(ROWS * TOKENS), rel=TOLERANCE
    )
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("positions", [4, 39])
def test_a_capture_has_the_head_at_positions_only(positions: int) -> None:
    model, size = load(MODELS[0])
    at = batch(positions)
    verify_head(model)
    verify_head(model, at)  # its own logits are had once, and not counted
    uniforms_MS = tail_uniforms(0, "count", np.arange(ROWS * positions), 2)
    counted = count(
        lambda: begin_capture(model, at, size.vocabulary, top_k=4, top_p=1.0, uniforms_MS=uniforms_MS).arrived()
    )
    formula = size.body_flops(ROWS * TOKENS, TOKENS) + size.head_flops(ROWS * positions)
    assert counted == pytest.approx(formula, rel=TOLERANCE)


def test_a_distillation_step_has_three_times_the_operations_of_a_forward_pass() -> None:
    model, size = load(MODELS[1])
    at, m = batch(12), ROWS * 12
    targets = Targets(
        torch.arange(8).reshape(1, 8).repeat(m, 1),
        torch.log_softmax(torch.randn(m, 9), 1).sort(1, True).values[:, :8],
        torch.full((m, 2), 20),
        torch.full((m,), -3.0),
        torch.full((m,), -1.0),
        torch.full((m,), 1.0),
    )
    weight_M = torch.full((m,), 0.5 / m)

    def step() -> None:
        hidden_MD, head = hidden_states_at(model, at, size.vocabulary)
        loss = distillation_loss(hidden_MD, head, targets, at["label_M"], weight_M, weight_M, divergence="forward_kl")
        loss.loss.backward()

    formula = 3 * (size.body_flops(ROWS * TOKENS, TOKENS) + size.head_flops(m))
    assert count(step) == pytest.approx(formula, rel=TOLERANCE)


def test_a_mixture_of_experts_multiplies_only_the_chosen_ones(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 320, "hidden_size": 32}
    config |= {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    for experts in (4, 8):
        values = {**config, "num_local_experts": experts, "num_experts_per_tok": 2}
        folder = tmp_path / str(experts)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(values))
    four, eight = model_size(str(tmp_path / "4")), model_size(str(tmp_path / "8" / "config.json"))
    assert eight.parameters > 1.5 * four.parameters
    routers = 2 * 4 * 32
    assert eight.body == four.body + routers


def test_a_number_is_taken_apart_so_that_nothing_is_lost() -> None:
    for text, parameters in (("8B", 8e9), ("3.2e9".replace("e9", "B"), 3.2e9), ("350M", 350e6), ("1_000_000_000", 1e9)):
        size = model_size(text)
        assert size.parameters == parameters
        assert size.body + size.head == pytest.approx(parameters, rel=0.01)
        assert size.layers == round(size.hidden / 128)
    assert 3_900 < model_size("8B").hidden < 4_500
    assert model_size("8B", 32_000).vocabulary == 32_000


def test_a_hub_id_that_is_not_here_is_guessed_from_the_number_in_its_name() -> None:
    size = model_size("someone/Llama-9.3-70B-Instruct@main")
    assert (size.parameters, size.origin) == (70e9, GUESSED)
    assert model_size("someone/Thing-1.7b").parameters == 1.7e9


def test_a_hub_id_whose_config_is_in_the_hub_s_cache_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--Llama-70B"
    tiny("llama").save_pretrained(repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    size = model_size("someone/Llama-70B")
    assert (size.parameters, size.layers, size.origin) == (tiny("llama").num_parameters(), 5, "config.json")


def test_a_folder_may_begin_with_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("llama").save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HERE", str(tmp_path))
    assert model_size("$HERE/model").layers == 5


@pytest.mark.parametrize(
    ("location", "lacking"),
    [
        ("someone/base", "not in the hub's cache, and there is no number in its name"),
        ("someone/v2Big", "not in the hub's cache, and there is no number in its name"),
        ("no/such/folder", "there is no such folder;"),
        ("./there", "there is no such folder;"),
        ("runs/models/SmolLM2-135M-Instruct", "no such folder; `python -m tools.get_smollm2` makes it, in a clone"),
    ],
)
def test_a_model_of_unknown_size_is_refused_with_what_to_give(location: str, lacking: str) -> None:
    with pytest.raises(MissingError, match=f"{lacking}.*a number of parameters such as 8B"):
        model_size(location)


def test_a_config_of_no_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(ModelError, match="not that of a causal LM"):
        model_size(str(tmp_path))


def test_a_shrunk_student_has_the_size_that_shrinking_makes(tmp_path: Path) -> None:
    tiny("qwen2", tie_word_embeddings=True).save_pretrained(tmp_path)
    size = shrunk_size(str(tmp_path), ShrinkConfig(layers=3, intermediate_size=5, key_value_heads=1))
    made = cut(tiny("qwen2", tie_word_embeddings=True), [0, 2, 4], [[1, 2, 3, 4, 5]] * 3, [[1]] * 3)
    assert size.parameters == sum(parameter.numel() for parameter in made.parameters())
    assert (size.layers, size.attention) == (3, 2 * 6 * 3)
    assert size.name.endswith(", 3 of its 5 layers")


def test_what_a_shrunk_students_size_cannot_be_known_from_is_refused(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"shrink.layers is 6, but model .* has only 5"):
        shrunk_size(str(tmp_path), ShrinkConfig(layers=6))
    with pytest.raises(MissingError, match="what \\[shrink\\] makes of 'org/model-1B' is not known here"):
        shrunk_size("org/model-1B", ShrinkConfig(layers=6))

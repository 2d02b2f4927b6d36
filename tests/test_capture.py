"""Capture against the model's own logits, in float64 where the exact answer is wanted."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from cache_builder import capture as capture_module
from cache_builder.batches import Batch, collate
from cache_builder.capture import NonFiniteError, capture, gold_logp, probe_ids, probe_logp
from cache_builder.errors import ConfigError, ModelError
from cache_builder.head import Head, hidden_states_at, matmul, project, read_head, verify_head
from cache_builder.targets import tail_uniforms
from trainer.losses import distillation_loss

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
VOCABULARY = 300  # of the model's 304 rows
SMALL = {
    "vocab_size": 304,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 0,
}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2, tied": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=304, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "phi, head with bias": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
    "gemma2, soft-cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5)),
    "granite, divides": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)),
    "hyperclovax, multiplies": lambda: HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**SMALL, logits_scaling=8.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.0625)),
    "cohere2": lambda: Cohere2ForCausalLM(Cohere2Config(**SMALL, logit_scale=0.25)),
    "falcon-h1": lambda: FalconH1ForCausalLM(
        FalconH1Config(**SMALL, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8)
    ),
}


def make_batch(seed: int = 0, lengths: tuple[int, ...] = (9, 24, 5, 13)) -> Batch:
    return collate(make_sequences(seed, lengths), pad_id=1)


def make_sequences(seed: int = 0, lengths: tuple[int, ...] = (9, 24, 5, 13)) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        (generator.integers(0, VOCABULARY, length).astype(np.uint32), np.arange(length) >= length // 2)
        for length in lengths
    ]


def uniforms(batch: Batch, samples: int = 4) -> np.ndarray:
    return tail_uniforms(0, "checkpoint-1", np.arange(len(batch["gold_M"])), samples)


def dense_logp(model: nn.Module, batch: Batch) -> Tensor:
    """[M, V] in float64, from the model's own logits."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.log_softmax(logits.flatten(0, 1)[batch["source_M"], :VOCABULARY].double(), dim=1)


def captured(model: nn.Module, batch: Batch, top_k: int = 8, top_p: float = 1.0, samples: int = 4, **options):
    return capture(model, batch, VOCABULARY, top_k=top_k, top_p=top_p, uniforms_MS=uniforms(batch, samples), **options)


@pytest.mark.parametrize("top_k", [1, 8, 150, VOCABULARY])
@pytest.mark.parametrize("peaked", [1.0, 30.0])
def test_targets_are_those_of_the_model_s_own_logits(make_model, top_k, peaked):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.lm_head.weight *= peaked
    exact = dense_logp(model, batch)
    values, ids = exact.topk(top_k, dim=1)
    result = captured(model, batch, top_k)
    np.testing.assert_array_equal(result.ids, ids)
    np.testing.assert_allclose(result.logp, values, atol=1e-5)
    np.testing.assert_allclose(result.gold, exact.gather(1, batch["gold_M"][:, None])[:, 0], atol=1e-5)
    np.testing.assert_allclose(result.entropy, -(exact.exp() * exact).sum(1), atol=1e-5)
    tail = exact.exp().scatter(1, ids, 0.0)
    if top_k == VOCABULARY:
        assert np.isneginf(result.log_tail).all()
        assert (result.samples == result.ids[:, :1]).all()
    else:
        np.testing.assert_allclose(result.log_tail, tail.sum(1).log(), atol=1e-5)
        assert (tail.gather(1, torch.from_numpy(result.samples)) > 0).all()
    np.testing.assert_allclose(np.exp(result.logp).sum(1) + np.exp(result.log_tail), 1.0, atol=1e-6)


def test_the_two_stages_find_the_same_winners_as_one(make_model, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 64 * 50, generator=generator).mul_(4).round_()  # rounded, so that most rows tie
    ids, values = capture_module._top(logits, 3190, 9)
    order = np.lexsort((np.arange(3190)[None].repeat(40, 0), -logits[:, :3190].numpy()))[:, :9]
    # the columns beyond the vocabulary hold −1e30 in use
    logits[:, 3190:] = -1e30
    ids, values = capture_module._top(logits, 3190, 9)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, np.take_along_axis(logits.numpy(), order, 1))
    monkeypatch.setattr(capture_module, "BLOCK", 640)
    np.testing.assert_array_equal(capture_module._top(logits, 3190, 9)[0], order)


def test_equal_logits_are_ordered_by_rising_id(make_model):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    result = captured(model, batch, top_k=5)
    assert (result.ids == np.arange(5)).all()
    np.testing.assert_allclose(result.log_tail, np.log(295 / 300), atol=1e-6)


def test_zero_of_either_sign_ties():
    logits = torch.zeros(1, 64)
    logits[0, 3] = -0.0
    assert capture_module._top(logits, 64, 6)[0].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_top_p_keeps_the_smallest_prefix_that_holds_it(make_model):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.lm_head.weight *= 30
    whole, cut = captured(model, batch, 16), captured(model, batch, 16, top_p=0.7)
    mass = np.exp(whole.logp.astype(np.float64))
    used = mass.cumsum(1) - mass < 0.7
    assert 0 < (~used).sum() < used.size
    assert used[:, 0].all()
    np.testing.assert_array_equal(np.isneginf(cut.logp), ~used)
    np.testing.assert_array_equal(cut.ids, np.where(used, whole.ids, whole.ids[:, :1]))
    tail = np.exp(whole.log_tail.astype(np.float64)) + np.where(used, 0.0, mass).sum(1)
    np.testing.assert_allclose(cut.log_tail, np.log(tail), atol=1e-5)
    np.testing.assert_allclose(cut.entropy, whole.entropy, atol=1e-5)
    np.testing.assert_allclose(cut.gold, whole.gold, atol=1e-5)
    support = np.where(used, cut.ids, -1)
    assert not (cut.samples[:, :, None] == support[:, None, :]).any()


def test_a_tail_of_e_to_the_minus_ninety_is_exact(make_model):
    """Relative to the row's maximum it would have underflowed; the tail's own maximum is subtracted instead."""
    logits = torch.full((1, 320), -1e30)
    logits[0, :300] = -torch.linspace(100, 101, 300)
    logits[0, [7, 9]] = torch.tensor([10.0, 9.0])
    exact = torch.log_softmax(logits[0, :300].double(), 0)
    outside = [token for token in range(300) if token not in (7, 9)]
    expected = exact[outside].logsumexp(0)
    chunk = capture_module._capture_chunk(
        logits, 300, torch.tensor([5]), torch.tensor([[0.1, 0.9]], dtype=torch.float64), 2, 1.0
    )
    ids, _, samples, log_tail, gold, _ = chunk
    assert ids.tolist() == [[7, 9]]
    np.testing.assert_allclose(log_tail, expected, rtol=1e-6)
    np.testing.assert_allclose(gold, exact[5], rtol=1e-6)
    assert samples[0, 0] in outside
    assert samples[0, 1] in outside


def test_tail_samples_follow_the_tail(make_model):
    """200,000 draws against the probabilities: a chi-square test with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 256, generator=generator) * 2
    row[0, 250:] = -1e30
    tail = torch.softmax(row[0].double(), 0)
    top = row[0].topk(3).indices
    tail[top] = 0
    tail /= tail.sum()
    draws = 200_000
    drawn = capture_module._capture_chunk(
        row.clone(), 250, torch.tensor([0]), torch.rand(1, draws, generator=generator, dtype=torch.float64), 3, 1.0
    )[2]
    counts = torch.bincount(drawn[0], minlength=256).double()
    assert (counts[top] == 0).all()
    assert (counts[250:] == 0).all()
    common = tail * draws > 5
    chi_square = ((counts - tail * draws) ** 2 / (tail * draws))[common].sum() / common.sum()
    assert 0.7 < chi_square < 1.3


@pytest.mark.parametrize("top_k", [4, 64])
def test_tail_samples_also_follow_the_slots_that_top_p_dropped(top_k):
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 64, generator=generator) * 2
    exact = torch.softmax(row[0].double(), 0)
    draws = 200_000
    numbers = torch.rand(1, draws, generator=generator, dtype=torch.float64)
    ids, logp, drawn, log_tail, _, _ = capture_module._capture_chunk(
        row.clone(), 64, torch.tensor([0]), numbers, top_k, float(exact.max()) / 2
    )
    assert (logp[0] > -torch.inf).sum() == 1
    tail = exact.clone()
    tail[ids[0, 0]] = 0
    np.testing.assert_allclose(log_tail, tail.sum().log(), rtol=1e-5)
    expected = tail / tail.sum() * draws
    common = expected > 5
    counts = torch.bincount(drawn[0], minlength=64).double()
    assert counts[ids[0, 0]] == 0
    chi_square = ((counts - expected) ** 2 / expected)[common].sum() / common.sum()
    assert 0.5 < chi_square < 1.6


@pytest.mark.parametrize("value", [0.5 * 2.0**-52, 0.25, 0.5, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_draw_a_token_that_has_mass(value):
    weights = torch.zeros(3, 192)
    weights[0, [70, 80]] = torch.tensor([1e-30, 1e-30])
    weights[1, [0, 191]] = torch.tensor([1.0, 3e-8])
    weights[2, 63:65] = 0.1
    drawn = capture_module._draw(weights, torch.full((3, 1), value, dtype=torch.float64))
    assert (weights.gather(1, drawn) > 0).all()


def test_results_do_not_depend_on_the_batch(make_model):
    model, sequences = make_model(), make_sequences()
    whole = captured(model, make_batch())
    numbers = tail_uniforms(0, "checkpoint-1", np.arange(len(whole.gold)), 4)
    start = 0
    for row, sequence in enumerate(sequences):
        alone = collate([sequence], pad_id=1)
        end = start + len(alone["gold_M"])
        one = capture(model, alone, VOCABULARY, top_k=8, top_p=1.0, uniforms_MS=numbers[start:end])
        np.testing.assert_array_equal(one.ids, whole.ids[start:end])
        np.testing.assert_array_equal(one.samples, whole.samples[start:end])
        for name in ("logp", "log_tail", "gold", "entropy"):
            np.testing.assert_allclose(getattr(one, name), getattr(whole, name)[start:end], atol=1e-5)
        np.testing.assert_allclose(one.loss[0], whole.loss[row], atol=1e-5)
        start = end


@pytest.mark.parametrize("chunk_positions", [1, 3, 1000])
def test_the_chunk_size_changes_nothing(make_model, chunk_positions):
    model, batch = make_model(), make_batch()
    whole, chunked = captured(model, batch), captured(model, batch, chunk_positions=chunk_positions)
    np.testing.assert_array_equal(chunked.ids, whole.ids)
    np.testing.assert_array_equal(chunked.samples, whole.samples)
    np.testing.assert_allclose(chunked.logp, whole.logp, atol=1e-5)


def test_the_loss_of_a_sequence_is_the_model_s_own_cross_entropy(make_model):
    model = make_model(vocab_size=VOCABULARY)
    sequences = make_sequences()
    batch = make_batch()
    result = captured(model, batch)
    for row, (tokens, completion) in enumerate(sequences):
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(completion)[None], ids, -100)
        with torch.no_grad():
            own = model(input_ids=ids, labels=labels).loss.item() * int(completion[1:].sum())
        np.testing.assert_allclose(result.loss[row], own, rtol=1e-5)
    np.testing.assert_allclose(gold_logp(model, batch, VOCABULARY), result.gold, atol=1e-6)


def test_a_batch_without_positions_is_captured_as_nothing(make_model):
    sequences = [(np.arange(5, dtype=np.uint32), np.zeros(5, np.bool_))] * 2
    batch = collate(sequences, pad_id=1)
    result = captured(make_model(), batch)
    assert result.ids.shape == (0, 8)
    assert result.samples.shape == (0, 4)
    assert result.loss.tolist() == [0.0, 0.0]
    assert gold_logp(make_model(), batch, VOCABULARY).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_teachers_have_a_float32_head_and_softmax(make_model, dtype):
    """The hidden states are rounded by the model; from there on nothing is."""
    model, batch = make_model().to(dtype), make_batch()
    with torch.no_grad():
        hidden, head = hidden_states_at(model, batch, VOCABULARY)
    assert hidden.dtype == dtype
    exact = torch.log_softmax(hidden.double() @ head.weight_VD.double()[:VOCABULARY].T, dim=1).detach()
    values, ids = exact.topk(8, dim=1)
    result = captured(model, batch)
    np.testing.assert_array_equal(result.ids, ids)
    np.testing.assert_allclose(result.logp, values, atol=1e-5)
    own = dense_logp(model, batch).gather(1, batch["gold_M"][:, None])[:, 0]
    np.testing.assert_allclose(result.gold, own, atol=8 * torch.finfo(dtype).eps)


def test_the_probe_s_log_probabilities_and_the_mass_outside_them_are_exact(make_model):
    model, batch = make_model(), make_batch()
    ids = probe_ids(model, batch, VOCABULARY, 20)
    exact = dense_logp(model, batch)
    expected = exact.gather(1, torch.from_numpy(ids))
    rest = exact.exp().scatter(1, torch.from_numpy(ids), 0.0).sum(1).log()
    together = captured(model, batch, probe_ids_MR=ids)
    for logp, log_rest in (
        probe_logp(model, batch, VOCABULARY, ids),
        (together.probe_logp, together.probe_log_tail),
    ):
        np.testing.assert_allclose(logp, expected, atol=1e-5)
        np.testing.assert_allclose(log_rest, rest, atol=1e-5)
    plain = captured(model, batch)
    np.testing.assert_array_equal(together.ids, plain.ids)
    np.testing.assert_array_equal(together.samples, plain.samples)


def test_the_probe_s_ids_are_distinct_and_hold_top_tokens_and_gold(make_model):
    model, batch = make_model(), make_batch()
    top = dense_logp(model, batch).topk(20, dim=1).indices.numpy()
    ids = probe_ids(model, batch, VOCABULARY, 20)
    gold = batch["gold_M"].numpy()
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert (ids == gold[:, None]).any(1).all()
    np.testing.assert_array_equal(ids[:, :19], top[:, :19])
    assert probe_ids(model, batch, VOCABULARY, 10_000).shape == (len(gold), VOCABULARY)


def test_nan_and_infinity_stop_the_capture_and_name_the_row(make_model):
    batch = make_batch()
    for value in (float("nan"), float("inf")):
        model = make_model()
        verify_head(model)
        model.model.register_forward_hook(
            lambda module, inputs, output, value=value: output.last_hidden_state.__setitem__((2, slice(None)), value)
        )
        with pytest.raises(NonFiniteError, match="row 2 of the batch, at its position 0") as caught:
            captured(model, batch)
        assert caught.value.row == 2
        with pytest.raises(NonFiniteError, match="row 2"):
            gold_logp(model, batch, VOCABULARY)
        with pytest.raises(NonFiniteError, match="row 2"):
            probe_logp(model, batch, VOCABULARY, np.zeros((len(batch["gold_M"]), 1), np.int64))


def test_top_k_above_the_vocabulary_is_refused(make_model):
    with pytest.raises(ConfigError, match=r"top_k is 301.* only 300"):
        captured(make_model(), make_batch(), top_k=301)


def test_a_head_with_fewer_rows_than_tokens_is_refused(make_model):
    with pytest.raises(ModelError, match="304 rows, the tokenizer 305"):
        read_head(make_model(), 305)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_logits_are_reproduced(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]().eval()
        if family.startswith("phi"):
            nn.init.normal_(model.lm_head.bias)
    verify_head(model)
    batch = make_batch()
    exact = dense_logp(model, batch)
    result = captured(model, batch)
    np.testing.assert_allclose(result.logp, exact.topk(8, dim=1).values, atol=1e-5)
    np.testing.assert_allclose(result.gold, exact.gather(1, batch["gold_M"][:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_cross_entropy_has_the_gradients_of_its_own_loss(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]().eval()
    batch = make_batch()
    positions = len(batch["gold_M"])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.flatten(0, 1)
    nn.functional.cross_entropy(logits[batch["source_M"], :VOCABULARY], batch["gold_M"]).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    hidden_MD, head = hidden_states_at(model, batch, VOCABULARY)
    weight = torch.full((positions,), 1 / positions)
    distillation_loss(hidden_MD, head, None, batch["gold_M"], 0 * weight, weight).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


class OddLlama(LlamaForCausalLM):
    """A family that does something of its own with its logits."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output


def test_an_unknown_treatment_of_the_logits_is_refused_by_name(make_model):
    model = OddLlama(make_model().config).eval()
    with pytest.raises(ModelError, match=r"OddLlama.*'llama'.*not supported"):
        captured(model, make_batch())


def test_verifying_leaves_the_mode_of_the_model_alone(make_model):
    model = make_model().train()
    verify_head(model)
    assert model.training


def lora_model(model: nn.Module, **options):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **options))


@PEFT_WARNS
def test_lora_on_the_head_is_refused_by_name(make_model):
    model = lora_model(make_model(), target_modules=["q_proj", "lm_head"])
    with pytest.raises(ModelError, match=r"peft.*lm_head.*target_modules"):
        hidden_states_at(model, make_batch(), VOCABULARY)


@PEFT_WARNS
@pytest.mark.parametrize("whole_head", [False, True])
def test_lora_elsewhere_is_read_through_its_wrappers(make_model, whole_head):
    model = lora_model(
        make_model(), target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"] if whole_head else None
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    batch = make_batch()
    exact = dense_logp(model, batch)
    np.testing.assert_allclose(captured(model, batch).logp, exact.topk(8, dim=1).values, atol=1e-5)
    assert read_head(model, VOCABULARY).weight_VD.requires_grad == whole_head


def test_project_into_a_buffer_is_the_same_as_without_one():
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(10, 4, generator=generator), torch.randn(10, generator=generator), 8, scale=2.0)
    hidden = torch.randn(3, 4, generator=generator)
    buffer = torch.empty(3, 12)
    project(hidden, head, out=buffer[:, :8])
    torch.testing.assert_close(buffer[:, :8], project(hidden, head), rtol=0, atol=0)
    torch.testing.assert_close(buffer[:, :8], 2 * (hidden @ head.weight_VD[:8].T + head.bias_V[:8]))


def test_a_matmul_of_half_precision_matrices_is_not_rounded_to_half_precision():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(5, 5, generator=generator).bfloat16() for _ in range(2))
    product = matmul(left, right)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), left.double() @ right.double())

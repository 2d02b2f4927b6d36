"""Heads of the families: logits reproduced exactly, gradients those of their own loss, the rest refused by name."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
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
    xLSTMConfig,
    xLSTMForCausalLM,
)

from cache_builder.capture.capture import begin_capture
from cache_builder.data.batching import Batch
from cache_builder.errors import ModelError
from cache_builder.models.lm_head import Head, hidden_states_at, matmul, project, read_head, verify_head
from cache_builder.targets.sparse import Targets
from tests.support.batches_of_noise import VOCABULARY, dense_logp, make_batch, uniforms
from tests.support.odd_families import OddOnRealTokens
from trainer.loss.fused import distillation_loss

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
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
        FalconH1Config(
            **SMALL,
            lm_head_multiplier=0.5,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=8,
        )
    ),
}


def captured(model: nn.Module, batch: Batch) -> Targets[np.ndarray]:
    return begin_capture(model, batch, VOCABULARY, top_k=8, top_p=1.0, uniforms_MS=uniforms(batch)).arrived()


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
    np.testing.assert_allclose(result.gold, exact.gather(1, batch["label_M"][:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_cross_entropy_has_the_gradients_of_its_own_loss(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]().eval()
    batch = make_batch()
    positions = len(batch["label_M"])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.flatten(0, 1)
    nn.functional.cross_entropy(logits[batch["hidden_index_M"], :VOCABULARY], batch["label_M"]).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    hidden_MD, head = hidden_states_at(model, batch, VOCABULARY)
    weight = torch.full((positions,), 1 / positions)
    distillation_loss(hidden_MD, head, None, batch["label_M"], 0 * weight, weight).loss.backward()
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


def xlstm() -> xLSTMForCausalLM:
    config = xLSTMConfig(vocab_size=304, embedding_dim=128, hidden_size=128, num_heads=2, num_hidden_layers=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return xLSTMForCausalLM(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_soft_cap_of_xlstm_is_known_and_one_that_is_not_is_seen_in_any_precision(dtype, monkeypatch):
    model = xlstm()
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    model.to(dtype)
    verify_head(model)
    captured(model, make_batch())
    monkeypatch.setattr("cache_builder.models.lm_head._SOFTCAPS", ())
    with pytest.raises(ModelError, match=r"xLSTMForCausalLM.*not supported"):
        verify_head(copy.deepcopy(model))


def test_the_head_is_compared_again_on_the_first_real_batch(make_model):
    model = OddOnRealTokens(make_model().config).eval()
    verify_head(model)
    with pytest.raises(ModelError, match=r"OddOnRealTokens.*not supported"):
        captured(model, make_batch())


def test_a_model_under_autocast_is_held_to_half_precision_and_one_without_is_not(make_model):
    model, batch = make_model(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        verify_head(model, batch)
    odd = OddLlama(model.config).eval()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ModelError, match=r"OddLlama.*not supported"):
        verify_head(odd, batch)


def test_a_head_that_reads_something_else_than_the_hidden_states_is_refused(make_model):
    model = make_model()
    model.lm_head = nn.Linear(48, 304, bias=False)
    with pytest.raises(ModelError, match="hidden states have 32 numbers, its head reads 48"):
        verify_head(model)


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

"""The language-model head as a plain matmul, an optional scale and soft-cap; every other head is refused by name.

    hidden = base(input_ids)[positions]          prompts and padding never meet the head
    logits = cap · tanh(scale · (hidden @ weightᵀ + bias) / cap)          the first `vocab_size` rows of weight only

Capture and loss both work on chunks of hidden states, so they need these parts instead of `model(...).logits`. They lie
on one device, the head's, wherever the layers are; a head that was offloaded is read in. `verify_head` compares the
parts with the model's own logits, before the first batch and on it, so that a family unknown here cannot pass unseen.

Shapes: B sequences, T tokens, M positions, C positions of a chunk, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from weakref import WeakSet

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from cache_builder.data.batching import Batch, model_inputs, sent
from cache_builder.errors import ModelError

_SCALES: dict[str, tuple[str, int]] = {
    "cohere": ("logit_scale", 1),
    "cohere2": ("logit_scale", 1),
    "cohere2_moe": ("logit_scale", 1),
    "falcon_h1": ("lm_head_multiplier", 1),
    "granite": ("logits_scaling", -1),
    "granite_swa": ("logits_scaling", -1),
    "granitemoe": ("logits_scaling", -1),
    "granitemoehybrid": ("logits_scaling", -1),
    "granitemoeshared": ("logits_scaling", -1),
    "hyperclovax": ("logits_scaling", 1),
    "minicpm3": ("logits_scaling", -1),
}
"""By `config.model_type`: the setting that scales the logits, and its power. The same name divides in one family and
multiplies in another, so a name alone decides nothing."""

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_HALF = (torch.bfloat16, torch.float16)
_MM_WIDENS = torch.version.cuda is not None and tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 9)
_VERIFY_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Of the largest logit. Ours are float32; a half-precision model rounds its own a few times, by 0.2 to 0.4 % each."""
_VERIFIED_ROWS, _VERIFIED_TOKENS = 4, 64
"""What is taken of a real batch, so that the model's own logits, [rows, tokens, vocabulary], take little memory."""
_verified: WeakSet[nn.Module] = WeakSet()
_verified_on_a_batch: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits. `weight_VD` is the module's own parameter, with all of its rows.

    Of a head that was offloaded, it is a copy on the device where the head runs.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    vocab_size: int
    scale: float = 1.0
    softcap: float | None = None


def read_head(model: nn.Module, vocab_size: int) -> Head:
    """Find the parts of a causal LM's head.

    Raises:
        ModelError: the head is no plain linear layer (LoRA, quantised, …), is divided among processes, or has fewer
            rows than `vocab_size`.
    """
    module = _output_layer(model)
    name = type(model).__name__
    plain = type(module) is nn.Linear or (_is_sharded(module) and nn.Linear in type(module).__bases__)
    if not (plain and isinstance(module, nn.Linear)):
        raise ModelError(
            f"{name}: the language-model head is a {type(module).__module__}.{type(module).__name__}, expected a plain "
            f"torch.nn.Linear, whose weight the loss reads directly; take `lm_head` out of LoRA's `target_modules` "
            f"(`modules_to_save` trains it whole), and do not quantise it"
        )
    if module.weight.shape[0] < vocab_size:
        raise ModelError(
            f"{name}: the head has {module.weight.shape[0]} rows, the tokenizer {vocab_size} tokens; "
            f"use the model's own tokenizer or resize the model's embeddings"
        )
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    setting, power = _SCALES.get(config.model_type, (None, 1))
    scale = float(getattr(config, setting)) ** power if setting else 1.0
    caps = [cap for cap in (getattr(config, attribute, None) for attribute in _SOFTCAPS) if cap]
    with align_module_device(module):  # its hooks read in what was offloaded
        weight_VD, bias_V = module.weight, module.bias
    if weight_VD.is_meta or _is_divided(weight_VD):
        where = "not in memory" if weight_VD.is_meta else "divided among processes"
        raise ModelError(
            f"{name}: the weight of the language-model head is {where}, expected a whole tensor; load the model with "
            f"teacher.device_map or teacher.tensor_parallel, which know how to keep it whole"
        )
    return Head(weight_VD, bias_V, vocab_size, scale, float(caps[0]) if caps else None)


def input_device(model: nn.Module) -> torch.device:
    """Return where token ids go: the device on which the model's embedding runs."""
    embedding = _plain(model).get_input_embeddings()  # type: ignore[operator]
    runs_on = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    if runs_on is not None:
        return torch.device(runs_on)
    weight = next(embedding.parameters())
    return torch.device(weight.device_mesh.device_type) if _is_divided(weight) else weight.device


def base_of(model: nn.Module) -> nn.Module:
    """Return the part of a causal LM that makes hidden states.

    Raises:
        ModelError: it is not apart from a head.
    """
    plain = _plain(model)
    base = plain.base_model
    if base is plain or not isinstance(base, nn.Module):
        raise ModelError(f"{type(plain).__name__} has no base model apart from its head; expected a causal LM")
    return base


def hidden_states_at(model: nn.Module, batch: Batch, vocab_size: int) -> tuple[Tensor, Head]:
    """Run the model without its head and return the hidden states [M, D] that predict the positions, and the head.

    Both are on the head's device.
    """
    device = input_device(model)
    base = base_of(model)
    hidden = base(**{**model_inputs(batch, device), "use_cache": False}).last_hidden_state
    hidden_MD = hidden.flatten(0, 1).index_select(0, sent(batch["hidden_index_M"], hidden.device))
    layer = _output_layer(model)
    if _is_sharded(layer):
        layer(hidden_MD[:1])  # its hooks gather the weight, and count on every module of their group being called
    head = read_head(model, vocab_size)
    return hidden_MD.to(head.weight_VD.device), head


@torch.compiler.disable  # it reads numbers off the device, at which a compiled forward would break once for each
def verify_head(model: nn.Module, batch: Batch | None = None) -> None:
    """Compare head and hidden states with the model's own logits: once on four tokens, and once on a part of `batch`.

    The four tokens are had before any data is; real ones reach what they may not, such as a soft-cap's bend.

    Raises:
        ModelError: they differ, so this family does something with its logits that is not known here.
    """
    done = _verified if batch is None else _verified_on_a_batch
    if model in done:
        return
    module = _output_layer(model)
    vocab_size = module.weight.shape[0] if isinstance(module, nn.Linear) else 1
    probe = _tokens(torch.tensor([[1, 2, 3, 0]]) % vocab_size) if batch is None else _part_of(batch)
    device = input_device(model)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        hidden_CD, head = hidden_states_at(model, probe, vocab_size)
        _check_width(model, hidden_CD, head)
        ours = project(hidden_CD, head)
        # accelerate wraps a trained model's forward in one autocast that must not be entered twice: the second entry
        # forgets what was before the first, and the process would compute in half precision from then on.
        forward = getattr(model, "_original_forward", model)
        own = forward(**model_inputs(probe, device)).logits
        at = probe["hidden_index_M"].to(own.device)
        theirs = own[..., :vocab_size].flatten(0, 1).index_select(0, at).to(ours.device, ours.dtype)
    model.train(was_training)
    error = (ours - theirs).abs().max().item()
    largest = theirs.abs().max().item()
    if not theirs.isfinite().all():
        return  # capture and loss will name the row
    # Under autocast the model multiplies by its head in half precision, whatever its weights and its output are.
    halved = torch.is_autocast_enabled(device.type)
    computed_in = torch.get_autocast_dtype(device.type) if halved else head.weight_VD.dtype
    if error > _VERIFY_TOLERANCE[computed_in] * max(largest, 1e-3):
        raise _unsupported(
            model, f"hidden @ weightᵀ differs from the model's own logits by {error:.3g} of {largest:.3g}"
        )
    done.add(model)


def _tokens(input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Batch:
    """Return a batch of which every token that is no padding has a logit to compare."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    index = mask.flatten().nonzero()[:, 0]
    nothing = torch.zeros_like(index)
    tokens: Batch = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "hidden_index_M": index,
        "label_M": nothing,
        "sequence_M": nothing,
    }
    return tokens if position_ids is None else {**tokens, "position_ids": position_ids}


def _part_of(batch: Batch) -> Batch:
    """Take rows from the whole of a batch, padded ones too, and the first tokens of each."""
    step = max(1, len(batch["input_ids"]) // _VERIFIED_ROWS)
    part = slice(None, None, step), slice(0, _VERIFIED_TOKENS)
    packed = ("position_ids",) if "position_ids" in batch else ()
    names = "input_ids", "attention_mask", *packed
    return _tokens(*(batch[name][part][:_VERIFIED_ROWS] for name in names))  # type: ignore[literal-required]


def _check_width(model: nn.Module, hidden_CD: Tensor, head: Head) -> None:
    if hidden_CD.shape[1] != head.weight_VD.shape[1]:
        raise _unsupported(
            model, f"its hidden states have {hidden_CD.shape[1]} numbers, its head reads {head.weight_VD.shape[1]}"
        )


def _unsupported(model: nn.Module, how: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} (model_type {model.config.model_type!r}) computes its logits in a way that is not "  # type: ignore[union-attr]
        f"supported: {how}; supported are plain heads, soft-caps, and the scales of {', '.join(_SCALES)}"
    )


def compute_weight(head: Head) -> Tensor:
    """Return the head's first `vocab_size` rows [V, D] in the dtype that its matmuls run in.

    float32 on a CPU, where half-precision matmuls are slow; the weight's own or autocast's dtype on a GPU, with float32
    results; float64 stays float64.
    """
    weight_VD = head.weight_VD.detach()[: head.vocab_size]  # a head may be padded; those rows are nobody's tokens
    if weight_VD.dtype == torch.float64:
        return weight_VD
    if weight_VD.device.type == "cpu":
        return weight_VD.float()
    if torch.is_autocast_enabled(weight_VD.device.type):
        return weight_VD.to(torch.get_autocast_dtype(weight_VD.device.type))
    return weight_VD


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply two matrices of one dtype; the result is float32 (float64 for float64), whatever that dtype.

    Half-precision inputs are multiplied as they are where torch can return float32 from them, else widened first.
    """
    if left.dtype not in _HALF:
        return torch.mm(left, right, out=out)
    if not _MM_WIDENS:
        return torch.mm(left.float(), right.float(), out=out)
    product = torch.mm(left, right, out_dtype=torch.float32)
    return product if out is None else out.copy_(product)


def project(hidden_CD: Tensor, head: Head, weight_VD: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Compute logits [C, V] in float32 (float64 for a float64 head), into `out` where given; not differentiable."""
    weight_VD = compute_weight(head) if weight_VD is None else weight_VD
    with torch.no_grad(), torch.autocast(weight_VD.device.type, enabled=False):
        logits_CV = matmul(hidden_CD.detach().to(weight_VD.dtype), weight_VD.T, out)
        if head.bias_V is not None:
            logits_CV += head.bias_V.detach()[: head.vocab_size]
        if head.scale != 1.0:
            logits_CV *= head.scale
        if head.softcap is not None:
            logits_CV.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits_CV


def _is_divided(weight: Tensor) -> bool:
    """Say whether this process has only a part of a weight."""
    return torch.distributed.is_available() and isinstance(weight, torch.distributed.tensor.DTensor)


def _is_sharded(module: nn.Module) -> bool:
    """Say whether FSDP2 has sharded this module by itself; it has then made a subclass of the module's class."""
    return torch.distributed.is_available() and isinstance(module, torch.distributed.fsdp.FSDPModule)


def _plain(model: nn.Module) -> nn.Module:
    """Unwrap a PEFT model; its adapters live inside the layers of the model that it wraps."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _output_layer(model: nn.Module) -> nn.Module:
    module = _plain(model).get_output_embeddings()  # type: ignore[operator]
    saved = getattr(module, "modules_to_save", None)
    if isinstance(saved, nn.ModuleDict):
        module = saved[module.active_adapter]
    if module is None:
        raise ModelError(f"{type(model).__name__} has no language-model head; expected a causal LM")
    return module

"""A tiny model and its tokenizer in one .gguf file, written with the package that reads them."""

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

HIDDEN, NEURONS, LAYERS, CONTEXT = 32, 48, 3, 128


def write_gguf(path: Path, tokenizer: PreTrainedTokenizerBase, architecture: str = "llama") -> dict[str, np.ndarray]:
    """Write random weights, and return those that are stored as they are, by their names in the file."""
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(str(path), architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(NEURONS)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokenizer))
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokenizer), HIDDEN),
        "output_norm": (HIDDEN,),
        "output": (len(tokenizer), HIDDEN),
        **{
            f"blk.{layer}.{name}": shape
            for layer in range(LAYERS)
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, HIDDEN),
                "attn_k": (HIDDEN // 2, HIDDEN),
                "attn_v": (HIDDEN // 2, HIDDEN),
                "attn_output": (HIDDEN, HIDDEN),
                "ffn_norm": (HIDDEN,),
                "ffn_gate": (NEURONS, HIDDEN),
                "ffn_up": (NEURONS, HIDDEN),
                "ffn_down": (HIDDEN, NEURONS),
            }.items()
        },
    }
    tensors = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors

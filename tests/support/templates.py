"""Small chat templates after the public behaviour of today's families, and a tokenizer that has their special tokens.

chatml_tools      a system turn, tools and results in it             Qwen2.5, Hermes
llama3_like       a date, one call a turn, results as JSON           Llama 3.1
qwen3_like        strips the thinking of earlier turns               Qwen3
marked_thinking   the same, and marks what the model writes          SmolLM3
no_system         refuses a system role and turns out of order       Gemma 2
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from cache_builder.data.tokenizer import train_tokenizer

FAMILIES = ("chatml_tools", "llama3_like", "qwen3_like", "marked_thinking", "no_system")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>", "<|turn|>", "<|/turn|>")


@cache
def family_template(name: str) -> str:
    return (Path(__file__).parents[1] / "fixtures" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def family_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level BPE that has every family's special tokens."""
    with TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(["what is the weather in Paris?", "sunny, 21 degrees"], 300, Path(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL), "bos_token": "<|begin|>"})
    return tokenizer

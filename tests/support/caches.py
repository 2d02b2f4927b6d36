"""What the tests of the cache share: a tiny teacher with two checkpoints, its corpora, and builds of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.build.build import build_cache
from cache_builder.config import CacheExperiment, TextConfig
from cache_builder.data.corpus import Corpus, open_corpus
from cache_builder.data.tokenising import build_corpus
from cache_builder.data.tokenizer import load_tokenizer
from tests.support.toys import color_examples

SMALL = {
    "top_k": 4,
    "tail_samples": 2,
    "tail_blocks": 0,
    "logp_steps_per_nat": 256,
    "probe_sequences": 6,
    "probe_top_k": 8,
    "shard_positions": 63,
}
SMALL |= {"chunk_positions": 21, "batch_tokens": 256}


@dataclass(frozen=True)
class Teaching:
    """A folder with all that building a cache needs."""

    folder: Path

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(str(self.folder / "tokenizer"))

    @property
    def corpus(self) -> Corpus:
        return open_corpus(self.folder / "corpus" / "train")

    @property
    def held_out(self) -> Corpus:
        return open_corpus(self.folder / "corpus" / "validation")

    @property
    def checkpoints(self) -> list[tuple[str, str]]:
        return [(name, str(self.folder / name)) for name in ("step-1", "step-2")]

    def experiment(self, cache: str | Path, **options: Any) -> CacheExperiment:
        return CacheExperiment.model_validate(
            {
                "run": {"output_dir": str(self.folder)},
                "data": {},
                "text": {"chat_template": "plain"},
                "teacher": {"model": str(self.folder / "step-2"), "checkpoints": [c for _, c in self.checkpoints]},
                "cache": {**SMALL, "path": str(cache), **options},
            }
        )

    def build(
        self,
        cache: str | Path,
        *,
        part: tuple[int, int] = (0, 1),
        only: str | None = None,
        repair: bool = False,
        **options: Any,
    ) -> bool:
        experiment = self.experiment(cache, **options)
        return build_cache(
            experiment,
            self.corpus,
            self.tokenizer,
            self.checkpoints,
            self.held_out,
            part=part,
            only=only,
            repair=repair,
        )


def make_teaching(
    folder: Path, tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., LlamaForCausalLM], sequences: int
) -> Teaching:
    """Save a tokenizer, two random checkpoints and two corpora below `folder`."""
    tokenizer.save_pretrained(folder / "tokenizer")
    for seed, name in enumerate(("step-1", "step-2")):
        make_model(seed=seed, hidden_size=16).save_pretrained(folder / name)
    examples = color_examples(sequences + 5)
    text = TextConfig(chat_template="plain", max_length=64)
    for split, chosen in (("train", examples[:sequences]), ("validation", examples[sequences:])):
        build_corpus(chosen, tokenizer, folder / "corpus" / split, text=text, inputs={"split": split})
    return Teaching(folder)


def files_of(cache: Path) -> dict[str, bytes]:
    """Return every file of a cache with its bytes."""
    return {
        path.relative_to(cache).as_posix(): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()
    }

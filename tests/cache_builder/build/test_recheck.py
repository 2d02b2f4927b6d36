"""Targets that the live model does not stand by are never committed, whichever engine gave them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from cache_builder.build.build import build_cache
from cache_builder.build.recheck import differences, recheck
from cache_builder.cache.reader import open_cache
from cache_builder.capture.backend import open_engine
from cache_builder.capture.teacher import Teacher
from cache_builder.config import CacheExperiment
from cache_builder.errors import CacheDamagedError, ModelError
from cache_builder.format.manifest import TargetOptions
from cache_builder.format.options import BlockOptions
from cache_builder.sequences import NumberedSequences
from cache_builder.targets.sparse import Targets
from tests.support.caches import Teaching, files_of
from tests.support.teachers import OPTIONS, load

SEQUENCES = 40
"""Of the teaching."""
BLOCKS = OPTIONS.model_copy(update={"blocks": BlockOptions(edges=[0, 20, 150, 300], steps_per_nat=4)})


class Shifted(Teacher):
    """Puts each position's targets at the next one, unless asked about one sequence."""

    def targets(self, corpus: NumberedSequences, start: int, end: int, options: TargetOptions) -> Targets:
        said = super().targets(corpus, start, end, options)
        if end - start <= 4:
            return said
        return said.each(lambda values: np.roll(values, 1, axis=0))


class ShiftedEngine:
    def __init__(self, experiment: CacheExperiment, tokenizer: PreTrainedTokenizerBase) -> None:
        self.plain, self.experiment, self.tokenizer = open_engine(experiment, tokenizer), experiment, tokenizer
        self.identify, self.run_build = self.plain.identify, self.plain.run_build

    def load(self, name: str, location: str) -> Shifted:
        return Shifted(self.experiment, name, location, self.tokenizer, self.identify(location))


def test_a_shard_whose_sample_says_something_else_alone_is_not_stored(teaching: Teaching, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    inputs = teaching.corpus, teaching.tokenizer, teaching.checkpoints, teaching.held_out
    with pytest.raises(ModelError, match=r"'step-1' says of sequences 'color-\d+', .* alone .* nats apart.*float32"):
        build_cache(teaching.experiment(cache), *inputs, engine=ShiftedEngine)
    assert not [file for file in files_of(cache) if "/c/" in file and file.startswith("checkpoints/")]
    assert open_cache(str(cache)).checkpoints == ()
    assert teaching.build(cache)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_and_near_ties_are_no_difference(teaching: Teaching, dtype: str) -> None:
    teacher = load(teaching, teaching.folder / "step-1", dtype=dtype)
    for options in (OPTIONS, BLOCKS):
        for span in ((0, teaching.corpus.n_positions), (3, 22)):
            targets = teacher.targets(teaching.corpus, *span, options)
            recheck(teacher, teaching.corpus, targets, span, options, 300)


@pytest.mark.parametrize("top_p", [0.01, 1.0])
@pytest.mark.parametrize("field", ["ids", "logp", "log_tail", "log_blocks", "gold", "entropy"])
def test_every_field_is_compared(teaching: Teaching, field: str, top_p: float) -> None:
    teacher = load(teaching, teaching.folder / "step-1")
    span, options = (0, teaching.corpus.n_positions), BLOCKS.model_copy(update={"top_p": top_p})
    targets = teacher.targets(teaching.corpus, *span, options)
    assert differences(targets, targets).max() == 0
    changes = {"ids": (targets.ids + 1) % 300, "logp": targets.logp - 1, "log_tail": targets.log_tail - 0.5}
    changes["log_blocks"] = targets.log_blocks[:, ::-1]
    wrong = replace(targets, **{field: changes.get(field, getattr(targets, field) + 0.5)})
    # a wrong mass of the tail alone does not even sum to one, and is refused before anything is compared
    with pytest.raises((ModelError, CacheDamagedError), match=r"nats apart|do not sum to one"):
        recheck(teacher, teaching.corpus, wrong, span, options, 300)

"""What a method may use of a cache: of any, what it keeps of the tail; of an imported one, what its source did say.

td, cd, sft             always; without a tail, forward KL is the usual one on the renormalised top k
rkl, taid, jsd          where the tail is known: both compare the student's mass there with the teacher's
…+aw, …+hard-aw         where the loss of every sequence is: the true token is in the support at every position
scd                     never: there is one checkpoint, and no probe to choose by
aw_source = "crossfit"  never: the teacher cannot be fine-tuned again
"""

import numpy as np

from cache_builder.cache.reader import Cache
from cache_builder.errors import CacheMismatchError
from cache_builder.targets.divergences import DIVERGENCES
from cache_builder.targets.tail import Kept, Tail, TailSetting, choose_tail
from trainer.methods.methods import Method
from trainer.methods.schedules import SCHEDULES
from trainer.methods.weighting import WEIGHTINGS


def kept_by(cache: Cache) -> Kept:
    """Return what a cache keeps of a tail beside its mass."""
    options = cache.manifest.targets
    return Kept(samples=options.tail_samples, blocks=max(len(options.edges) - 1, 0))


def tail_of(cache: Cache, method: str, setting: TailSetting, takes_samples: bool, mixed_weight: float) -> Tail:
    """Return what stands for the tail in a method's divergence.

    Raises:
        CacheMismatchError: the cache does not keep what the setting needs, or the method cannot use it.
    """
    kept = kept_by(cache)
    try:
        return choose_tail(setting, kept, takes_samples, mixed_weight)
    except ValueError as error:
        raise CacheMismatchError(
            f"cache {cache.url} keeps {kept.samples} tail samples and {kept.blocks} blocks of the tail, so `{method}` "
            f'cannot be trained with distill.tail = "{setting}": {error}; use "auto", or build a cache with '
            "cache.tail_samples or cache.tail_blocks"
        ) from None


def check_method(cache: Cache, method: Method, aw_source: str) -> None:
    """Refuse a method that needs of an imported cache what it does not hold; any other cache passes.

    Raises:
        CacheMismatchError: the message names the cache, the method, what is missing and what to do.
    """
    imported = cache.manifest.imported
    if imported is None:
        return
    refused = f"cache {cache.url} was imported from {imported.format} rows, so `{method.name}` cannot be trained: "
    if SCHEDULES[method.schedule].needs_probe:
        raise CacheMismatchError(f"{refused}it has one checkpoint and no probe to choose by; td is what is left of it")
    if method.divergence and DIVERGENCES[method.divergence].needs_tail and imported.tail == "none":
        raise CacheMismatchError(
            f"{refused}it compares the mass outside the top {cache.manifest.targets.top_k} tokens, which is not known; "
            "use td, or import rows whose log-probabilities are over the whole vocabulary with --tail complement"
        )
    if WEIGHTINGS[method.weighting].adaptive:
        if aw_source == "crossfit":
            raise CacheMismatchError(f'{refused}its teacher is not there to be cross-fitted; use aw_source = "train"')
        check_losses(cache, refused)


def check_losses(cache: Cache, refused: str) -> None:
    """Refuse a cache that lacks the loss of a sequence."""
    for name in cache.checkpoints:
        unknown = np.flatnonzero(np.isnan(cache.losses(name)))
        if len(unknown):
            raise CacheMismatchError(
                f"{refused}the teacher's loss is not known for {len(unknown):,} of {len(cache.corpus):,} sequences, "
                f"the first being {cache.corpus.sample_ids[int(unknown[0])]!r}: a true token is outside the top "
                f"{cache.manifest.targets.top_k}, or the tail is not known; use the method without weighting"
            )

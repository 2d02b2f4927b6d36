"""What a report shows of a cache: losses, held-out loss, retained mass and bytes per checkpoint, and their distances.

    kl_NN[i, j] = mean over probe positions of KL(p_i ‖ p_j) on the probe's shared ids and the tail

Legend: N checkpoints, oldest first; M probe positions; R ids per probe position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_builder.cache.info import retained_mass
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.config import expand
from cache_builder.errors import MissingError, UserError
from cache_builder.redaction import redact
from trainer.report.run.settings import setting


@dataclass(frozen=True)
class CacheView:
    """A cache as a report sees it; mappings are by checkpoint, oldest first."""

    fingerprint: str
    corpus_fingerprint: str
    tokenizer_fingerprint: str
    checkpoints: tuple[str, ...]
    sample_ids: list[str]
    sequence_positions: np.ndarray
    losses: dict[str, np.ndarray]
    held_out: dict[str, float | None]
    retained: dict[str, float | None]
    """None where an imported cache does not know its tail."""
    bytes: dict[str, int]
    kl_NN: np.ndarray

    @property
    def losses_known(self) -> bool:
        """Whether the loss of every sequence is known, as it is unless the cache was imported."""
        return not any(np.isnan(losses).any() for losses in self.losses.values())

    @property
    def n_sequences(self) -> int:
        return len(self.sample_ids)

    @property
    def n_positions(self) -> int:
        return int(self.sequence_positions.sum())


def read_cache(folder: Path, config: dict[str, Any], missing: list[str], *, remote: bool) -> CacheView | None:
    """Read the cache of the run in `folder`, or say in `missing` why there is none to read.

    Only with `remote` a path is expanded and an address opened: the config may be a stranger's, and `ftp://$TOKEN@host`
    would send the reader's secrets.
    """
    path = setting(config, "cache", "path")
    try:
        url = str(path) if path else str(folder / "cache")
        if remote:
            return view_of(open_cache(expand(url)))
        if path and ("://" in url or "::" in url or "$" in url or url.startswith("~")):
            raise MissingError(f"{redact(url)} is not opened unless you say that you trust this run: --remote")
        return view_of(open_cache(url))
    except (UserError, OSError, ValueError) as error:
        missing.append(f"the cache: {redact(str(error).splitlines()[0])}")
        return None


def view_of(cache: Cache) -> CacheView:
    """Reduce an open cache to what a report shows."""
    names = tuple(cache.checkpoints)
    retained = {name: retained_mass(cache, name) for name in names}
    return CacheView(
        fingerprint=cache.fingerprint,
        corpus_fingerprint=cache.corpus.fingerprint,
        tokenizer_fingerprint=cache.manifest.tokenizer.fingerprint,
        checkpoints=names,
        sample_ids=list(cache.corpus.sample_ids),
        sequence_positions=np.diff(cache.corpus.position_offsets),
        losses={name: np.asarray(cache.losses(name), dtype=np.float64) for name in names},
        held_out={name: cache.held_out(name) for name in names},
        retained={name: None if mass is None else mass["mean"] for name, mass in retained.items()},
        bytes={name: sum(entry.bytes for entry in cache.checkpoint(name).files.values()) for name in names},
        kl_NN=probe_kl([(cache.probe_logp(name), cache.probe_log_tail(name)) for name in names]),
    )


def probe_kl(probes: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the mean KL(p_i ‖ p_j) over probe positions of every pair of checkpoints, f64 [N, N], in nats.

    NaN where there is no probe, as in an imported cache. `probes` has each checkpoint's log-probabilities on the
    probe's ids, [M, R], and the log of the rest's mass, [M].
    """
    logp = [_outcomes(*probe) for probe in probes]
    if not any(len(logp_MO) for logp_MO in logp):
        return np.full((len(logp), len(logp)), np.nan)
    return np.array([[float(_kl(p_MO, q_MO).mean()) for q_MO in logp] for p_MO in logp])


def _outcomes(logp_MR: np.ndarray, log_tail_M: np.ndarray) -> np.ndarray:
    """Join ids and tail to log-probabilities [M, R + 1]; numpy, so that a report need not wait for torch."""
    logp_MO = np.concatenate([logp_MR, log_tail_M[:, None]], axis=1).astype(np.float64)
    return logp_MO - np.logaddexp.reduce(logp_MO, axis=1, keepdims=True)


def _kl(logp_MO: np.ndarray, logq_MO: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # −inf − (−inf), of outcomes that neither has
        terms_MO = np.exp(logp_MO) * (logp_MO - logq_MO)
    return np.where(np.isneginf(logp_MO), 0.0, terms_MO).sum(1)

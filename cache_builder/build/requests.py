"""What another engine is to run for a cache: the token ids of every sequence, once each.

    corpus, held-out rows ─▶ DIR/requests/00000.jsonl …    {"id": "ab3f…", "token_ids": [1, 15, …]} a line
                          ─▶ DIR/requests.json             last: how many, and of which corpora

Giving the command again writes the same files; a folder of another corpus's requests is refused.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from cache_builder.atomic import write_json, write_text
from cache_builder.capture.state_files import REQUESTS_FILE, REQUESTS_FOLDER, sequence_key
from cache_builder.data.corpus import Corpus
from cache_builder.errors import CacheMismatchError

SHARD = 4096
"""Sequences of one file."""


@dataclass(frozen=True)
class Requests:
    """What was written."""

    sequences: int
    tokens: int
    files: int


def write_requests(folder: Path, corpus: Corpus, held_out: Corpus | None, checkpoints: list[str]) -> Requests:
    """Write the requests of a cache.

    Raises:
        CacheMismatchError: the folder holds those of other corpora.
    """
    corpora = [corpus] if held_out is None else [corpus, held_out]
    of = {"corpora": [one.fingerprint for one in corpora], "checkpoints": checkpoints}
    listing = folder / REQUESTS_FILE
    if listing.is_file():
        try:
            corpora_there = json.loads(listing.read_bytes())["corpora"]
        except (ValueError, KeyError, TypeError) as error:
            raise CacheMismatchError(
                f"{listing}: not a list of requests ({error!r}); delete it or give another folder"
            ) from None
        if corpora_there != of["corpora"]:
            raise CacheMismatchError(
                f"{listing}: requests of other data or of another tokenisation than this config's; give another folder"
            )
    (folder / REQUESTS_FOLDER).mkdir(parents=True, exist_ok=True)
    seen: Counter[str] = Counter()
    tokens = files = 0
    lines = _lines(corpora, seen)
    while batch := list(islice(lines, SHARD)):
        tokens += sum(len(ids) for _, ids in batch)
        text = "".join(json.dumps({"id": key, "token_ids": ids.tolist()}) + "\n" for key, ids in batch)
        write_text(folder / REQUESTS_FOLDER / f"{files:05}.jsonl", text)
        files += 1
    for left in (folder / REQUESTS_FOLDER).glob("*.jsonl"):  # of a command on more data that was killed
        if left.stem.isdigit() and int(left.stem) >= files:
            left.unlink()
    shared = sorted(key for key, times in seen.items() if times > 1)
    write_json(listing, {**of, "sequences": len(seen), "tokens": tokens, "files": files, "shared": shared})
    return Requests(len(seen), tokens, files)


def _lines(corpora: list[Corpus], seen: Counter[str]) -> Iterator[tuple[str, np.ndarray]]:
    for corpus in corpora:
        for row in range(len(corpus)):
            tokens = corpus.sequence(row)[0]
            key = sequence_key(tokens)
            seen[key] += 1
            if seen[key] == 1:
                yield key, tokens

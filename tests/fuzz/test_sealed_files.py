"""What has a digest beside it, in any state: as it was written, or refused. Never something else, never a traceback."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.config import TextConfig
from cache_builder.data.corpus import open_corpus
from cache_builder.data.tokenising import build_corpus
from cache_builder.storage.local import LocalStore
from tests.support.crafted import Crafted, everything, write_honest
from tests.support.fuzz import Tally, cases, changed, holding, twisted
from tests.support.toys import color_examples
from trainer.losses_file import read_losses, write_losses


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "cache"
    write_honest(folder)
    return folder


def said(folder: Path) -> bytes:
    """Return all that a cache says, as bytes that can be compared."""
    return b"".join(
        each if isinstance(each, bytes) else repr(each).encode()
        for each in _leaves(everything(open_cache(str(folder))))
    )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, dict):
        yield from _leaves(list(value.items()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


@cases(60, 4000)
@given(data=st.data())
def test_a_caches_damaged_file(data: st.DataObject, honest: Path, tally: dict[str, Tally]) -> None:
    files = sorted(path for path in honest.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    expected = _expected(honest)
    with holding(path, changed(data, path)):
        tally["caches, bytes"].end(lambda: said(honest), expected, silent_is_wrong=True)


@cases(40, 2000)
@given(data=st.data())
def test_a_caches_crafted_group_whose_seal_agrees(
    data: st.DataObject, honest: Path, tmp_path_factory: pytest.TempPathFactory, tally: dict[str, Tally]
) -> None:
    """It may be read: who makes a cache decides what it says. It may not crash, hang or allocate."""
    folder = tmp_path_factory.mktemp("crafted") / "cache"
    shutil.copytree(honest, folder)
    group = data.draw(st.sampled_from(["", "corpus", "probe", "checkpoints", "checkpoints/step-2"]))
    Crafted(folder).json(group, lambda body: data.draw(twisted(body)))
    try:
        tally["caches, crafted"].end(lambda: said(folder))
        tally["caches, crafted, verified"].end(lambda: verify_cache(LocalStore(folder)))
    finally:
        shutil.rmtree(folder)


_SAID: dict[Path, bytes] = {}


def _expected(honest: Path) -> bytes:
    if honest not in _SAID:
        _SAID[honest] = said(honest)
    return _SAID[honest]


@cases(60, 4000)
@given(data=st.data())
def test_a_corpus(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase, tally: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-corpus"
    if not (folder / "stage.json").exists():
        text = TextConfig(chat_template="plain", max_length=64)
        build_corpus(color_examples(4), tokenizer, folder, text=text, inputs={"data": "x"})

    def read() -> bytes:
        corpus = open_corpus(folder)
        rows = [corpus.sequence(row) for row in range(len(corpus))]
        return b"".join(_leaves([*rows, [name.encode() for name in corpus.sample_ids], corpus.fingerprint.encode()]))

    expected = read()
    path = data.draw(st.sampled_from(sorted(path for path in folder.iterdir() if path.name != "inputs.json")))
    with holding(path, changed(data, path)):
        tally["corpora"].end(read, expected, silent_is_wrong=True)


@cases(60, 4000)
@given(data=st.data())
def test_a_file_of_losses(data: st.DataObject, tmp_path: Path, tally: dict[str, Tally]) -> None:
    path, losses = tmp_path / "student.safetensors", np.linspace(0.5, 9.5, 12)
    if not path.exists():
        write_losses(path, losses, "f" * 64)
    with holding(path, changed(data, path)):
        read = lambda: read_losses(path, "f" * 64, 12).tobytes()  # noqa: E731
        tally["losses"].end(read, losses.tobytes(), silent_is_wrong=True)

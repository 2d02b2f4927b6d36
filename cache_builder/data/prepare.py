"""What every stage starts from: the tokenizer, and the training and held-out examples as token ids.

data ──▶ examples ──▶ [train a tokenizer]  ──▶ corpus/train, corpus/validation
"""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cache_builder.config import CacheExperiment, TextConfig
from cache_builder.data.chat import encode_prompt
from cache_builder.data.corpus import Corpus
from cache_builder.data.deployment import Deployment, make_deployment
from cache_builder.data.digests import check_files, content_digests, files_in
from cache_builder.data.examples import Example, Split
from cache_builder.data.splits import data_files, load_splits
from cache_builder.data.tokenising import build_corpus, encode_all
from cache_builder.data.tokenizer import checkpoint_tokenizer, load_tokenizer, train_tokenizer
from cache_builder.errors import CacheMismatchError, DataError, ModelError
from cache_builder.steps import STAGE_FILE, STARTED_FILE, finish_stage, finished_result, stage_result
from cache_builder.storage.locks import folder_lock

COMPARED = 4
"""Rows of which two tokenizers' tokens are compared."""
OLDER_RECORD = "file_bytes"
"""What a folder says of its data files that was made before their content was recorded: their sizes."""


class Prepared:
    """Examples by split, the tokenizer, and the tokenised corpora; `validation` is None where nothing is held out."""

    def __init__(self, experiment: CacheExperiment) -> None:
        self.examples: dict[str, Split] = load_splits(experiment.data, experiment.run.seed)
        self.text = experiment.text
        with folder_lock(experiment.output_dir):  # several processes of one run must not write one corpus
            inputs = _data_inputs(experiment)
            self.tokenizer = prepare_tokenizer(experiment, self.examples["train"], inputs)
            if not (experiment.output_dir / "corpus" / "train" / STAGE_FILE).is_file():
                check_checkpoint_tokenizer(experiment, self.examples["train"], self.tokenizer)
                self._check_test(experiment)
            self.train = self._corpus(experiment, "train", inputs)
            held_out = len(self.examples["validation"])
            self.validation = self._corpus(experiment, "validation", inputs) if held_out else None

    @cached_property
    def deployment(self) -> Deployment:
        """What travels with every model that is trained on the corpus."""
        return make_deployment(self.tokenizer, self.text, self.examples["train"], self.train)

    def _corpus(self, experiment: CacheExperiment, split: str, inputs: dict[str, Any]) -> Corpus:
        def build(folder: Path) -> Corpus:
            return build_corpus(self.examples[split], self.tokenizer, folder, text=experiment.text, inputs=inputs)

        folder = experiment.output_dir / "corpus" / split
        _renew(folder, build)
        return build(folder)

    def _check_test(self, experiment: CacheExperiment) -> None:
        """Read every test example before anything is trained: a damaged one would else be found hours later."""
        for example in self.examples["test"]:
            encode_prompt(example, self.tokenizer, experiment.text.chat_template, train_on=experiment.text.train_on)


def prepare_tokenizer(experiment: CacheExperiment, train: Split, inputs: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the experiment's tokenizer, or train it on the training text; `inputs` names the data."""
    size = experiment.tokenizer.train_vocab_size
    if size is None:
        return load_tokenizer(
            experiment.tokenizer.path or experiment.teacher.model, experiment.teacher.trust_remote_code
        )
    folder = experiment.output_dir / "tokenizer"
    started = folder / STARTED_FILE
    if started.is_file() and OLDER_RECORD in json.loads(started.read_text(encoding="utf-8")):
        return load_tokenizer(str(folder))  # whether the data is still the same shows when the corpus is made again
    result = stage_result(folder, {"train_vocab_size": size, **inputs})
    if result is None:
        train_tokenizer(_texts(train), size, folder)
        finish_stage(folder, {"files": files_in(folder, leave_out=[STARTED_FILE])})
    else:
        check_files(folder, result.get("files", {}), "the tokenizer", "remove the folder to make it again")
    return load_tokenizer(str(folder))


def check_checkpoint_tokenizer(experiment: CacheExperiment, train: Split, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the tokenizer and its template with those in the folder of the teacher's last finished checkpoint.

    Raises:
        ModelError: the config names neither, and the checkpoint's make other tokens of a row.
    """
    text = experiment.text
    if experiment.tokenizer.path or experiment.tokenizer.train_vocab_size or text.chat_template:
        return
    if (own := checkpoint_tokenizer(experiment.teacher.checkpoints)) is None:
        return
    rows = [train[row] for row in range(min(COMPARED, len(train)))]
    others = load_tokenizer(own, experiment.teacher.trust_remote_code)
    if _tokens(rows, others, text) not in (None, _tokens(rows, tokenizer, text)):
        raise ModelError(
            f"teacher.checkpoints: the tokenizer in {own} makes other tokens of the first rows than that of "
            f"teacher.model {experiment.teacher.model}, or has another chat template; set tokenizer.path to the "
            "one that the checkpoints were fine-tuned with"
        )


def _tokens(rows: list[Example], tokenizer: PreTrainedTokenizerBase, text: TextConfig) -> object:
    """Return what becomes of rows; None where the tokenizer or its template makes nothing of one."""
    try:
        return list(encode_all(rows, tokenizer, text))
    except DataError:
        return None


def _texts(train: Split) -> Iterator[str]:
    for example in train:
        yield from (message["content"] for message in example["messages"])
        yield from (message["reasoning_content"] for message in example["messages"] if "reasoning_content" in message)
        if "text" in example:
            yield example["text"]


def _data_inputs(experiment: CacheExperiment) -> dict[str, Any]:
    """Name the data: the settings that select it, and the content of the files that they name."""
    data = experiment.data.model_dump(exclude_none=True)
    if not data["ignore_keys"]:
        del data["ignore_keys"]  # folders made before there was this setting do not record it
    inputs: dict[str, Any] = {"data": data, "seed": experiment.run.seed}
    digests = content_digests(data_files(experiment.data), experiment.output_dir / "digests.json")
    inputs |= {f"sha256 of {path}": digest for path, digest in digests.items()}
    if experiment.data.source == "files" and experiment.data.train_examples is not None:
        inputs["train_examples_taken"] = "at random by run.seed"  # a corpus without this key has a file's first rows
    return inputs


def _renew(folder: Path, build: Callable[[Path], Corpus]) -> None:
    """Make a corpus again that records only its data files' sizes, and keep it if it comes out the same.

    Raises:
        CacheMismatchError: it does not; so data or settings have changed since.
    """
    started = folder / STARTED_FILE
    if not started.is_file() or OLDER_RECORD not in json.loads(started.read_text(encoding="utf-8")):
        return
    again = folder.with_name(f"{folder.name}.again")
    shutil.rmtree(again, ignore_errors=True)
    if (folder / STAGE_FILE).is_file():
        was = finished_result(folder, "the corpus", "footsteps run CONFIG")["fingerprint"]
        now = build(again).fingerprint
        if now != was:
            shutil.rmtree(again)
            raise CacheMismatchError(
                f"{folder} was made by an older version, which recorded only its data files' sizes, and made again it "
                f"is another corpus: {was[:12]}… became {now[:12]}…; remove it, or choose another run.output_dir"
            )
    shutil.rmtree(folder)
    if again.is_dir():
        again.rename(folder)

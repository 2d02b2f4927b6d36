"""What every stage starts from: the tokenizer, and the training and held-out examples as token ids.

data ──▶ examples ──▶ [train a tokenizer]  ──▶ corpus/train, corpus/validation
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cache_builder.config import CacheExperiment, expand
from cache_builder.data.corpus import Corpus, build_corpus
from cache_builder.data.examples import Split, load_splits
from cache_builder.data.tokenizer import load_tokenizer, train_tokenizer
from cache_builder.steps import finish_stage, stage_result
from cache_builder.storage.locks import folder_lock

SPLITS = ("train", "validation", "test")


class Prepared:
    """Examples by split, the tokenizer, and the tokenised corpora; `validation` is None where nothing is held out."""

    def __init__(self, experiment: CacheExperiment) -> None:
        self.examples: dict[str, Split] = load_splits(experiment.data, experiment.run.seed)
        with folder_lock(experiment.output_dir):  # several processes of one run must not write one corpus
            self.tokenizer = prepare_tokenizer(experiment, self.examples["train"])
            self.train = self._corpus(experiment, "train")
            self.validation = self._corpus(experiment, "validation") if len(self.examples["validation"]) else None

    def _corpus(self, experiment: CacheExperiment, split: str) -> Corpus:
        return build_corpus(
            self.examples[split],
            self.tokenizer,
            experiment.output_dir / "corpus" / split,
            chat_template=experiment.text.chat_template,
            max_length=experiment.text.max_length,
            inputs=_data_inputs(experiment),
        )


def prepare_tokenizer(experiment: CacheExperiment, train: Split) -> PreTrainedTokenizerBase:
    """Load the experiment's tokenizer, or train it on the training text."""
    size = experiment.tokenizer.train_vocab_size
    if size is None:
        return load_tokenizer(
            experiment.tokenizer.path or experiment.teacher.model, experiment.teacher.trust_remote_code
        )
    folder = experiment.output_dir / "tokenizer"
    if stage_result(folder, {"train_vocab_size": size, **_data_inputs(experiment)}) is None:
        texts = (message["content"] for example in train for message in example["messages"])
        train_tokenizer(texts, size, folder)
        finish_stage(folder, {})
    return load_tokenizer(str(folder))


def _data_inputs(experiment: CacheExperiment) -> dict[str, Any]:
    """Name the data: the settings that select it, and the sizes of the files that they name."""
    data = experiment.data.model_dump(exclude_none=True)
    locations = [data.get(name) for name in SPLITS]
    locations += [rows.get(name) for rows in data.get("rows", {}).values() for name in SPLITS]
    files = [Path(expand(location)) for location in locations if location]
    inputs = {
        "data": data,
        "seed": experiment.run.seed,
        "file_bytes": {str(path): path.stat().st_size for path in files if path.is_file()},
    }
    if experiment.data.source == "files" and experiment.data.train_examples is not None:
        inputs["train_examples_taken"] = "at random by run.seed"  # a corpus without this key has a file's first rows
    return inputs

"""Other programs' rows as a cache: the same targets, whatever a row says wrongly refused by name, kills survived."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.build.audit import audit_cache
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.cli.cache import cache as cache_command
from cache_builder.errors import CacheMismatchError, ConfigError, DataError, MissingError
from cache_builder.interchange.axolotl import AxolotlSource
from cache_builder.interchange.check import Reading
from cache_builder.interchange.distillkit import DistillKitSource
from cache_builder.interchange.importing import import_cache
from cache_builder.storage.local import LocalStore
from cache_builder.storage.open import open_store
from tests.cache_builder.cli.test_cache_commands import call
from tests.cache_builder.interchange.test_exporting import assert_equals
from tests.conftest import color_examples
from tests.support import foreign_rows
from tests.support.caches import Teaching, files_of, make_teaching
from tests.support.foreign_rows import EXACT, LEGACY, RECOMMENDED, write_distillkit, write_lines

SEQUENCES = 12
STEP = 1 / 128


class Teacher:
    """A model, its tokenizer, and sequences: `answers` as the corpus has them, `sequences` with most tokens learned."""

    def __init__(self, teaching: Teaching, model: LlamaForCausalLM) -> None:
        self.teaching, self.model, self.tokenizer = teaching, model, teaching.tokenizer
        self.answers = [teaching.corpus.sequence(row) for row in range(SEQUENCES)]
        self.sequences = [(tokens, np.arange(len(tokens)) > 3) for tokens, _ in self.answers]

    def dense(self, sequences: list[tuple[np.ndarray, np.ndarray]] | None = None) -> np.ndarray:
        """Log-probabilities at every position of every sequence, f64 [M, V]."""
        rows = []
        for tokens, completion in sequences or self.sequences:
            logp = foreign_rows.dense_logp(self.model, tokens)
            rows += [logp[token - 1] for token in range(1, len(tokens)) if completion[token]]
        return np.array(rows)

    def distillkit(self, folder: Path, codec: dict[str, Any], **options: Any) -> Path:
        files = options.pop("files", 1)
        rows = foreign_rows.distillkit_rows(self.model, self.sequences, codec, **options)
        return write_distillkit(folder, rows, codec, files)

    def import_distillkit(self, source: Path, cache: Path, **options: Any) -> tuple[Cache, Reading]:
        reading = import_cache(DistillKitSource(source, self.tokenizer, None), str(cache), self.tokenizer, **options)
        return open_cache(str(cache)), reading

    def import_axolotl(self, rows: list[dict[str, Any]], folder: Path, **options: Any) -> tuple[Cache, Reading]:
        folder.mkdir(exist_ok=True)
        ours = {name: options.pop(name) for name in ("tail", "temperature") if name in options}
        source = AxolotlSource(write_lines(folder / "rows.jsonl", rows), self.tokenizer, **options)
        reading = import_cache(source, str(folder / "cache"), self.tokenizer, **ours)
        return open_cache(str(folder / "cache")), reading


@pytest.fixture(scope="module")
def teacher(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., LlamaForCausalLM],
) -> Teacher:
    teaching = make_teaching(tmp_path_factory.mktemp("foreign"), tokenizer, make_model, sequences=SEQUENCES)
    return Teacher(teaching, make_model(seed=3, hidden_size=16, initializer_range=0.3))


def assert_says(cache: Cache, dense_MV: np.ndarray, tokens: np.ndarray, top_k: int, tolerance: float) -> None:
    """The cache's only checkpoint has the dense distribution's top k, the rest of the mass, and gold where it can."""
    targets = cache.read("imported", range(len(cache.corpus)))
    expected = np.argsort(-dense_MV[:, :300], axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(np.sort(targets.ids, axis=1), np.sort(expected, axis=1))
    assert (np.diff(targets.logp, axis=1) <= 0).all()
    np.testing.assert_allclose(targets.logp, np.take_along_axis(dense_MV, targets.ids, 1), rtol=0, atol=tolerance)
    tail = 1 - np.exp(np.take_along_axis(dense_MV, expected, 1)).sum(1)
    np.testing.assert_allclose(np.exp(targets.log_tail), tail, rtol=0, atol=tolerance / 10)
    np.testing.assert_allclose(np.exp(targets.logp).sum(1) + np.exp(targets.log_tail), 1, atol=1e-5)
    inside = (targets.ids == tokens[:, None]).any(1)
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(np.isnan(targets.gold), ~inside)
    gold = dense_MV[np.arange(len(tokens)), tokens]
    np.testing.assert_allclose(targets.gold[inside], gold[inside], rtol=0, atol=tolerance)
    assert np.isnan(targets.entropy).all() and targets.samples.shape[1] == 0


def golds(cache: Cache) -> np.ndarray:
    parts = [tokens[1:][completion[1:]] for tokens, completion in cache.corpus.sequences(range(len(cache.corpus)))]
    return np.concatenate(parts).astype(np.int64)


@pytest.mark.parametrize(
    ("codec", "tolerance"), [({**EXACT, "k": 40, "exact_k": 40}, STEP), ({**RECOMMENDED, "k": 64}, 0.15)]
)
def test_distillkits_rows_become_the_teachers_targets(
    teacher: Teacher, tmp_path: Path, codec: dict[str, Any], tolerance: float
) -> None:
    cache, reading = teacher.import_distillkit(
        teacher.distillkit(tmp_path / "rows", codec, files=3), tmp_path / "cache"
    )
    assert reading.rows == len(cache.corpus) == SEQUENCES
    for (tokens, completion), row in zip(teacher.sequences, range(SEQUENCES), strict=True):
        np.testing.assert_array_equal(cache.corpus.sequence(row)[0], tokens)
        np.testing.assert_array_equal(cache.corpus.sequence(row)[1], completion)
    assert_says(cache, teacher.dense(), golds(cache), codec["k"], tolerance)
    assert not (tmp_path / "cache.import").exists()
    verdict = verify_cache(LocalStore(tmp_path / "cache"))
    assert not (verdict.damaged or verdict.incomplete or verdict.foreign)


def test_without_labels_every_token_but_the_first_is_learned_and_a_capture_pad_is_not(
    teacher: Teacher, tmp_path: Path
) -> None:
    padded = [
        (np.append(tokens, teacher.tokenizer.pad_token_id).astype(np.uint32), np.append(completion, False))
        for tokens, completion in teacher.sequences[:3]
    ]
    rows = foreign_rows.distillkit_rows(teacher.model, padded, EXACT, labels=False)
    rows[0] = {name: values + values[-1:] for name, values in rows[0].items() if name != "input_ids"} | {
        "input_ids": rows[0]["input_ids"]  # packed rows have a target after the last token too
    }
    cache, _ = teacher.import_distillkit(write_distillkit(tmp_path / "rows", rows, EXACT), tmp_path / "cache")
    for row, (tokens, _) in enumerate(padded):
        assert cache.corpus.sequence(row)[1].tolist() == [False] + [True] * (len(tokens) - 2) + [False]
    assert cache.corpus.sequence_positions(0) == len(padded[0][0]) - 2


def test_distillkits_legacy_logits_are_normalised_over_the_stored_tokens(teacher: Teacher, tmp_path: Path) -> None:
    source = teacher.distillkit(tmp_path / "rows", LEGACY)
    cache, reading = teacher.import_distillkit(source, tmp_path / "cache")
    assert reading.tail == "none" and cache.manifest.imported is not None
    targets = cache.read("imported", range(SEQUENCES))
    dense = np.take_along_axis(teacher.dense(), targets.ids, 1)
    expected = dense - np.log(np.exp(dense).sum(1, keepdims=True))
    np.testing.assert_allclose(targets.logp, expected, rtol=0, atol=0.1)
    assert np.isneginf(targets.log_tail).all() and np.isnan(targets.gold).all()
    with pytest.raises(DataError, match=r"row 0, the target of token \d+: its probabilities sum to .* `--tail none`"):
        teacher.import_distillkit(source, tmp_path / "other", tail="complement")


@pytest.mark.parametrize("alignment", ["next", "same"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_axolotls_prepared_rows_become_the_renormalised_top_k_at_temperature_one(
    teacher: Teacher, tmp_path: Path, alignment: Any, temperature: float
) -> None:
    rows = [
        foreign_rows.axolotl_prepared(teacher.model, *sequence, k=40, temperature=temperature, alignment=alignment)
        for sequence in teacher.sequences
    ]
    cache, _ = teacher.import_axolotl(rows, tmp_path, alignment=alignment, temperature=temperature)
    dense_MV = teacher.dense()
    targets = cache.read("imported", range(SEQUENCES))
    logp = np.take_along_axis(dense_MV, targets.ids, 1)
    np.testing.assert_allclose(logp, -np.sort(-dense_MV[:, :300], axis=1)[:, :40], rtol=0, atol=1e-6)
    expected = logp - np.log(np.exp(logp).sum(1, keepdims=True))
    np.testing.assert_allclose(targets.logp, expected, rtol=0, atol=STEP)
    assert np.isneginf(targets.log_tail).all() and np.isnan(cache.losses("imported")).all()
    assert (targets.ids == golds(cache)[:, None]).any() and np.isnan(targets.gold).all()  # not log p, only its share
    other = "same" if alignment == "next" else "next"
    with pytest.raises(
        DataError, match=rf"row 0: `target_mask` has a target at place .* try `--alignment {alignment}`"
    ):
        teacher.import_axolotl(rows, tmp_path / "other", alignment=other)


@pytest.mark.parametrize("shape", ["entries", "numbers", "messages"])
def test_axolotls_raw_rows_keep_the_tail_and_know_every_true_token(
    teacher: Teacher, tmp_path: Path, shape: str
) -> None:
    examples = color_examples(SEQUENCES)
    rows: list[dict[str, Any]] = []
    sequences = teacher.answers if shape == "messages" else teacher.sequences
    for (tokens, completion), example in zip(sequences, examples, strict=True):
        entries = foreign_rows.axolotl_raw(teacher.model, tokens, completion, k=40)
        row: dict[str, Any] = {"id": example["id"], "vllm": entries}
        if shape == "messages":
            row["turns"] = example["messages"]
        else:
            row |= {"input_ids": tokens.tolist(), "labels": np.where(completion, tokens.astype(int), -100).tolist()}
        if shape == "numbers":
            row["vllm"] = [[entry["logprob"] for entry in place] for place in entries]
            row["target_token_ids"] = [[int(entry["token"].split(":")[1]) for entry in place] for place in entries]
        rows.append(row)
    cache, reading = teacher.import_axolotl(
        rows, tmp_path, logprobs_field="vllm", messages_field="turns", chat_template="plain"
    )
    assert reading.top_k == 41 and list(cache.corpus.sample_ids) == [example["id"] for example in examples]
    dense_MV, label_M = teacher.dense(sequences), golds(cache)
    targets = cache.read("imported", range(SEQUENCES))
    used = np.isfinite(targets.logp)
    assert set(used.sum(1)) == ({41} if shape == "messages" else {40, 41})
    np.testing.assert_allclose(
        targets.logp[used], np.take_along_axis(dense_MV, targets.ids, 1)[used], rtol=0, atol=STEP
    )
    np.testing.assert_allclose(targets.gold, dense_MV[np.arange(len(label_M)), label_M], rtol=1e-5, atol=1e-5)
    expected = [
        -targets.gold[a:b].sum() for a, b in np.lib.stride_tricks.sliding_window_view(cache.corpus.position_offsets, 2)
    ]
    np.testing.assert_allclose(cache.losses("imported"), expected, rtol=1e-5)


def test_rows_say_the_same_in_json_lines_and_in_parquet_of_any_list_type(teacher: Teacher, tmp_path: Path) -> None:
    rows = good_rows(teacher)
    lines, _ = teacher.import_axolotl(rows, tmp_path / "lines")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = AxolotlSource(tmp_path / "rows.parquet", teacher.tokenizer)
    import_cache(source, str(tmp_path / "cache"), teacher.tokenizer)
    assert_same_targets(lines, open_cache(str(tmp_path / "cache")))

    packed = teacher.distillkit(tmp_path / "packed", EXACT)
    first, _ = teacher.import_distillkit(packed, tmp_path / "first")
    table = pq.read_table(packed / "data_0.parquet")
    kinds = {
        "compressed_logprobs": pa.large_list(pa.list_(pa.uint8(), 32)),
        "bytepacked_indices": pa.large_list(pa.large_list(pa.int64())),
    }
    for name, kind in kinds.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(table[name].to_pylist(), kind))
    pq.write_table(table, packed / "data_0.parquet")
    assert_same_targets(first, teacher.import_distillkit(packed, tmp_path / "second")[0])


def assert_same_targets(one: Cache, other: Cache) -> None:
    assert one.corpus.fingerprint == other.corpus.fingerprint
    targets = [cache.read("imported", range(len(cache.corpus))) for cache in (one, other)]
    for field in ("ids", "logp", "log_tail", "gold"):
        np.testing.assert_array_equal(*(getattr(each, field) for each in targets))


def test_the_tail_is_never_less_than_what_rounding_hides(teacher: Teacher, tmp_path: Path) -> None:
    """A row whose rounded probabilities sum to one says nothing of a tail below that rounding; zero would claim it."""
    tokens, completion = teacher.sequences[0]
    sure = [[{"token": f"token_id:{tokens[t]}", "logprob": 0.0}] for t in np.flatnonzero(completion)]
    row = {"input_ids": tokens.tolist(), "logprobs": sure}
    cache, _ = teacher.import_axolotl([row], tmp_path)
    np.testing.assert_allclose(cache.read("imported", [0]).log_tail, np.log(2.0**-24), rtol=1e-6)
    codec = {**EXACT, "k": 4, "exact_k": 4, "exact_dtype": "bfloat16"}
    rows = foreign_rows.distillkit_rows(teacher.model, teacher.sequences[:1], codec)
    for place in rows[0]["compressed_logprobs"]:
        place[:] = list(foreign_rows.floats([-1.3828125] * 4, "bfloat16"))  # four times 0.2509: 1.0035 in all
    cache, _ = teacher.import_distillkit(write_distillkit(tmp_path / "rows", rows, codec), tmp_path / "dk")
    rounding = 2.0**-24 + 2.0**-8 * 4 * np.exp(-1.3828125) * 1.3828125
    np.testing.assert_allclose(np.exp(cache.read("imported", [0]).log_tail), rounding / (1.0035 + rounding), rtol=2e-2)


def good_rows(teacher: Teacher) -> list[dict[str, Any]]:
    return [foreign_rows.axolotl_prepared(teacher.model, *sequence, k=3) for sequence in teacher.sequences[:3]]


def first_target(row: dict[str, Any]) -> int:
    return next(j for j, mask in enumerate(row["target_mask"]) if mask[0])


def spoil(row: dict[str, Any], how: str) -> None:
    j = first_target(row)
    changes: dict[str, Callable[[], Any]] = {
        "token beyond": lambda: row["input_ids"].__setitem__(0, 300),
        "target beyond": lambda: row["target_token_ids"][j].__setitem__(1, 300),
        "twice": lambda: row["target_token_ids"][j].__setitem__(1, row["target_token_ids"][j][0]),
        "nan": lambda: row["target_logprobs"][j].__setitem__(0, float("nan")),
        "text": lambda: row["target_logprobs"][j].__setitem__(0, "−1"),
        "short row": lambda: row["target_logprobs"][j].pop(),
        "few rows": lambda: row["target_token_ids"].pop(),
        "few targets": lambda: [row[name].pop() for name in ("target_logprobs", "target_token_ids", "target_mask")],
        "labels": lambda: row["labels"].pop(),
        "no list": lambda: row.__setitem__("target_token_ids", 7),
        "no tokens": lambda: row.pop("input_ids"),
        "same id": lambda: row.__setitem__("id", "row-0"),
    }
    changes[how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("token beyond", "`input_ids` has the token 300 at place 0, the tokenizer has 300 tokens"),
        ("target beyond", r"the target of token \d+: its target has the token id 300, the tokenizer has 300 tokens"),
        ("twice", r"its target has the token id \d+ twice"),
        ("nan", "expected log-probabilities, got nan"),
        ("text", "`target_logprobs`: expected numbers, got '−1'"),
        ("short row", r"`target_token_ids`: expected 2 numbers at place \d+, as the log-probabilities have, got 3"),
        ("few rows", r"`target_token_ids`: expected \d+ lists, as the log-probabilities have, got \d+"),
        ("few targets", r"`target_logprobs`: expected \d+ lists, got \d+"),
        ("labels", r"`labels`: expected \d+ numbers, got \d+"),
        ("no list", "`target_token_ids`: expected a list of lists, got int"),
        ("no tokens", "`input_ids`: expected a list of integers, got none"),
        ("same id", "two examples have the id 'row-0'"),
    ],
)
def test_a_malformed_row_is_refused_by_file_row_and_field_and_leaves_nothing(
    teacher: Teacher, tmp_path: Path, how: str, message: str
) -> None:
    rows = good_rows(teacher)
    spoil(rows[2], how)
    with pytest.raises(DataError, match=message) as error:
        teacher.import_axolotl(rows, tmp_path)
    if how != "same id":
        assert str(error.value).startswith(f"{tmp_path / 'rows.jsonl'}, row 2")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_files_that_are_not_what_they_should_be_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    rows = good_rows(teacher)
    path = write_lines(tmp_path / "rows.jsonl", rows)
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"row 3: expected one JSON object per line, got '\{"):
        import_cache(AxolotlSource(path, teacher.tokenizer), str(tmp_path / "cache"), teacher.tokenizer)
    with pytest.raises(DataError, match="expected `target_logprobs` or `lp`, got input_ids"):
        AxolotlSource(
            write_lines(tmp_path / "bare.jsonl", [{"input_ids": [1]}]), teacher.tokenizer, logprobs_field="lp"
        )
    with pytest.raises(MissingError, match="no such file or folder"):
        AxolotlSource(tmp_path / "nowhere", teacher.tokenizer)
    with pytest.raises(DataError, match=r"expected \.parquet files, all of one kind, got rows\.jsonl"):
        DistillKitSource(path, teacher.tokenizer, None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (tmp_path / "compression_config.yaml").write_text(json.dumps(EXACT))
    with pytest.raises(DataError, match=r"rows\.parquet: expected a Parquet file"):
        source = DistillKitSource(tmp_path / "rows.parquet", teacher.tokenizer, None)
        import_cache(source, str(tmp_path / "cache"), teacher.tokenizer)
    assert not list(tmp_path.glob("cache*"))


def test_distillkits_rows_of_another_codec_or_tokenizer_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    other = tmp_path / "other.yaml"
    for changes, message in (
        (
            {"k": 9, "exact_k": 9},
            r"data_0\.parquet, row 0: `compressed_logprobs`, place 0: expected 36 numbers, got 32",
        ),
        ({"d": 70_000}, r"`bytepacked_indices`, place 0: expected 17 numbers, got 9"),
        ({"exact_dtype": "float16", "k": 16, "exact_k": 16}, r"`bytepacked_indices`, place 0: expected 18"),
    ):
        other.write_text(json.dumps({**EXACT, **changes}))
        with pytest.raises(DataError, match=message):
            next(DistillKitSource(source, teacher.tokenizer, other).rows())
    other.write_text(json.dumps(LEGACY))
    with pytest.raises(DataError, match="expected the columns input_ids, packed_indices, exact_values, coeffs, got"):
        next(DistillKitSource(source, teacher.tokenizer, other).rows())
    rows = foreign_rows.distillkit_rows(teacher.model, teacher.sequences[:1], EXACT)
    rows[0]["compressed_logprobs"] = rows[0]["compressed_logprobs"][:-2]
    with pytest.raises(DataError, match=r"expected a target for each of (\d+) tokens, .* in `compressed_logprobs`"):
        next(DistillKitSource(write_distillkit(tmp_path / "short", rows, EXACT), teacher.tokenizer, None).rows())


def test_tokens_and_rows_without_a_target_are_left_out_and_counted(teacher: Teacher, tmp_path: Path) -> None:
    rows = good_rows(teacher)
    rows[0]["target_logprobs"][first_target(rows[0])] = [-1e9] * 3
    rows[1]["target_mask"] = [[0] * 3 for _ in rows[1]["target_mask"]]
    learned = [int(completion[1:].sum()) for _, completion in teacher.sequences[:3]]
    cache, reading = teacher.import_axolotl(rows, tmp_path)
    assert (reading.rows, reading.rows_without_target, reading.left_out) == (3, 1, 1 + learned[1])
    assert cache.manifest.imported is not None and cache.manifest.imported.left_out == 1 + learned[1]
    assert np.diff(cache.corpus.position_offsets).tolist() == [learned[0] - 1, learned[2]]


def test_an_import_is_deterministic_kept_and_never_mixed_with_another(teacher: Teacher, tmp_path: Path) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    first, again = tmp_path / "first", tmp_path / "again"
    teacher.import_distillkit(source, first)
    teacher.import_distillkit(source, again)
    assert files_of(first) == files_of(again)
    teacher.import_distillkit(source, first)
    assert files_of(first) == files_of(again)
    with pytest.raises(CacheMismatchError, match=r"imported\.tail: it has 'complement', now 'none'"):
        teacher.import_distillkit(source, first, tail="none")
    with pytest.raises(CacheMismatchError, match="already holds these rows as checkpoint 'imported'"):
        teacher.import_distillkit(source, first, name="other")
    with pytest.raises(ConfigError, match="--tail complement needs --temperature 1, got 2"):
        teacher.import_distillkit(source, tmp_path / "hot", tail="complement", temperature=2.0)
    with pytest.raises(CacheMismatchError, match="was imported from distillkit rows and nothing can be built into it"):
        teacher.teaching.build(first)
    with pytest.raises(CacheMismatchError, match="do not say which weights gave them"):
        audit_cache(teacher.teaching.experiment(first), teacher.teaching.checkpoints)
    assert files_of(first) == files_of(again)


def test_shards_are_cut_through_sequences(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    whole, _ = teacher.import_distillkit(source, tmp_path / "whole")
    foreign_rows.cut_small(monkeypatch.setattr)
    cut, _ = teacher.import_distillkit(source, tmp_path / "cut")
    assert len(list((tmp_path / "cut/checkpoints/imported/records/c/0").iterdir())) > 1
    for field in ("ids", "logp", "log_tail", "gold"):
        one, other = (getattr(cache.read("imported", range(SEQUENCES)), field) for cache in (whole, cut))
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.losses("imported"), cut.losses("imported"))


def test_an_import_to_an_object_store_has_the_bytes_of_a_local_one(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    teacher.import_distillkit(source, tmp_path / "local")
    import_cache(DistillKitSource(source, teacher.tokenizer, None), "memory://imported", teacher.tokenizer)
    store = open_store("memory://imported")
    assert {key: store.read(key) for key in store.sizes("")} == files_of(tmp_path / "local")
    rows = foreign_rows.distillkit_rows(teacher.model, teacher.sequences[:1], EXACT)
    rows[0]["input_ids"][0] = 999
    other = write_distillkit(tmp_path / "other", rows, EXACT)
    with pytest.raises(DataError, match="the tokenizer has 300 tokens"):
        import_cache(DistillKitSource(other, teacher.tokenizer, None), "memory://other", teacher.tokenizer)
    assert not list(temporary.iterdir())


def test_a_killed_import_continues_to_the_same_bytes(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    foreign_rows.cut_small(monkeypatch.setattr)
    teacher.import_distillkit(source, tmp_path / "whole")
    command = [sys.executable, "-m", "tests.support.foreign_rows", source, teacher.teaching.folder / "tokenizer"]
    result = subprocess.run([*command, tmp_path / "killed"], capture_output=True, text=True, check=True)
    assert int(result.stdout) > 3
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert not (tmp_path / "killed.import").exists()


def test_the_commands_say_what_an_imported_cache_lacks(teacher: Teacher, tmp_path: Path) -> None:
    source = teacher.distillkit(tmp_path / "rows", EXACT)
    options = ("--format", "distillkit", "--tokenizer", teacher.teaching.folder / "tokenizer")
    printed = call("import", source, tmp_path / "cache", *options)
    assert f"complete, {SEQUENCES} sequences, top 8, tail: complement; 0 rows and 0 tokens" in printed
    facts = json.loads(call("info", tmp_path / "cache", "--json"))
    assert facts["version"] == 2 and facts["imported"]["format"] == "distillkit"
    row = facts["checkpoints"][0]
    cache = open_cache(str(tmp_path / "cache"))
    assert row["loss"] is None and row["sequences_without_loss"] == np.isnan(cache.losses("imported")).sum() > 0
    assert row["retained_mass"]["mean"] < 1 and row["weights_fingerprint"].startswith("imported:")
    text = call("info", tmp_path / "cache")
    assert "imported from distillkit rows: tail one minus the stored tokens' mass; no entropy" in text
    assert "all as committed" in call("verify", tmp_path / "cache")
    call("import", source, tmp_path / "bare", *options, "--tail", "none", "--name", "bare")
    assert json.loads(call("info", tmp_path / "bare", "--json"))["checkpoints"][0]["retained_mass"] is None
    assert "tail not known" in call("info", tmp_path / "bare")
    assert {"import", "export"} <= set(cache_command.commands)
    assert f"{SEQUENCES} sequences" in call("export", tmp_path / "bare", tmp_path / "bare.parquet")
    assert_equals(
        pq.ParquetFile(tmp_path / "bare.parquet").read().to_pylist(), open_cache(str(tmp_path / "bare")), "bare"
    )

"""Other programs' rows become the targets that their teacher gave."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_builder.cache.reader import Cache, open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.errors import DataError
from cache_builder.interchange.axolotl import AxolotlSource
from cache_builder.interchange.importing import import_cache
from cache_builder.storage.local import LocalStore
from tests.support import foreign_rows
from tests.support.foreign_rows import EXACT, LEGACY, RECOMMENDED, write_distillkit
from tests.support.foreign_teacher import SEQUENCES, STEP, Teacher, assert_same_targets, first_target, golds, good_rows
from tests.support.toys import color_examples


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


def test_tokens_and_rows_without_a_target_are_left_out_and_counted(teacher: Teacher, tmp_path: Path) -> None:
    rows = good_rows(teacher)
    rows[0]["target_logprobs"][first_target(rows[0])] = [-1e9] * 3
    rows[1]["target_mask"] = [[0] * 3 for _ in rows[1]["target_mask"]]
    learned = [int(completion[1:].sum()) for _, completion in teacher.sequences[:3]]
    cache, reading = teacher.import_axolotl(rows, tmp_path)
    assert (reading.rows, reading.rows_without_target, reading.left_out) == (3, 1, 1 + learned[1])
    assert cache.manifest.imported is not None and cache.manifest.imported.left_out == 1 + learned[1]
    assert np.diff(cache.corpus.position_offsets).tolist() == [learned[0] - 1, learned[2]]

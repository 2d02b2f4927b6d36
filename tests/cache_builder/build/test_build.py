import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.config import TextConfig
from cache_builder.data.tokenising import build_corpus
from cache_builder.errors import (
    CacheBusyError,
    CacheDamagedError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheWriteError,
    ConfigError,
    MissingError,
    ModelError,
)
from cache_builder.storage.local import LocalStore
from cache_builder.targets.blocks import block_edges
from tests.conftest import color_examples
from tests.support.caches import Teaching, files_of
from tests.support.paths import ROOT

HOLD = """
import sys, time
from pathlib import Path
from cache_builder.storage.local import LocalStore
with LocalStore(Path(sys.argv[1])).lock_part((int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    time.sleep(60)
"""


SEQUENCES = 120
"""Of the teaching."""


def load(teaching: Teaching, name: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(teaching.folder / name).eval()


@torch.no_grad()
def live_logp(model: LlamaForCausalLM, tokens: np.ndarray, completion: np.ndarray, vocab_size: int) -> np.ndarray:
    """The full log-probabilities [M, V] at a sequence's positions, by the plain road."""
    logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :, :vocab_size]
    return logits[:-1][torch.from_numpy(completion[1:].copy())].log_softmax(1).numpy()


def test_every_target_is_what_the_checkpoint_says_of_its_sequence(teaching: Teaching, built: Path) -> None:
    cache = open_cache(str(built))
    assert cache.checkpoints == ("step-1", "step-2")
    assert teaching.corpus.n_positions > 3 * 63  # several shards, and sequences that straddle two
    for name in cache.checkpoints:
        model = load(teaching, name)
        for row in range(0, len(cache.corpus), 2):
            tokens, completion = teaching.corpus.sequence(row)
            logp = live_logp(model, tokens, completion, 300)
            targets = cache.read(name, [row])
            np.testing.assert_allclose(np.take_along_axis(logp, targets.ids, 1), targets.logp, atol=1 / 256)
            gold = logp[np.arange(len(logp)), tokens[1:][completion[1:]]]
            np.testing.assert_allclose(targets.gold, gold, atol=1e-5)
            np.testing.assert_allclose(targets.entropy, -(np.exp(logp) * logp).sum(1), atol=1e-5)
            tail = np.log1p(-np.exp(np.take_along_axis(logp, targets.ids, 1)).sum(1))
            np.testing.assert_allclose(targets.log_tail, tail, atol=1 / 256)
            assert not (targets.samples[:, :, None] == targets.ids[:, None]).any()


def test_a_cache_with_blocks_is_of_version_3_and_holds_what_the_checkpoint_says_of_each(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    assert teaching.build(tmp_path / "cache", tail_blocks=5, tail_steps_per_nat=8)
    cache, plain = open_cache(str(tmp_path / "cache")), open_cache(str(built))
    edges = block_edges(5, 300)
    assert (cache.manifest.version, plain.manifest.version) == (3, 1) and cache.manifest.targets.edges == edges
    assert not verify_cache(LocalStore(tmp_path / "cache")).damaged
    model = load(teaching, "step-2")
    for row in range(0, len(cache.corpus), 3):
        tail = np.exp(live_logp(model, *teaching.corpus.sequence(row), 300))
        targets = cache.read("step-2", [row])
        np.put_along_axis(tail, targets.ids, 0.0, 1)
        mass = np.stack([tail[:, start:end].sum(1) for start, end in pairwise(edges)], axis=1)
        np.testing.assert_allclose(targets.log_blocks, np.log(mass), atol=1 / 8)
        share = tail / tail.sum(1, keepdims=True)
        np.testing.assert_allclose(targets.log_collision[:, 0], np.log((share**2).sum(1)), atol=0.04)
        for field in ("ids", "logp", "samples", "log_tail", "gold", "entropy"):
            np.testing.assert_array_equal(getattr(targets, field), getattr(plain.read("step-2", [row]), field))


def test_more_blocks_than_tokens_are_refused(teaching: Teaching, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.tail_blocks is 301, but the tokenizer has only 300 tokens"):
        teaching.build(tmp_path / "cache", tail_blocks=301)
    assert not (tmp_path / "cache").exists()


def test_losses_are_the_summed_gold_of_every_sequence_also_across_shards(teaching: Teaching, built: Path) -> None:
    cache = open_cache(str(built))
    for name in cache.checkpoints:
        expected = [-cache.read(name, [row]).gold.astype(np.float64).sum() for row in range(len(cache.corpus))]
        np.testing.assert_allclose(cache.losses(name), expected, rtol=1e-12)
        model, held_out = load(teaching, name), teaching.held_out
        total = 0.0
        for row in range(len(held_out)):
            tokens, completion = held_out.sequence(row)
            logp = live_logp(model, tokens, completion, 300)
            total -= logp[np.arange(len(logp)), tokens[1:][completion[1:]]].sum()
        assert cache.held_out(name) == pytest.approx(total / held_out.n_positions, rel=1e-5)


def test_the_probe_compares_all_checkpoints_on_the_anchors_top_tokens_and_the_gold(
    teaching: Teaching, built: Path
) -> None:
    cache = open_cache(str(built))
    ids, at = cache.probe_ids, 0
    assert len(cache.probe_rows) == 6
    anchor = load(teaching, "step-2")
    for row in cache.probe_rows:
        tokens, completion = cache.corpus.sequence(int(row))
        count = cache.corpus.sequence_positions(int(row))
        here = slice(at, at + count)
        top = np.argsort(-live_logp(anchor, tokens, completion, 300), axis=1, kind="stable")[:, :7]
        assert all(set(top[m]) <= set(ids[here][m]) for m in range(count))
        assert (ids[here] == tokens[1:][completion[1:]][:, None]).any(1).all()
        for name in cache.checkpoints:
            logp = live_logp(load(teaching, name), tokens, completion, 300)
            shared = np.take_along_axis(logp, ids[here], 1)
            np.testing.assert_allclose(cache.probe_logp(name)[here], shared, atol=1 / 256)
            rest = np.log1p(-np.exp(shared).sum(1))
            np.testing.assert_allclose(cache.probe_log_tail(name)[here], rest, atol=1 / 256)
        at += count
    assert at == len(ids)


def test_building_twice_gives_the_same_bytes_and_changes_none(teaching: Teaching, built: Path, tmp_path: Path) -> None:
    assert teaching.build(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(built)
    written = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert teaching.build(built)
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*") if path != built} == {
        path: time_ns for path, time_ns in written.items() if path != built
    }


@pytest.mark.parametrize("order", [[(1, 2), (0, 2)], [(2, 3), (1, 2), (0, 3), (1, 3)]])
def test_parts_of_any_number_in_any_order_give_the_same_bytes(
    teaching: Teaching, built: Path, tmp_path: Path, order: list[tuple[int, int]]
) -> None:
    complete = [teaching.build(tmp_path / "cache", part=part) for part in order]
    assert complete == [False] * (len(order) - 1) + [True]
    assert files_of(tmp_path / "cache") == files_of(built)


def test_builds_in_parallel_or_killed_many_times_end_with_the_bytes_of_an_uninterrupted_one(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    scenarios = ["parts:3", "instant:1", "instant:2", "event:3", "event:38", "event:70"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.builders", teaching.folder, tmp_path, *scenarios],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    killed = [int(line) for line in done.stdout.split()]
    assert sum(killed) >= 20, killed
    for scenario in scenarios:
        assert files_of(tmp_path / scenario) == files_of(built), scenario


def test_a_killed_build_never_opens_as_complete_and_says_what_to_do(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert not teaching.build(cache, part=(0, 2))
    opened = open_cache(str(cache))
    assert opened.checkpoints == ("step-1",)
    with pytest.raises(CacheIncompleteError, match=r"'step-2'; complete are: step-1; run `footsteps cache build"):
        opened.read("step-2", [0])
    assert verify_cache(LocalStore(cache)).damaged == {}


def test_two_builders_at_once_the_second_is_told_who_holds_the_cache(teaching: Teaching, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, cache, "0", "1"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CacheBusyError, match=f"process {holder.pid}, part 0/1"):
            teaching.build(cache)
        with pytest.raises(CacheBusyError, match="same n"):
            teaching.build(cache, part=(1, 2))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert teaching.build(cache)  # a dead holder holds nothing
    assert not (cache / ".locks").exists()


def test_different_parts_are_held_at_the_same_time(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "cache")
    with store.lock_part((0, 2)), LocalStore(tmp_path / "cache").lock_part((1, 2)), store.exclusive():
        pass
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_one_clear_message_and_the_build_continues(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(CacheWriteError, match="no space is left on the device; what is committed is safe"):
            teaching.build(disk / "cache")
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert teaching.build(disk / "cache")
        assert files_of(disk / "cache") == files_of(built)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_failing_write_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    store = LocalStore(tmp_path)
    store.commit("a", b"before")
    monkeypatch.setattr("cache_builder.atomic.os.fsync", failing_fsync)
    with pytest.raises(CacheWriteError, match="no space is left"):
        store.commit("a", b"after")
    assert files_of(tmp_path) == {"a": b"before"}


def test_nan_logits_stop_the_build_and_name_the_sequence_and_a_mended_teacher_continues(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(teaching.folder, tmp_path / "teaching")
    model = load(teaching, "step-1")
    used = teaching.corpus.sequence(77)[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[int(used[3])] = torch.nan
    model.save_pretrained(broken / "step-1")
    with pytest.raises(ModelError, match=r"checkpoint 'step-1' gives NaN or infinite logits on sequence 'color-\d+'"):
        Teaching(broken).build(tmp_path / "cache")
    assert "step-1" not in open_cache(str(tmp_path / "cache")).checkpoints
    with pytest.raises(CacheMismatchError, match="weights_fingerprint"):
        teaching.build(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "checkpoints" / "step-1")
    assert teaching.build(tmp_path / "cache")
    assert files_of(tmp_path / "cache") == files_of(built)


def test_a_checkpoint_added_on_another_day_leaves_the_first_ones_bytes_alone(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert teaching.build(cache, only="step-2")
    assert open_cache(str(cache)).checkpoints == ("step-2",)
    before = {key: data for key, data in files_of(cache).items() if "step-2" in key}
    assert teaching.build(cache)
    assert {key: data for key, data in files_of(cache).items() if "step-2" in key} == before
    assert files_of(cache) == files_of(built)
    with pytest.raises(MissingError, match=r"'step-9': there is none of that name; there are: step-1, step-2"):
        teaching.build(cache, only="step-9")


@pytest.mark.parametrize(
    "file",
    [
        "checkpoints/step-1/records/c/0/1",
        "checkpoints/step-1/records/zarr.json",
        "checkpoints/step-2/probe_logp/c/0/0",
        "checkpoints/step-2/loss/c/0",
        "checkpoints/zarr.json",
        "corpus/tokens/c/0",
        "probe/ids/c/0/0",
    ],
)
def test_repair_builds_what_is_damaged_again_and_nothing_else(
    teaching: Teaching, built: Path, tmp_path: Path, file: str
) -> None:
    cache = Path(shutil.copytree(built, tmp_path / "cache"))
    untouched = [path for path in cache.rglob("records/c/0/*") if path != cache / file]
    written = [path.stat().st_mtime_ns for path in untouched]
    (cache / file).write_bytes((cache / file).read_bytes()[:-1])
    with pytest.raises(CacheDamagedError, match=file):
        teaching.build(cache)
    assert teaching.build(cache, repair=True)
    assert files_of(cache) == files_of(built)
    assert [path.stat().st_mtime_ns for path in untouched] == written


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"top_k": 5}, "targets.top_k: it has 4, now 5"),
        ({"tail_samples": 3}, "targets.tail_samples"),
        ({"tail_blocks": 3}, "version: it has 1, now 3"),
        ({"shard_positions": 126}, "layout.shard_positions"),
        ({"probe_sequences": 7}, "probe.sequences"),
    ],
)
def test_options_that_change_the_result_are_refused_by_name(
    teaching: Teaching, built: Path, changes: dict[str, int], field: str
) -> None:
    with pytest.raises(CacheMismatchError, match=field):
        teaching.build(built, **changes)


def test_another_corpus_tokenizer_template_or_teacher_is_refused_by_name(
    teaching: Teaching, built: Path, tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    experiment, tokenizer = teaching.experiment(built), teaching.tokenizer
    corpus, held_out, checkpoints = teaching.corpus, teaching.held_out, teaching.checkpoints
    other = build_corpus(
        color_examples(119),
        tokenizer,
        tmp_path / "other",
        text=TextConfig(chat_template="plain", max_length=64),
        inputs={},
    )
    with pytest.raises(CacheMismatchError, match=r"corpus\.fingerprint"):
        build_cache(experiment, other, tokenizer, checkpoints, held_out)
    with pytest.raises(CacheMismatchError, match=r"held_out\.fingerprint"):
        build_cache(experiment, corpus, tokenizer, checkpoints, other)
    templated = experiment.model_copy(update={"text": experiment.text.model_copy(update={"chat_template": "{{ x }}"})})
    with pytest.raises(CacheMismatchError, match="chat_template_fingerprint"):
        build_cache(templated, corpus, tokenizer, checkpoints, held_out)
    tokenizer.add_tokens(["unheard"])
    with pytest.raises(
        CacheMismatchError, match=r"tokenizer\.fingerprint[^\n]*\n  tokenizer\.size: it has 300, now 301"
    ):
        build_cache(experiment, corpus, tokenizer, checkpoints, held_out)
    make_model(seed=9, hidden_size=16).save_pretrained(tmp_path / "step-1")
    with pytest.raises(CacheMismatchError, match="checkpoint 'step-1'"):
        build_cache(
            experiment, corpus, teaching.tokenizer, [("step-1", str(tmp_path / "step-1")), checkpoints[1]], held_out
        )


def test_a_vocabulary_below_an_id_of_the_corpus_is_refused(teaching: Teaching, tmp_path: Path) -> None:
    corpus = teaching.corpus
    corpus.tokens = np.where(np.arange(len(corpus.tokens)) == 5, 300, corpus.tokens).astype("<u4")
    with pytest.raises(CacheMismatchError, match="token id 300, the tokenizer only 300 tokens"):
        build_cache(teaching.experiment(tmp_path / "cache"), corpus, teaching.tokenizer, teaching.checkpoints)


def test_a_folder_that_is_no_cache_is_left_alone(teaching: Teaching, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(CacheMismatchError, match=re.escape("not empty (it holds 'thesis.tex')")):
        teaching.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_teachers_own_list_is_read_and_its_absence_names_the_command(teaching: Teaching, tmp_path: Path) -> None:
    experiment = teaching.experiment(tmp_path / "cache")
    assert teacher_checkpoints(experiment) == teaching.checkpoints
    own = experiment.model_copy(
        update={
            "run": experiment.run.model_copy(update={"output_dir": str(tmp_path)}),
            "teacher": experiment.teacher.model_copy(update={"checkpoints": 4}),
        }
    )
    with pytest.raises(MissingError, match="run `footsteps sft CONFIG teacher` first"):
        teacher_checkpoints(own)
    (tmp_path / "teacher" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "teacher" / "checkpoints.json").write_text(
        '{"checkpoints": [{"name": "checkpoint-5", "path": "checkpoint-5", "step": 5}]}'
    )
    assert teacher_checkpoints(own) == [("checkpoint-5", str(tmp_path / "teacher" / "checkpoint-5"))]
    twice = experiment.teacher.model_copy(update={"checkpoints": ["a/x", "b/x"]})
    with pytest.raises(CacheMismatchError, match="'x' names two checkpoints"):
        teacher_checkpoints(experiment.model_copy(update={"teacher": twice}))

"""Builds that are killed, crowded, out of disk or wrong end with the bytes of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.capture.teacher import Teacher
from cache_builder.errors import (
    CacheBusyError,
    CacheDamagedError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheWriteError,
    ModelError,
)
from cache_builder.storage.local import LocalStore
from tests.support.caches import Teaching, files_of
from tests.support.paths import ROOT

SEQUENCES = 120
"""Of the teaching."""


HOLD = """
import sys, time
from pathlib import Path
from cache_builder.storage.local import LocalStore
with LocalStore(Path(sys.argv[1])).lock_part((int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    time.sleep(60)
"""


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


def test_a_checkpoint_is_continued_in_the_batches_it_was_begun_with_unless_others_are_asked_for(
    teaching: Teaching, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    note = cache / "checkpoints" / "step-2" / "ledger" / "batches.json"
    assert not teaching.build(cache, only="step-2", part=(0, 3), batch_tokens=96)
    assert b'"batch_tokens": 96' in note.read_bytes()
    assert not teaching.build(cache, only="step-2", part=(1, 3), batch_tokens=None)
    assert b'"batch_tokens": 96' in note.read_bytes()

    def load(**options: int | None) -> Teacher:
        return Teacher(
            teaching.experiment(cache, **options), "step-2", str(teaching.folder / "step-2"), teaching.tokenizer, ""
        )

    teacher = load(batch_tokens=None)
    assert (teacher.batching.tokens, teacher.agree_on_batches(96), teacher.batching.tokens) == (2048, 96, 96)
    assert load(batch_tokens=80).agree_on_batches(96) == 80
    note.write_bytes(b"damaged")
    assert teaching.build(cache, only="step-2", batch_tokens=80)
    assert not note.parent.exists()


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
    model = LlamaForCausalLM.from_pretrained(teaching.folder / "step-1").eval()
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

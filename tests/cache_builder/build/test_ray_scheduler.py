"""Building on a real Ray instance of several processes: the same bytes, whoever is killed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaForCausalLM

from cache_builder.build.build import Build, build_cache
from cache_builder.build.ray_actor import Actor
from cache_builder.build.ray_scheduler import RayOptions, ray_scheduler
from cache_builder.build.work_units import Work
from cache_builder.build.worker import Worker
from cache_builder.cli.cache import cache as cache_command
from cache_builder.config import save_experiment
from cache_builder.errors import ConfigError
from tests.support.caches import Teaching, files_of
from tests.support.paths import ROOT

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: the ray extra")


SEQUENCES = 600
"""Of the teaching."""


DRIVER = """
import sys
from pathlib import Path
from cache_builder.build.build import build_cache
from cache_builder.errors import UserError
from cache_builder.build.ray_scheduler import RayOptions, ray_scheduler
from tests.support.caches import Teaching
from trainer.config import Experiment
if __name__ == "__main__":
    actors, *folders = sys.argv[1:]
    failed = 0
    for folder, cache in zip(folders[::2], folders[1::2]):
        teaching = Teaching(Path(folder))
        settings = teaching.experiment(cache).model_dump(exclude_unset=True)
        experiment = Experiment.model_validate({**settings, "student": {"model": folder}})  # as the command reads it
        scheduler = ray_scheduler(RayOptions(actors=int(actors)))
        inputs = experiment, teaching.corpus, teaching.tokenizer, teaching.checkpoints, teaching.held_out
        try:
            assert build_cache(*inputs, scheduler=scheduler)
        except UserError as error:
            print(type(error).__name__, error, flush=True)
            failed = 3
    sys.exit(failed)
"""


@contextmanager
def driver(actors: int, *folders: Path) -> Iterator[subprocess.Popen[str]]:
    """Build (teaching, cache) after (teaching, cache), each on a Ray instance of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", DRIVER, str(actors), *folders],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_ledger(cache: Path, entries: int, process: subprocess.Popen[str]) -> dict[Path, int]:
    """Wait until so many shards are committed; return when the file of each was written."""
    until = time.monotonic() + 500  # Ray starts slowly where others compute
    while True:
        ledger = [entry for entry in cache.glob("checkpoints/*/ledger/*.json") if entry.stem.isdigit()]
        if len(ledger) >= entries:
            shards = [entry.parents[1] / "records" / "c" / "0" / entry.stem for entry in ledger]
            return {shard: shard.stat().st_mtime_ns for shard in shards}
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no shard was committed in time"
        time.sleep(0.002)


def processes_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(driver.pid).children(recursive=True)


def is_alive(process: psutil.Process) -> bool:
    """Nobody may collect an orphan's exit code where process 1 is no init; then it stays behind as a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def actors_among(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.name().startswith("ray::Actor")]


@pytest.mark.ray
@needs_ray
def test_an_actor_killed_in_the_middle_is_replaced_and_the_bytes_are_those_of_a_local_build(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with driver(2, teaching.folder, cache) as process:
        committed = wait_for_ledger(cache, 3, process)
        instance = processes_of(process)
        actors = actors_among(instance)
        actors[0].send_signal(signal.SIGKILL)
        assert not list(cache.glob("checkpoints/*/loss"))  # it was the middle
        heard = [
            connection.laddr.ip
            for member in instance
            if is_alive(member)
            for connection in member.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "2 checkpoints on 2 actors: 2,400 positions" in errors
    assert files_of(cache) == files_of(built)
    notes = list((teaching.folder / "build").glob("*/*.json"))
    assert len({note.stem.rpartition("-")[2] for note in notes} - {str(os.getpid())}) >= 2  # processes that built
    assert {shard: shard.stat().st_mtime_ns for shard in committed} == committed
    assert heard
    assert {ip.removeprefix("::ffff:") for ip in heard} == {"127.0.0.1"}
    assert not any(is_alive(member) for member in instance)


@pytest.mark.ray
@needs_ray
def test_after_a_killed_driver_the_build_continues_at_once_and_a_bad_teacher_is_named_from_afar(
    teaching: Teaching, built: Path, tmp_path: Path
) -> None:
    broken = Teaching(Path(shutil.copytree(teaching.folder, tmp_path / "broken")))
    model = LlamaForCausalLM.from_pretrained(broken.folder / "step-1")
    with torch.no_grad():
        model.model.embed_tokens.weight[int(teaching.corpus.sequence(77)[0][3])] = torch.nan
    model.save_pretrained(broken.folder / "step-1")
    cache = tmp_path / "cache"
    with driver(1, broken.folder, tmp_path / "other", teaching.folder, cache) as process:
        committed = wait_for_ledger(cache, 3, process)
        (orphan,) = actors_among(processes_of(process))
        process.kill()
        process.wait()
        assert not list(cache.glob("checkpoints/*/loss"))
        assert teaching.build(cache)
        output, _ = process.communicate()
    assert re.match(r"ModelError checkpoint 'step-1' gives NaN or infinite logits on sequence 'color-\d+'", output)
    assert files_of(cache) == files_of(built)
    assert {shard: shard.stat().st_mtime_ns for shard in committed} == committed
    assert not is_alive(orphan)


def test_a_shard_that_a_dead_actor_had_committed_is_counted_and_not_written_again(
    teaching: Teaching, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert not teaching.build(cache, part=(0, 4))  # the first half of step-1
    job = Build(
        teaching.experiment(cache), teaching.corpus, teaching.tokenizer, teaching.checkpoints, teaching.held_out
    )
    actor = Actor(0, 1)
    actor.worker = Worker(job.engine, job.store, job.manifest, job.locations, job.corpus, job.held_out)
    writer = actor.worker.writer("step-1")
    there, missing = 0, writer.n_shards - 1
    committed = (cache / "checkpoints/step-1/records/c/0/0").stat().st_mtime_ns
    positions = sum(end - start for start, end in (writer.spec.span(shard) for shard in (there, missing)))
    with job.store.lock_part((0, 1)):
        assert actor.build([], "step-1", Work(0, (there, missing), probe_pass=False))[0] == positions
    assert (cache / "checkpoints/step-1/records/c/0/0").stat().st_mtime_ns == committed
    assert writer.is_shard_done(missing)


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs Ray: `pip install 'footsteps\[ray\]'`"):
        ray_scheduler(RayOptions())
    with pytest.raises(ConfigError, match="driver runs inside the cluster"):
        ray_scheduler(RayOptions(ray_address="ray://head:10001"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheduler", "ray", "--part", "0/2"], "with --scheduler ray, give --actors"),
        (["--actors", "2", "--cpus-per-actor", "1"], "--actors is for --scheduler ray"),
        (["--scheduler", "ray", "--set", "teacher.tensor_parallel=2"], "teacher.tensor_parallel is for torchrun"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(
    arguments: list[str], message: str, teaching: Teaching, tmp_path: Path
) -> None:
    config = tmp_path / "experiment.toml"
    save_experiment(teaching.experiment(tmp_path / "cache"), config)
    with pytest.raises(ConfigError, match=re.escape(message)):
        CliRunner().invoke(cache_command, ["build", str(config), *arguments], catch_exceptions=False)


@pytest.mark.ray
@needs_ray
def test_an_address_where_no_cluster_listens_is_refused_at_once(teaching: Teaching, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        scheduler = ray_scheduler(RayOptions(ray_address=address))
        inputs = teaching.experiment(tmp_path / "cache"), teaching.corpus, teaching.tokenizer, teaching.checkpoints
        with pytest.raises(ConfigError, match=f"no Ray cluster at {address}: .*refused"):
            build_cache(*inputs, scheduler=scheduler)

"""Locks between processes: they end with their holder, and their folder comes and goes without a gap."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cache_builder.errors import CacheBusyError, CacheWriteError
from cache_builder.storage import locks
from cache_builder.storage.holders import is_alive, machine
from cache_builder.storage.locks import LocalLocks, folder_lock
from tests.support.paths import ROOT

WORKER = """
import sys, time
from pathlib import Path
from cache_builder.storage.locks import LocalLocks
with LocalLocks(Path(sys.argv[1])).join_as_worker():
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys
from pathlib import Path
from cache_builder.storage.locks import folder_lock
folder, count = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(300):
    with folder_lock(folder):
        count.write_text(str(int(count.read_text()) + 1))
    try:
        folder.rmdir()
    except OSError:
        pass
"""


def test_a_folders_lock_lets_one_process_in_at_a_time_also_while_the_folder_comes_and_goes(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")
    command = [sys.executable, "-c", COUNT, tmp_path / "locks", count]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0] * 3
    assert count.read_text() == "900"
    assert not (tmp_path / "locks").exists()


def test_every_lock_is_on_a_file_open_for_writing_as_a_network_file_system_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def flock(descriptor: int, flags: int) -> None:
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    held = LocalLocks(tmp_path)
    with folder_lock(tmp_path / "run"), held.lock_part((0, 1)), held.exclusive():
        pass
    assert set(modes) == {os.O_RDWR}
    assert len(modes) >= 5


def test_a_file_system_without_locks_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, flags: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(CacheWriteError, match=r"cannot be locked: Function not implemented.*docs/clusters\.md"):
        LocalLocks(tmp_path).lock_part((0, 1)).__enter__()


def test_the_next_holder_waits_for_the_workers_of_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = LocalLocks(tmp_path)
    with folder_lock(held.folder):
        pass
    worker = subprocess.Popen([sys.executable, "-c", WORKER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "held\n"
    monkeypatch.setattr(locks, "WORKERS_SECONDS", 0.2)
    with pytest.raises(CacheBusyError, match=f"a worker of .*process {worker.pid}"):
        held.lock_part((0, 1)).__enter__()
    monkeypatch.setattr(locks, "WORKERS_SECONDS", 60.0)
    killer = threading.Timer(0.5, worker.send_signal, [signal.SIGKILL])
    killer.start()
    started = time.monotonic()
    with held.lock_part((0, 1)):
        assert time.monotonic() - started > 0.4
    worker.communicate()
    assert list(tmp_path.iterdir()) == []


def test_the_same_host_name_and_process_id_in_another_container_is_another_machine() -> None:
    program = "from cache_builder.storage.holders import machine; print(machine())"
    elsewhere = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    if elsewhere.returncode:
        pytest.skip(f"no spaces of process ids here: {elsewhere.stderr.strip()}")
    assert elsewhere.stdout.strip() != machine()
    here = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert here.stdout.strip() == machine()


def test_a_killed_process_that_nobody_has_waited_for_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert is_alive(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now, as orphans in a container stay
    os.kill(process.pid, 0)
    assert not is_alive(process.pid)
    process.wait()
    assert not is_alive(process.pid)

"""Several hosts on this machine: each has its own network, host name, process ids, home, data and run folder.

    bridge …1 ── host-0 …2 ── host-1 …3 ── …                     where root may make network namespaces;
                                                                 elsewhere: processes with folders of their own
    python -m tests.support.hosts array TEACHING FOLDER CACHE            a job array of three, one of which is killed
    python -m tests.support.hosts torchrun TEACHING FOLDER CACHE         torchrun on two

A host is forked, so that torch is imported once; it dies with the process that forked it.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from tests.support.caches import SMALL, Teaching
from tests.support.paths import ROOT
from tests.support.toys import color_examples

NEW_NET, NEW_NAME, NEW_PIDS = 0x4000_0000, 0x0400_0000, 0x2000_0000
DIE_WITH_PARENT = 1


def prefix() -> str | None:
    """How the names of this test run's networks begin, where it has any."""
    return os.environ.get("FOOTSTEPS_TEST_HOSTS")


def address(number: int) -> str:
    """The address of a host, or of this machine as they see it (−1)."""
    name = prefix()
    if name is None:
        return "127.0.0.1"
    key = int(name.removeprefix("fs")) % 2**14
    return f"10.{64 + key // 256}.{key % 256}.{number + 2}"


@contextmanager
def network(count: int) -> Iterator[bool]:
    """Make the hosts' networks; yield whether that is allowed here."""
    name = os.environ["FOOTSTEPS_TEST_HOSTS"] = f"fs{os.getpid()}"
    commands = [f"link add {name} type bridge", f"addr add {address(-1)}/24 dev {name}", f"link set {name} up"]
    for number in range(count):
        host = f"{name}-{number}"
        commands += [f"netns add {host}", f"link add {host} type veth peer name eth0 netns {host}"]
        commands += [f"link set {host} master {name}", f"link set {host} up"]
        inside = ["link set lo up", f"addr add {address(number)}/24 dev eth0", "link set eth0 up"]
        commands += [f"-n {host} {command}" for command in inside]
    try:
        made = all(ip(command) for command in commands)
        if not made:
            del os.environ["FOOTSTEPS_TEST_HOSTS"]
        yield made
    finally:
        for number in range(count):
            ip(f"netns delete {name}-{number}")
        ip(f"link delete {name}")
        os.environ.pop("FOOTSTEPS_TEST_HOSTS", None)


def ip(arguments: str) -> bool:
    try:
        return subprocess.run(["ip", *arguments.split()], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def move_to(number: int) -> None:
    """Make this process a host, but for its process ids, which its children have."""
    if prefix() is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/run/netns/{prefix()}-{number}", os.O_RDONLY)
    if libc.setns(descriptor, NEW_NET) or libc.unshare(NEW_NAME | NEW_PIDS):
        raise OSError(ctypes.get_errno(), "this process cannot become a host")
    os.close(descriptor)
    socket.sethostname(f"host-{number}")


def start(number: int, folder: Path, action: Callable[[], int]) -> int:
    """Run `action` on a host, at home in `folder`; return the id of the process to wait for, or to kill."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        move_to(number)
        first = os.fork()
        if first:
            status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
            os._exit(status if status >= 0 else 128 - status)
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        os.environ.update(HOME=str(folder), TMPDIR=str(folder), HF_HOME=str(folder / "hf"))
        os.chdir(folder)
        status = action()
    finally:
        os._exit(status)


def furnish(teaching: Teaching, folder: Path, cache: str) -> None:
    """Give a host its own copy of everything but the cache: data, tokenizer, checkpoints and a config."""
    for name in ("tokenizer", "step-1", "step-2"):
        shutil.copytree(teaching.folder / name, folder / name)
    examples = color_examples(len(teaching.corpus) + 5)
    for name, chosen in (("train", examples[:-5]), ("validation", examples[-5:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in chosen))
    experiment = {
        "run": {"output_dir": "run"},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "text": {"chat_template": "plain", "max_length": 64},
        "tokenizer": {"path": "tokenizer"},
        "teacher": {"model": "step-2", "checkpoints": ["step-1", "step-2"]},
        "student": {"model": "step-1"},
        "cache": {**SMALL, "path": cache},
    }
    (folder / "experiment.toml").write_text(tomli_w.dumps(experiment))


def array(teaching: Teaching, folder: Path, cache: str) -> dict[str, object]:
    """Be refused by a living holder, build, lose a host in the middle, have another do its part."""
    from cache_builder.storage import leases
    from cache_builder.storage.open import open_store
    from trainer.cli import main as footsteps

    leases.RENEW_SECONDS, leases.LEASE_SECONDS = 0.5, 4.0
    store = open_store(cache)

    def build(number: int, part: str) -> int:
        def run() -> int:
            sys.stdout = sys.stderr = (folder / str(number) / "said").open("a", buffering=1)
            try:
                footsteps(["cache", "build", "experiment.toml", "--part", part])
            except SystemExit as leaving:
                return int(leaving.code or 0)
            return 0

        return start(number, folder / str(number), run)

    def hold() -> int:
        with store.lock_part((0, 3)):
            (folder / "held").touch()
            time.sleep(60)
        return 0

    holder = start(0, folder / "0", hold)
    wait_until(lambda: (folder / "held").exists())
    refused = wait_for(build(3, "0/3"))
    os.kill(holder, signal.SIGKILL)
    wait_for(holder)
    builders = [build(number, f"{number}/3") for number in range(3)]
    own = "checkpoints/step-1/ledger/extras.json"  # of part 1/3, whose first checkpoint ends with it
    wait_until(lambda: store.exists(own))
    os.kill(builders[1], signal.SIGKILL)
    replaced = build(3, "1/3")
    return {"refused": refused, "builders": [wait_for(child) for child in (*builders, replaced)]}


def torchrun(teaching: Teaching, folder: Path, cache: str) -> dict[str, object]:
    """Build on two hosts whose processes find each other over the network."""
    from torch.distributed.run import main as run

    port = 20_000 + os.getpid() % 10_000

    def launch(number: int) -> int:
        said = os.open(folder / str(number) / "said", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        options = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}", "--max-restarts=1"]
        options += [f"--master-addr={address(0)}", f"--master-port={port}", "-m", "trainer.cli"]
        os.environ["PYTHONPATH"] = str(ROOT)
        run([*options, "cache", "build", "experiment.toml"])
        return 0

    hosts = [start(number, folder / str(number), lambda number=number: launch(number)) for number in range(2)]
    return {"hosts": [wait_for(host) for host in hosts]}


def main() -> None:
    """Furnish the hosts, run one of the above, and print what came of it."""
    teaching, folder, cache = Teaching(Path(sys.argv[2])), Path(sys.argv[3]), sys.argv[4]
    for number in range(4):
        furnish(teaching, folder / str(number), cache)
    scenario = {"array": array, "torchrun": torchrun}[sys.argv[1]]
    print(json.dumps(scenario(teaching, folder, cache)))


def wait_for(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.01)


if __name__ == "__main__":
    main()

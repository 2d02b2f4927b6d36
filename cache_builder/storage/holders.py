"""What a lock says of who holds it, and whether that process lives; shared by file locks and leases."""

import getpass
import os
import re
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

LOCK_FOLDER = ".locks"
"""Below a store: where its locks lie. No file of a cache is there."""
EXCLUSIVE = "exclusive"
"""The lock for what one builder does for all."""
_PART = re.compile(r"part-([0-9]{1,9})-of-([0-9]{1,9})")


def holder_name(part: tuple[int, int]) -> str:
    """Describe this process to whoever is refused because of it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{user}@{socket.gethostname()}, process {os.getpid()}, part {part[0]}/{part[1]}, since {since}"


def machine() -> str:
    """Name the place within which a process id means a process: hosts, and containers, may share a host name."""
    place = [socket.gethostname()]
    with suppress(OSError):  # not Linux
        place += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(place)


def is_alive(process: int) -> bool:
    """Say whether a process of this machine still runs; one that was killed and that nobody has waited for does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # not Linux, or it has just ended
        return True


def part_of(name: str) -> tuple[int, int] | None:
    """Return the part that a lock's name without its suffix means; None where it means none."""
    match = _PART.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def parts_clash(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Say whether two parts may hold the same unit of work."""
    # Of one n, parts are disjoint; of two, nobody has compared who takes which shard.
    return one == other or one[1] != other[1]


def busy_message(where: str, part: tuple[int, int], holder: str) -> str:
    """Say who holds the cache."""
    return (
        f"cache {where}: part {part[0]}/{part[1]} cannot be built now, because another builder is at work: {holder}; "
        "wait for it or stop it (to share the work, give every builder its own --part i/n of the same n)"
    )

"""Build on a Ray cluster: actors with one checkpoint each in memory, and a driver that deals out the units.

    driver   holds the cache ─▶ probe ─▶ the units of every checkpoint, dealt one by one ─▶ a bar ─▶ finish each one
    actor    arrive ─▶ a unit: load its checkpoint unless it is in memory, capture, commit ─▶ the next unit ─▶ …

Ray starts an actor again where it died, on another host if need be, and repeats the unit that it was at; so a death
costs the shard in flight and a loading. Hosts share the store and the checkpoints, nothing else.
"""

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from cache_builder.build.build import Build, OpenScheduler, Scheduler
from cache_builder.build.costs import write_cost
from cache_builder.build.progress import BuildProgress
from cache_builder.build.ray_actor import Actor, Job
from cache_builder.build.work_units import Work, choose_next, units_of
from cache_builder.errors import ConfigError, UserError, WorkerLostError

RETRIES = 3
"""How often a unit is repeated because its actor died."""
PRIVATE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without it, Ray listens on the loopback interface alone
    "RAY_AUTH_MODE": "token",
}
"""Environment of an instance that is started for one build."""


@dataclass(frozen=True)
class RayOptions:
    """How to use a cluster."""

    ray_address: str | None = None
    """host:port, or auto; without one, RAY_ADDRESS, or else an instance of its own on this machine."""
    actors: int | None = None
    """As many as there is room for, unless given."""
    gpus_per_actor: float | None = None
    """One, unless given, where the cluster has GPUs."""
    cpus_per_actor: float = 1.0
    """Also the threads of an actor, unless OMP_NUM_THREADS says otherwise."""


def ray_scheduler(options: RayOptions) -> OpenScheduler:
    """Return what opens the scheduler for a build.

    Raises:
        ConfigError: Ray is not installed, or the address is not one that a driver can use.
    """
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    if (address or "").startswith("ray://"):
        raise ConfigError(
            f"Ray address {address!r}: a build's driver runs inside the cluster; give the command on one of its hosts, "
            "or through `ray job submit`, with host:port or auto"
        )
    if address is None:
        os.environ.update({name: value for name, value in PRIVATE.items() if name not in os.environ})
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError("--scheduler ray needs Ray: `pip install 'footsteps[ray]'`") from None
    return partial(_on_ray, options, address)


@contextmanager
def _on_ray(options: RayOptions, address: str | None, build: Build) -> Iterator[Scheduler]:
    import ray

    ours = not ray.is_initialized()
    if ours:
        _check_that_it_answers(address)
        settings: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
        try:
            ray.init(**settings, logging_level=logging.WARNING, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    members: list[Member] = []
    try:
        yield Cluster(ray, build, options, members)
    finally:
        for member in members:
            ray.kill(member.handle)
        if ours:
            ray.shutdown()


def _check_that_it_answers(address: str | None) -> None:
    """Refuse an address where nothing listens at once; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(f"no Ray cluster at {address}: {error}; is its head up, at this port?") from error


@dataclass
class Member:
    """An actor as the driver sees it."""

    handle: Any
    name: str | None = None
    """The checkpoint that it was last at work on."""
    work: Work | None = None
    """The unit that it is at; None where it does something else."""


class Cluster:
    """The scheduler: deals units to actors."""

    def __init__(self, ray: Any, build: Build, options: RayOptions, members: list[Member]) -> None:
        """Deal to the actors that it adds to `members`, for whoever opened the cluster to end them."""
        self.ray, self.job, self.options, self.members = ray, build, options, members
        self.sent = [ray.put(Job.of(build))]
        self.gpus, self.actors = self._room()

    def fix_probe(self, anchor: str) -> None:
        self._hire(1)
        self._receive(self.members[0].handle.fix_probe.remote(self.sent, anchor))
        self.members[0].name = anchor

    def build(self, works: list[Work]) -> None:
        units = [(self.job.name(work), unit) for work in works for unit in units_of(work)]
        unfinished = Counter(name for name, _ in units)
        self._hire(min(self.actors, len(units)))
        running = {member.handle.arrive.remote(): member for member in self.members}
        title = f"{len(works)} checkpoints on {len(self.members)} actors"
        with BuildProgress(self.job.console, title, sum(map(self.job.positions, works))) as progress:
            while unfinished:
                (answered, *_), _ = self.ray.wait(list(running), num_returns=1)
                said, member = self._receive(answered), running.pop(answered)
                if member.work is not None and member.name is not None:
                    positions, path, cost = said
                    progress.advance(positions)
                    write_cost(self.job.experiment.output_dir / path, cost, self.job.console)
                    unfinished[member.name] -= 1
                    member.work = None
                    if not unfinished[member.name]:
                        running[member.handle.finish.remote(self.sent, member.name)] = member
                        continue
                elif member.name is not None and not unfinished[member.name]:
                    del unfinished[member.name]
                if units:
                    others = [other.name for other in running.values()]
                    number = choose_next([name for name, _ in units], member.name, others)
                    member.name, member.work = units.pop(number)
                    running[member.handle.build.remote(self.sent, member.name, member.work)] = member

    def _hire(self, actors: int) -> None:
        options = {"num_cpus": self.options.cpus_per_actor, "num_gpus": self.gpus}
        options |= {"max_restarts": -1, "max_task_retries": RETRIES}
        for index in range(len(self.members), actors):
            handle = self.ray.remote(**options)(Actor).remote(index, self.actors)
            self.members.append(Member(handle))

    def _receive(self, answer: Any) -> Any:
        """Return what an actor answered; what a user can mend is raised as it was there.

        Raises:
            WorkerLostError: the actor has died too often.
        """
        try:
            return self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except self.ray.exceptions.RayError as error:
            raise WorkerLostError(
                f"an actor died {RETRIES + 1} times at the same unit, at last because: {error}\n"
                "What is committed is safe. Actors that need more memory than their host has are killed like this: "
                "have fewer on a host with --actors, --gpus-per-actor or --cpus-per-actor, or lower "
                "cache.batch_tokens, and give the same command again"
            ) from error

    def _room(self) -> tuple[float, int]:
        """Return the GPUs of an actor, and how many actors there are to be."""
        has, cpus = self.ray.cluster_resources(), self.options.cpus_per_actor
        gpus = self.options.gpus_per_actor
        if gpus is None:
            gpus = 1.0 if has.get("GPU") else 0.0
        rooms = [has.get(kind, 0) / needs for kind, needs in (("GPU", gpus), ("CPU", cpus)) if needs]
        actors = self.options.actors or int(min(rooms, default=1))
        if not actors:
            raise ConfigError(
                f"the Ray cluster has {has.get('GPU', 0):g} GPUs and {has.get('CPU', 0):g} CPUs, too few for one actor "
                f"of {gpus:g} and {cpus:g}; change --gpus-per-actor or --cpus-per-actor, or give --actors to wait "
                "until the cluster has grown"
            )
        return gpus, actors

"""Simulated replicas of the readers bench, some hundreds in a process: the real reader, and no workers.

    python -m loadtests.bench.reader_processes URL NAMESPACE NOTES FIRST COUNT DIRECTORY

Each has what a supervisor has between Redis and its workers: store, reader, deliverer, state file, reports. Its
two workers take each state at once. NOTES is a file that these processes and the bench all map: a row for each
replica, a column for each revision, and in it the time of CLOCK_MONOTONIC at which the replica's report of that
revision had been answered by Redis. They are patient: a thousand of them wait for each other on the cores of one
machine, and by the real time-outs would all connect anew, which is what the bench would measure then. Ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from gateway.control import redis_connection, redis_watch
from gateway.control.deliver import Deliverer, WorkersApplied
from gateway.control.events import Events
from gateway.control.operations import Operations
from gateway.control.reader import Reader
from gateway.control.redis_store import RedisStore
from gateway.control.store import Member
from gateway.control.versions import Versions
from gateway.control.weights import WeightsCache
from gateway.node.fetched import Fetched
from gateway.node.flip_times import FlipTimes
from gateway.node.reports import Reports
from gateway.routing.state import EngineOptions, InForce, Pin

REVISIONS = 4096
PATIENCE_S = 60.0
START_S = 0.02
"""Between the starts of two replicas in a process."""
Notes = npt.NDArray[np.int64]


def make_notes(path: Path, replicas: int) -> Notes:
    """A sparse file: revisions that do not come take no room."""
    with path.open("wb") as file:
        file.truncate(replicas * REVISIONS * 8)
    return map_notes(path)


def map_notes(path: Path) -> Notes:
    return np.memmap(path, np.int64, "r+").reshape(-1, REVISIONS)


class NotingStore(RedisStore):
    """Notes when a report was answered: from then on everybody may see that this replica has the revision."""

    def __init__(self, url: str, namespace: str, replica: str, row: Notes) -> None:
        super().__init__(url, namespace, replica)
        self._row = row

    async def report(self, member: Member) -> int:
        applied = await super().report(member)
        if not self._row[member.rev]:
            self._row[member.rev] = time.monotonic_ns()
        return applied


class ReadyVersions:
    """Every version is there."""

    async def fetch(self, pin: Pin, _: object) -> tuple[Pin, None]:
        return pin, None

    async def recall(self, pins: Iterable[Pin]) -> None:
        """Nothing is to be looked for."""

    def paths(self, pins: Iterable[Pin]) -> dict[str, str]:
        return {pin.digest: "/dev/null" for pin in pins}

    def fetched(self, _: str) -> bool:
        return True


class ReadyWorkers:
    """Two, which take each state at once."""

    async def load(self, pin: Pin, options: EngineOptions, path: str) -> None:
        """There is nothing to load."""

    async def apply(self, held: InForce, paths: Mapping[str, str]) -> WorkersApplied:
        return WorkersApplied(ok=2, total=2, errors=[])


class NoWeights:
    async def list(self) -> list[Any]:
        return []


class Replica:
    """One."""

    def __init__(self, url: str, namespace: str, name: str, row: Notes, directory: Path) -> None:
        self._name = name
        self.store = NotingStore(url, namespace, name, row)
        events = Events()
        versions = cast(Versions, ReadyVersions())
        self._deliverer = Deliverer(directory / f"{name}.json", versions, ReadyWorkers(), events)
        operations = Operations(self.store, self._deliverer, versions)
        self._reader = Reader(self.store, self._deliverer, operations, events)
        weights = cast(WeightsCache, NoWeights())
        self._reports = Reports(
            self.store,
            lambda: self._deliverer.held,
            self._member,
            FlipTimes(lambda _: None),
            events,
            weights,
            Fetched(),
            self._reader.troubles,
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for part in (self._deliverer.run(), self._reader.run(), self._reports.run()):
                group.create_task(part)

    def _member(self) -> Member:
        held = self._deliverer.held
        return Member(
            replica=self._name,
            epoch=held.revision.epoch,
            rev=held.revision.rev,
            denies_rev=max((deny.rev for deny in held.denies.values()), default=0),
            deny_n=len(held.denies),
            sha256=held.state.sha256,
            status="ACK",
            workers_ok=2,
            workers_total=2,
        )


def be_patient() -> None:
    redis_connection.CALL_TIMEOUT_S = redis_watch.WATCH_TIMEOUT_S = PATIENCE_S


async def simulate(url: str, namespace: str, notes: Notes, first: int, count: int, directory: Path) -> None:
    replicas = [
        Replica(url, namespace, f"replica-{number:05d}", notes[number], directory)
        for number in range(first, first + count)
    ]
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    async with asyncio.TaskGroup() as group:
        for replica in replicas:
            group.create_task(replica.run())
            # A fleet does not start within one second on the cores of one machine.
            await asyncio.sleep(START_S)
        await ended
        raise SystemExit


def main() -> None:
    be_patient()
    import uvloop

    # What goes wrong shows as connections that are made anew.
    logging.disable()
    url, namespace, path, first, count, directory = sys.argv[1:]
    # As in a supervisor, which runs long: what has come together is looked at no more.
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        work = simulate(url, namespace, map_notes(Path(path)), int(first), int(count), Path(directory))
        try:
            runner.get_loop().run_until_complete(work)
        except SystemExit:
            os._exit(0)  # thousands of tasks and connections that nobody needs any more


if __name__ == "__main__":
    main()

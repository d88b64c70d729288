"""How fast a rollback is: from its signal to the last answer of the denied version.

    python -m loadtests.bench.flip [--flips 200] [--store redis|embedded|both] [--load full|idle|both]
                                   [--workers 1] [--fsync always] [--dry]

Starts a gateway of its own, denies the canary, lifts the deny again, and so on. With Redis the signal is an XADD
to a Valkey server; with the embedded store it is a rollback by the admin API, as there is nothing else to signal by.
The clients that look are a process of their own and ask with keys that the canary answers. Idle, it is one
that asks every half millisecond. Under full load they are eight that ask without a pause, beside wrk with 64
connections; whoever loads gives way to the gateway's processes (nice), as load from another machine would.
The workers have one core; wrk, the clients, Valkey and the supervisor share the other.
Prints the distribution beside that of one request's latency, the floor of what a client can see, and writes
both into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import redis

from loadtests.bench import servers
from loadtests.bench.flip_client import Notes, make_notes, noted
from loadtests.bench.machine import BenchError, Cores, facts, require, two_cores
from loadtests.bench.page import Section, figure, run_section, table
from loadtests.bench.protocols import KEYS, OIP_JSON, keyed, raw_requests
from loadtests.bench.servers import Running
from loadtests.bench.workloads import Workload, tiny
from loadtests.bench.wrk import Script
from tests.servers.redis import RedisServer

SIGNALS = "{turnout:default}:signals"
CANARY = 2
"""The version that is denied, as it is in `turnout-version`."""
STORES = {"redis": "Redis", "embedded": "embedded store"}
TIMEOUT_S = 20.0
_GIVE_WAY = ("nice", "-n", "10")
_SETTLED = 20
"""Answers of another version, for each connection, before a flip counts as done; then it is asked whether it is."""


@dataclass(frozen=True, kw_only=True)
class LoadMode:
    """Who asks meanwhile."""

    name: str
    clients: int
    pause_us: int
    background: int
    """wrk's connections."""


MODES = {
    "idle": LoadMode(name="idle", clients=1, pause_us=500, background=0),
    "full": LoadMode(name="full load", clients=8, pause_us=0, background=64),
}


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One rollback on the monotonic clock: its signal, and when its deny was lifted again."""

    sent_ns: int
    lifted_ns: int


@dataclass(frozen=True, kw_only=True)
class Result:
    mode: LoadMode
    store: str
    flips_ms: npt.NDArray[np.float64]
    requests_ms: npt.NDArray[np.float64]


def flip_times_ms(notes: Notes, flips: Sequence[Flip]) -> npt.NDArray[np.float64]:
    """For each flip, from its signal to the last answer of the canary before the deny was lifted."""
    received, version = notes[:, 1], notes[:, 2]
    denied = np.sort(received[version == CANARY])
    last = [
        denied[np.searchsorted(denied, flip.lifted_ns) - 1]
        if denied.size and denied[0] < flip.lifted_ns
        else 0
        for flip in flips
    ]
    return np.array(
        [max(0.0, (int(end) - flip.sent_ns) / 1e6) for end, flip in zip(last, flips, strict=True)]
    )


class Bench:
    """One gateway with its clients."""

    def __init__(
        self, api: httpx.Client, signal: Callable[[str], object], notes: Notes, mode: LoadMode
    ) -> None:
        """`signal` asks for a rollback of a route."""
        self._api = api
        self._signal = signal
        self._notes = notes
        self._answers = _SETTLED * mode.clients

    def flip(self, route: str) -> Flip:
        """Denies the canary, waits until it is silent and every worker says so, and lifts the deny."""
        self._wait(lambda: self._last(1) == {CANARY}, "an answer of the canary")
        sent_ns = time.monotonic_ns()
        self._signal(route)
        self._wait(lambda: CANARY not in self._last(self._answers), "an end of the canary's answers")
        self._wait(self._is_settled, "every worker's acknowledgement")
        settled_ns = time.monotonic_ns()
        seen = self._seen
        self._wait(lambda: self._seen > seen + self._answers, "more answers")
        self._check_silent(settled_ns)
        lifted_ns = time.monotonic_ns()
        self._api.delete(f"/routes/{route}/denies/{CANARY}").raise_for_status()
        return Flip(sent_ns=sent_ns, lifted_ns=lifted_ns)

    @property
    def _seen(self) -> int:
        return int(self._notes[0, 0])

    def _last(self, count: int) -> set[int]:
        return set(noted(self._notes)[-count:, 2].tolist())

    def _is_settled(self) -> bool:
        members: list[dict[str, Any]] = self._api.get("/status").json()["members"]
        return all(
            member["deny_n"] == 1 and member["workers_ok"] == member["workers_total"] for member in members
        )

    def _check_silent(self, since_ns: int) -> None:
        rows = noted(self._notes)[-self._answers :]
        if bool(((rows[:, 0] > since_ns) & (rows[:, 2] == CANARY)).any()):
            raise BenchError("an answer of the denied version came after the acknowledgement")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise BenchError(f"{what} did not come within {TIMEOUT_S} s")
            # Seldom: what is measured shares its core with whoever looks.
            time.sleep(0.005)


def measure(mode: LoadMode, store: str, flips: int, workers: int, fsync: str, cores: Cores) -> Result:
    with tempfile.TemporaryDirectory(prefix="turnout-flip-") as scratch, ExitStack() as stack:
        directory = Path(scratch)
        model = tiny(directory / "files")
        options: tuple[str, ...] = ()
        if store == "redis":
            valkey = RedisServer("valkey", directory / "valkey")
            valkey.start("--appendfsync", fsync)
            stack.callback(valkey.kill)
            options = ("--redis", valkey.url)
        start = partial(servers.turnout, workers=workers, more=options)
        running = stack.enter_context(start(_made(directory / "turnout"), model, cores))
        notes = make_notes(directory / "notes")
        stack.enter_context(_background(running, model, directory, mode, cores))
        stack.enter_context(_clients(running, model, directory / "notes", mode))
        api = stack.enter_context(httpx.Client(base_url=f"http://{running.admin}/api/v1", timeout=30))
        signal = _xadd(valkey.url) if store == "redis" else partial(_post, api)
        bench = Bench(api, signal, notes, mode)
        print(f"{flips} flips, {STORES[store]}, {mode.name}", flush=True)
        done = [bench.flip(model.name) for _ in range(flips)]
        rows = noted(notes).copy()
    return Result(
        mode=mode,
        store=store,
        flips_ms=flip_times_ms(rows, done),
        requests_ms=(rows[:, 1] - rows[:, 0]) / 1e6,
    )


def _xadd(url: str) -> Callable[[str], object]:
    client = redis.Redis.from_url(url)
    client.ping()  # connected, as whoever watches is
    return lambda route: client.xadd(SIGNALS, {"action": "rollback", "route": route})


def _post(api: httpx.Client, route: str) -> None:
    api.post(f"/routes/{route}/rollback", json={}).raise_for_status()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@contextmanager
def _background(
    running: Running, model: Workload, directory: Path, mode: LoadMode, cores: Cores
) -> Iterator[None]:
    if not mode.background:
        yield
        return
    script = Script(
        directory, "background", raw_requests(OIP_JSON.ask(model.name, model.row), running.address)
    )
    command = script.command(running.address, connections=mode.background, seconds=3600, core=cores.load)
    with subprocess.Popen([*_GIVE_WAY, *command], stdout=subprocess.DEVNULL) as wrk:
        try:
            yield
        finally:
            wrk.kill()


@contextmanager
def _clients(running: Running, model: Workload, notes: Path, mode: LoadMode) -> Iterator[None]:
    command = [
        *(_GIVE_WAY if mode.background else ()),
        sys.executable,
        "-m",
        "loadtests.bench.flip_client",
        running.address,
        str(notes),
    ]
    command += [str(mode.clients), str(mode.pause_us)]
    requests = [request.decode("latin-1") for request in _canarys_requests(running, model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=servers.ROOT) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(requests) + "\n")
        process.stdin.flush()
        try:
            yield
        finally:
            process.stdin.close()


def _canarys_requests(running: Running, model: Workload) -> list[bytes]:
    """Those whose keys the canary answers, so that every answer tells where its traffic goes."""
    ask = OIP_JSON.ask(model.name, model.row)
    found = []
    for number, request in enumerate(raw_requests(ask, running.address)):
        answer = servers.post(running.address, keyed(ask, number))
        if answer.headers["turnout-version"] == str(CANARY):
            found.append(request)
    if not found:
        raise BenchError(f"none of {KEYS} keys leads to the canary: its weight is 10")
    return found


def section(results: Sequence[Result], workers: int) -> Section:
    head = ["ms", "one request, p50", "p99", "signal to last denied answer, p50", "p99", "max", "flips"]
    rows = [
        [
            f"{STORES[result.store]}, {result.mode.name}",
            *(figure(float(np.percentile(result.requests_ms, q))) for q in (50, 99)),
            *(figure(float(np.percentile(result.flips_ms, q))) for q in (50, 99, 100)),
            str(len(result.flips_ms)),
        ]
        for result in results
    ]
    return Section(name="flip", text=f"{facts()}, workers: {workers}.\n\n{table(head, rows)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--store", choices=[*STORES, "both"], default="both")
    parser.add_argument("--load", choices=[*MODES, "both"], default="both")
    parser.add_argument("--workers", type=int, default=1)
    # With "always" the signal itself waits for the disk, and every stall of the disk is in the figure.
    parser.add_argument("--fsync", choices=["everysec", "always"], default="everysec")
    parser.add_argument(
        "--dry", action="store_true", help="the page stays as it is, as it does with one load or store"
    )
    arguments = parser.parse_args()
    modes = list(MODES.values()) if arguments.load == "both" else [MODES[arguments.load]]
    stores = list(STORES) if arguments.store == "both" else [arguments.store]

    def run() -> Section:
        require("wrk")
        cores = two_cores()
        os.sched_setaffinity(0, {cores.load})  # and so the clients and Valkey, which inherit it
        results = [
            measure(mode, store, arguments.flips, arguments.workers, arguments.fsync, cores)
            for store in stores
            for mode in modes
        ]
        return section(results, arguments.workers)

    return run_section(run, dry=arguments.dry or len(modes) * len(stores) < 4)


if __name__ == "__main__":
    sys.exit(main())

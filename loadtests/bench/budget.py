"""Where the time of one request goes, stage by stage, and what the live server spends on it as a whole.

    python -m loadtests.bench.budget [--slices 5] [--seconds 1] [--dry]

Each stage is the gateway's own function on the tiny and the medium request, timed alone: the best of many
repeats, batches of 32. `Pipeline` is the one place that names those functions. Then the whole data plane between
its sockets, and from the live server under 64 connections its CPU time for a request. What the parts do not explain is
in rows of its own. Writes its table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import random
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import uvicorn
import uvloop
from uvicorn.server import ServerState

from gateway.routing.state import EngineOptions, InForce, Pin, Revision, Route, State, Variant
from gateway.serving.explicit import ExplicitVersions, Located
from gateway.serving.inference import Inference
from gateway.serving.live import EngineKey, Live
from gateway.serving.loading import Loader
from gateway.serving.run_threads import RunThreads
from gateway.telemetry.observations import SIZE_BYTES, ObservationWriter
from gateway.wire.bundles import RowForm, row_form
from gateway.wire.fast_lane import FastLane
from gateway.wire.lane import Lane
from gateway.wire.oip_json import Limits, decode_infer
from gateway.wire.plain_heads import PlainHeads
from loadtests.bench.harness import Harness, Measured, add_options, harness
from loadtests.bench.limits import BARE, OURS
from loadtests.bench.machine import facts
from loadtests.bench.page import Section, figure, run_section, table
from loadtests.bench.protocols import OIP_JSON
from loadtests.bench.slices import spread
from loadtests.bench.workloads import Workload

BATCH = 32
"""Requests of one tick: about what 64 connections bring to the variant that has most of the traffic."""
TURNS = 20
"""Of the loop at once: to start and stop it is no part of a request."""
CONNECTIONS = 64
REPEATS = 9
REPEAT_S = 0.1


NEW_HEAD = "more, for a head that was not seen before"
NEW_KEY = "more, for a sticky key that was not seen before"
_encode = msgspec.json.Encoder().encode


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    raise NotImplementedError("a budget asks nothing of the application")


class Pipeline:
    """The data plane of one worker in this process, with two versions behind one route."""

    def __init__(self, workload: Workload, loop: asyncio.AbstractEventLoop) -> None:
        self._name = workload.name
        self._body = OIP_JSON.ask(workload.name, workload.row).body
        self._threads, self._load_threads = RunThreads(1), ThreadPoolExecutor(1)
        self._loop = loop
        self._row = workload.row
        self._live = Live(ObservationWriter(memoryview(mmap.mmap(-1, SIZE_BYTES))))
        loader = Loader(loop, self._load_threads, self._threads)
        explicit = ExplicitVersions(self._live, loader, self._nowhere)
        self._inference = Inference(self._live, explicit)
        pins = [
            Pin(registry="local", model=workload.name, version=str(number), digest=str(number) * 64)
            for number in (1, 2)
        ]
        for pin, file in zip(pins, workload.files, strict=True):
            key = EngineKey(pin.digest, EngineOptions())
            self._live.engines[key] = loop.run_until_complete(loader.load(key, str(file)))
        self._live.swap(_in_force(workload.name, pins))
        self._lane = Lane(self._inference, Limits(), loop)
        self._heads = PlainHeads()
        self._config = uvicorn.Config(
            _no_app, ws="none", lifespan="off", log_config=None, access_log=False, timeout_keep_alive=3600
        )
        self._config.load()
        self._server = ServerState()
        self._server.default_headers = [(b"date", b"Mon, 23 Nov 2026 12:00:00 GMT")]
        self._written: list[bytes] = []
        # One whose requests share a batch as large as the one that the stages are timed with.
        keys = (b"user-%04d" % number for number in range(1000))
        self._key = next(key for key in keys if self._pick(key) == "stable")
        lines = (
            b"POST /v2/models/%s/infer HTTP/1.1" % workload.name.encode(),
            b"Host: 127.0.0.1:8080",
            b"Content-Type: application/json",
            b"turnout-key: %s" % self._key,
            b"Content-Length: %d" % len(self._body),
        )
        self._request = b"\r\n".join((*lines, b"", self._body))
        self._connections = [self._connect() for _ in range(BATCH)]
        self._settle()

    def _pick(self, key: bytes) -> str:
        arm = self._live.snapshot.routes[self._name].entry.pick(key, random.random)
        assert arm is not None
        return arm.variant

    def _settle(self) -> None:
        while len(self._written) < BATCH:
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()

    async def _nowhere(self, route: str, version: str) -> Located:
        raise NotImplementedError("a budget names no versions")

    def stages(self) -> dict[str, float]:
        """Stage → µs a request."""
        served = self._live.snapshot.routes[self._name].arms["stable"]
        form = row_form(served)
        assert form is not None
        engine, end = served.loaded.engine, self._request.index(b"\r\n\r\n")
        row = form.read(self._body)
        assert row is not None
        rows = [row] * BATCH
        batch = {form.name: _together(rows, form)}
        result = engine.run(batch, form.outputs)
        values = result[0].tolist()[0]
        durations = [123_456] * BATCH

        def count() -> None:
            served.observations.ran(BATCH, 1000, 1000, int(time.time() * 1000))
            served.observations.answered_many(durations)

        entry = self._live.snapshot.routes[self._name].entry
        single: dict[str, Callable[[], object]] = {
            "find the head among those seen": lambda: self._lane.known(self._request[:end]),
            "decode the JSON, check it, pack the row": lambda: form.read(self._body),
        }
        shared: dict[str, Callable[[], object]] = {
            f"put {BATCH} rows together": lambda: _together(rows, form),
            f"run, {BATCH} rows at once": lambda: engine.run(batch, form.outputs),
            "take the rows apart": lambda: result[0].tolist(),
        }
        return {
            **{stage: cpu_us(function) for stage, function in single.items()},
            **{stage: cpu_us(function) / BATCH for stage, function in shared.items()},
            "encode the JSON": cpu_us(lambda: b"%s%s}]}" % (form.before, _encode(values))),
            "count": cpu_us(count) / BATCH,
            NEW_HEAD: cpu_us(lambda: self._heads.read(self._request[:end])),
            NEW_KEY: cpu_us(lambda: entry.pick(self._key, random.random)),
        }

    def run_alone_us(self) -> float:
        """One run of one row: what batching saves."""
        served = self._live.snapshot.routes[self._name].arms["stable"]
        inputs, outputs = served.loaded.checker.check(self._name, decode_infer(self._body, None))
        return cpu_us(lambda: served.loaded.engine.run(inputs, outputs))

    def whole_us(self) -> float:
        """From the bytes of connections to the bytes of their answers: everything but the sockets."""
        return cpu_us(self._turns) / (BATCH * TURNS)

    def _turns(self) -> None:
        """All connections ask in one turn of the loop, and again when all are answered."""
        asked = 0

        def ask() -> None:
            nonlocal asked
            if len(self._written) < asked:
                self._loop.call_soon(ask)  # a run is in a thread
            elif asked == BATCH * TURNS:
                self._loop.stop()
            else:
                for connection in self._connections:
                    connection.data_received(self._request)
                asked += BATCH
                self._loop.call_soon(self._loop.call_soon, ask)

        self._written.clear()
        self._loop.call_soon(ask)
        self._loop.run_forever()
        assert len(self._written) == asked, "every request has one answer"

    def _connect(self) -> FastLane:
        made = FastLane(
            self._lane, config=self._config, server_state=self._server, app_state={}, _loop=self._loop
        )
        made.connection_made(_Transport(self._written))
        made.data_received(self._request)  # a connection's first goes by the parser
        return made

    def close(self) -> None:
        self._threads.shutdown()
        self._load_threads.shutdown()


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self, written: list[bytes]) -> None:
        super().__init__()
        self._written = written

    def write(self, data: Any) -> None:
        self._written.append(data)

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def _together(rows: list[bytes], form: RowForm) -> Any:
    return np.frombuffer(b"".join(rows), form.dtype).reshape(len(rows), *form.row)


def cpu_us(function: Callable[[], object]) -> float:
    """CPU time of this process for one call, the best of many: what else the core does is not in it."""
    timer = timeit.Timer(function, timer=time.process_time)
    number, took = timer.autorange()
    number = max(1, int(number * REPEAT_S / took))
    return min(timer.repeat(REPEATS, number)) / number * 1e6


def _in_force(name: str, pins: list[Pin]) -> InForce:
    weights = {"stable": 9000, "canary": 1000}
    variants = {
        variant: Variant(pin=pin, reference=f"local/{name}@{pin.version}", weight_bp=weight)
        for (variant, weight), pin in zip(weights.items(), pins, strict=True)
    }
    route = Route(variants=variants, fallback="stable", salt=name)
    return InForce(revision=Revision(1, 1), state=State(routes={name: route}))


@contextmanager
def _pipeline(workload: Workload) -> Iterator[Pipeline]:
    loop = uvloop.new_event_loop()
    pipeline = Pipeline(workload, loop)
    try:
        yield pipeline
    finally:
        pipeline.close()
        loop.close()


def column(bench: Harness, workload: Workload) -> dict[str, float]:
    """Row → µs a request, the rows that are not timed but computed among them."""
    with _pipeline(workload) as pipeline:
        print(f"{workload.name}: stages", flush=True)
        stages = pipeline.stages()
        new_head, new_key = stages.pop(NEW_HEAD), stages.pop(NEW_KEY)
        whole = pipeline.whole_us()
        alone = pipeline.run_alone_us()
    ours, bare = bench.compare([OURS, BARE], workload, [CONNECTIONS])
    live, floor = _cpu_us(ours), _cpu_us(bare)
    return {
        **stages,
        "the connection's state, the queue, the answer's head (the data plane less its stages)": whole
        - sum(stages.values()),
        "sockets and the event loop (the rest)": live - whole,
        "**live server, CPU time a request**": live,
        "for comparison: a bare protocol with a constant, its parser included": floor,
        "for comparison: a run of one row": alone,
        NEW_HEAD: new_head,
        NEW_KEY: new_key,
    }


def _cpu_us(measured: Measured) -> float:
    return spread([one.cpu_us for one in measured.slices[CONNECTIONS]]).value


def measure(bench: Harness) -> Section:
    columns = [column(bench, bench.workload(name)) for name in ("tiny", "medium")]
    rows = [[stage, *(figure(each[stage]) for each in columns)] for stage in columns[0]]
    text = f"{facts()}.\n\n" + table(["µs a request", "tiny", "medium"], rows)
    return Section(name="budget", text=text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_options(parser, rounds=5)
    arguments = parser.parse_args()

    def section() -> Section:
        with harness(arguments) as bench:
            return measure(bench)

    return run_section(section, dry=arguments.dry)


if __name__ == "__main__":
    sys.exit(main())

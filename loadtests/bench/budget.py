"""Where the time of one request goes, stage by stage, and what the live server spends on it as a whole.

    python -m loadtests.bench.budget [--slices 5] [--seconds 1] [--dry]

Each stage is the gateway's own function on the tiny and the medium request, timed alone: the best of many
repeats, batches of 32. `Pipeline` is the one place that names those functions. Then the whole data plane without
HTTP, and from the live server under 64 connections its CPU time for a request. What the parts do not explain is
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

import numpy as np
import uvloop

from gateway.routing.state import EngineOptions, InForce, Pin, Revision, Route, State, Variant
from gateway.serving.answer import Answer
from gateway.serving.explicit import ExplicitVersions, Located
from gateway.serving.inference import Inference
from gateway.serving.live import EngineKey, Live
from gateway.serving.loading import Loader
from gateway.serving.run_threads import RunThreads
from gateway.telemetry.observations import SIZE_BYTES, ObservationWriter
from gateway.wire.answers import encode_single_output
from gateway.wire.oip_json import decode_infer
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
        # One whose requests share a batch as large as the one that the stages are timed with.
        keys = (b"user-%04d" % number for number in range(1000))
        self._key = next(key for key in keys if self._pick(key) == "stable")

    def _pick(self, key: bytes) -> str:
        arm = self._live.snapshot.routes[self._name].entry.pick(key, random.random)
        assert arm is not None
        return arm.variant

    async def _nowhere(self, route: str, version: str) -> Located:
        raise NotImplementedError("a budget names no versions")

    def stages(self) -> dict[str, float]:
        """Stage → µs a request."""
        route = self._live.snapshot.routes[self._name]
        served = route.arms["stable"]
        request = decode_infer(self._body, None)
        (answer,) = self.answers(1, finish=False)
        inputs, outputs = served.loaded.checker.check(self._name, request)
        engine, (array,) = served.loaded.engine, inputs.values()
        (name,) = inputs
        rows = [array] * BATCH
        batch = {name: np.concatenate(rows)}
        result = engine.run(batch, outputs)

        def split() -> None:
            for row in range(BATCH):
                [each[row : row + 1] for each in result]

        def count() -> None:
            served.observations.ran(BATCH, 1000, 1000, int(time.time() * 1000))
            for _ in range(BATCH):
                served.observations.answered(200, 123_456)

        single = {
            "decode the JSON": lambda: decode_infer(self._body, None),
            "pick a variant by the sticky key": lambda: route.entry.pick(self._key, random.random),
            "check names, datatypes, shapes": lambda: served.loaded.checker.check(self._name, request),
        }
        shared: dict[str, Callable[[], object]] = {
            f"put {BATCH} rows together": lambda: np.concatenate(rows),
            f"run, {BATCH} rows at once": lambda: engine.run(batch, outputs),
            "take the rows apart": split,
        }
        return {
            **{stage: cpu_us(function) for stage, function in single.items()},
            **{stage: cpu_us(function) / BATCH for stage, function in shared.items()},
            "encode the JSON": cpu_us(lambda: encode_single_output(answer)),
            "count": cpu_us(count) / BATCH,
        }

    def run_alone_us(self) -> float:
        """One run of one row: what batching saves."""
        served = self._live.snapshot.routes[self._name].arms["stable"]
        inputs, outputs = served.loaded.checker.check(self._name, decode_infer(self._body, None))
        return cpu_us(lambda: served.loaded.engine.run(inputs, outputs))

    def whole_us(self) -> float:
        """From bytes to bytes, all that arrives in one turn of the loop: everything but HTTP."""
        return cpu_us(lambda: self.answers(BATCH, TURNS)) / (BATCH * TURNS)

    def answers(self, count: int, turns: int = 1, *, finish: bool = True) -> list[Answer]:
        """What `count` requests of one turn of the event loop are answered, the last of several turns."""
        given: list[Answer] = []
        left = turns
        header = {b"turnout-key": self._key}.get

        def turn() -> None:
            given.clear()
            for _ in range(count):
                request = decode_infer(self._body, None)
                self._inference.start(self._name, None, request, header, done, time.perf_counter_ns())

        def done(answer: Answer) -> None:
            nonlocal left
            assert answer.error is None, answer.error
            encode_single_output(answer)
            if finish:
                answer.finish(200)
            given.append(answer)
            if len(given) == count:
                left -= 1
                self._loop.call_soon(turn if left else self._loop.stop)

        self._loop.call_soon(turn)
        self._loop.run_forever()
        return given

    def close(self) -> None:
        self._threads.shutdown()
        self._load_threads.shutdown()


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
        whole = pipeline.whole_us()
        alone = pipeline.run_alone_us()
    ours, bare = bench.compare([OURS, BARE], workload, [CONNECTIONS])
    live, floor = _cpu_us(ours), _cpu_us(bare)
    return {
        "sockets and the parser (a bare protocol with a constant)": floor,
        **stages,
        "objects, leases, the queue (the data plane less its stages)": whole - sum(stages.values()),
        "headers, timers, what else HTTP asks (the rest)": live - floor - whole,
        "**live server, CPU time a request**": live,
        "for comparison: the data plane without HTTP": whole,
        "for comparison: a run of one row": alone,
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

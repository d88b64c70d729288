"""Engines without a model, that note what they are asked and fail, wait and lie as told."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from gateway.routing.state import EngineOptions
from gateway.serving.batching import LOOP_BUDGET_NS, Batcher
from gateway.serving.engine import Array, Engine, Signature, TensorSpec
from gateway.serving.live import EngineKey, Live, LoadedVersion
from gateway.serving.turns import Turns
from gateway.telemetry.observations import SIZE_BYTES, Labels, ObservationWriter, requests_by_code

ROWS = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1), dimensions=("batch", "n")),),
    outputs=(
        TensorSpec(name="sum", datatype="FP32", shape=(-1, 1), dimensions=("batch", "")),
        TensorSpec(name="count", datatype="INT64", shape=(-1, 1), dimensions=("batch", "")),
    ),
)
"""Takes rows of any width: `sum` is what is in a row, `count` how long it is."""
SCALAR = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1), dimensions=("a", "b")),),
    outputs=(TensorSpec(name="sum", datatype="FP32", shape=(1,), dimensions=("",)),),
)
"""Not batchable."""


class FakeEngine:
    """Sums the rows. `fail(inputs)` may raise; `gate` is what a run waits for."""

    platform = "fake"

    def __init__(self, signature: Signature = ROWS, *, adds: float = 0.0) -> None:
        self.signature = signature
        self.adds = adds
        self.runs: list[tuple[int, ...]] = []
        """The shape of the input of each run."""
        self.threads: list[int] = []
        self.fail: Callable[[Mapping[str, Array]], None] = lambda _: None
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.closed = 0

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        assert not self.closed, "a closed engine was run"
        x = inputs["x"]
        self.runs.append(x.shape)
        self.threads.append(threading.get_ident())
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        self.fail(inputs)
        with np.errstate(over="ignore"):
            total = x.sum(axis=1, keepdims=True)  # may be infinite, as a model's outputs may
        made: dict[str, Array] = {
            "sum": total + np.float32(self.adds),
            "count": np.full((x.shape[0], 1), x.shape[1], np.int64),
        }
        return [made[name] for name in outputs]

    def warm(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


class NoThreads(Executor):
    """A run on the loop needs none."""

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        raise AssertionError("this run was to stay on the loop")


def observing() -> ObservationWriter:
    return ObservationWriter(memoryview(mmap.mmap(-1, SIZE_BYTES)))


def requests(writer: ObservationWriter, *labels: str) -> dict[int, int]:
    """Code → requests that were counted under (route, variant, version)."""
    return requests_by_code(writer.block(Labels(*labels)).read())


ALWAYS_IN_THREADS = -1
"""A budget of the loop that no run keeps to, however quick it is."""


def batcher(
    engine: Engine,
    loop: Any,
    threads: Executor | None = None,
    *,
    run_ns: int = 0,
    loop_budget_ns: int = LOOP_BUDGET_NS,
    turns: Turns | None = None,
    **options: Any,
) -> Batcher:
    return Batcher(
        engine,
        EngineOptions(**options),
        loop,
        threads or NoThreads(),
        run_ns=run_ns,
        turns=turns,
        # Without threads every run belongs on the loop, however slow a busy machine makes it.
        loop_budget_ns=loop_budget_ns if threads is not None else 10**15,
    )


def load(live: Live, version: str, engine: FakeEngine, made: Batcher) -> LoadedVersion:
    """The engine, live under the digest of `tests.states.pin(version)`."""
    key = EngineKey(version[0] * 64, EngineOptions())
    loaded = LoadedVersion(key, engine, made, lambda closing: closing.close())
    live.engines[key] = loaded
    return loaded

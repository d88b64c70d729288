"""Loads versions off the event loop, warmed, and closes them off the loop as well."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from pathlib import Path

from gateway.serving.batching import LOOP_BUDGET_NS, Batcher
from gateway.serving.engine import Engine, EngineError
from gateway.serving.engines.mapped import derived_directory
from gateway.serving.engines.onnx import load_onnx
from gateway.serving.live import EngineKey, LoadedVersion
from gateway.serving.run_threads import RunThreads
from gateway.serving.turns import Turns

log = logging.getLogger(__name__)

LOADS_AT_ONCE = 2
"""Loading is heavy on memory and cores, and what serves goes first."""


class Loader:
    """Makes loaded versions in threads of its own: the threads of inference never wait for a load."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        load_threads: Executor,
        run_threads: RunThreads,
        *,
        shared: bool = False,
    ) -> None:
        """`shared` says that there are other workers, with which weights may be shared."""
        self._shared = shared
        self._loop = loop
        self._load_threads = load_threads
        self._run_threads = run_threads
        self._turns = Turns(loop)
        self._slots = asyncio.Semaphore(LOADS_AT_ONCE)

    async def load(self, key: EngineKey, path: str) -> LoadedVersion:
        """The version at `path`, loaded and warm. Raises `EngineError` with the engine's reason."""
        async with self._slots:
            derived = derived_directory(Path(path), key.digest) if self._shares(key) else None
            engine, run_ns, refuses_zeros = await self._loop.run_in_executor(
                self._load_threads, _load, key, Path(path), derived
            )
        lane = self._run_threads.lane(run_ns)
        batcher = Batcher(engine, key.options, self._loop, lane, run_ns=run_ns, turns=self._turns)
        return LoadedVersion(key, engine, batcher, self._close, refuses_zeros=refuses_zeros)

    def _shares(self, key: EngineKey) -> bool:
        return self._shared or key.options.share_weights == "on"

    def _close(self, engine: Engine) -> None:
        self._load_threads.submit(engine.close)


def _load(key: EngineKey, path: Path, derived: Path | None) -> tuple[Engine, int, str]:
    """The engine, what a run takes (ns), and why it does not run zeros, "" where it does."""
    engine = load_onnx(path, key.options, derived)
    try:
        engine.warm()
        # The second run tells what a run costs; the first one pays for lazy set-up.
        started = time.perf_counter_ns()
        engine.warm()
    except EngineError as error:
        # Zeros are no legal input for every model. It may well serve, from a thread until it was measured.
        log.warning("version %s was not warmed: %s", key.digest[:12], error)
        return engine, LOOP_BUDGET_NS + 1, str(error)
    return engine, time.perf_counter_ns() - started, ""

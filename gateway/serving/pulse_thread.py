"""A thread that a run may hang in without holding up anything else, the end of the process included."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from gateway.serving.run_threads import yield_to_the_loop

Ended = Callable[["Exception | None", int], object]
"""Called in the thread with what the call raised and the nanoseconds that it took."""


class PulseThread:
    """Makes calls in order. It ends when it is dropped, once the call under way, if any, has."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], None], Ended] | None] = SimpleQueue()
        # A daemon, unlike an executor's: a worker must be able to end while a run hangs.
        threading.Thread(target=_work, args=(self._calls,), name="pulse", daemon=True).start()

    def run(self, call: Callable[[], None], ended: Ended) -> None:
        self._calls.put((call, ended))

    def __del__(self) -> None:
        self._calls.put(None)


def _work(calls: SimpleQueue[tuple[Callable[[], None], Ended] | None]) -> None:
    yield_to_the_loop()
    while (asked := calls.get()) is not None:
        call, ended = asked
        started_ns = time.perf_counter_ns()
        error: Exception | None = None
        try:
            call()
        except Exception as raised:
            error = raised
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            ended(error, time.perf_counter_ns() - started_ns)
        del asked, call, ended

"""Proves, again and again, that the versions of a worker answer: a rollback may lead to any of them at any time.

A version that has answered requests of late has proved itself. The others run the zeros of their warm-up, in a
thread of the heartbeat's own: a run that hangs holds neither the event loop nor the threads of requests, and no
request waits behind one. See docs/decisions/014 for what is proved, and what cannot be.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from typing import Protocol

import msgspec

from gateway.routing.state import EngineOptions
from gateway.serving.batching import OVERDUE_RUNS
from gateway.serving.engine import EngineError
from gateway.serving.live import EngineKey, Live, LoadedVersion, Snapshot
from gateway.serving.pulse_thread import PulseThread
from gateway.serving.run_threads import RunThreads

log = logging.getLogger(__name__)

PERIOD_S = 5.0
"""How often each version proves itself, where that takes no more than `SHARE`."""
TICK_S = 1.0
"""How often a worker tells what was proved, if only that its loop turns."""
GOOD_PERIODS = 3
"""A proof holds for so many: one that is late is no alarm."""
SHARE = 0.01
"""Of a worker's time, for all heartbeats: what takes longer proves itself less often."""
OVERDUE_S = 5.0
"""A run that takes this long, and `OVERDUE_RUNS` times what it took before, is not expected to end."""
_NS = 1_000_000_000


class Tell(Protocol):
    """Says what was proved since it was called last. Versions are named by `version_token`."""

    def __call__(self, *, proved: dict[str, str], failed: dict[str, str], good_for_s: float) -> None:
        """`proved`: version → what its proof leaves open, mostly ""; it holds for `good_for_s` from now on.
        `failed`: version → why it does not answer."""


@lru_cache(maxsize=4096)
def version_token(digest: str, options: EngineOptions) -> str:
    """One version loaded in one way, as worker and supervisor both name it."""
    return f"{digest} {msgspec.json.encode(options).decode()}"


class _Pulse:
    """One loaded version's."""

    __slots__ = ("due_ns", "failing", "loaded", "seen_ns", "took_ns", "under_way")

    def __init__(self, loaded: LoadedVersion, now_ns: int) -> None:
        self.loaded = loaded
        self.due_ns = now_ns
        self.seen_ns = now_ns
        """When it proved itself last; its warm-up was the first time."""
        self.took_ns = loaded.batcher.warm_ns
        self.under_way = False
        self.failing = False

    @property
    def token(self) -> str:
        return version_token(self.loaded.key.digest, self.loaded.key.options)


class Heartbeat:
    """Of one worker. Used on the event loop only."""

    def __init__(
        self,
        live: Live,
        run_threads: RunThreads,
        loop: asyncio.AbstractEventLoop,
        tell: Tell,
        *,
        period_s: float = PERIOD_S,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._live = live
        self._run_threads = run_threads
        self._loop = loop
        self._tell = tell
        self._period_ns = int(period_s * _NS)
        self._clock_ns = clock_ns
        self._pulses: dict[EngineKey, _Pulse] = {}
        self._snapshot: Snapshot | None = None
        """Whose versions they are."""
        self._due: deque[_Pulse] = deque()
        """Of the last tick, and not yet looked at."""
        self._thread = PulseThread()
        self._beat: tuple[_Pulse, int] | None = None
        """The one under way, and when it began."""
        self._probe: tuple[Future[None], int] | None = None
        self._allowance_ns = SHARE * self._period_ns
        self._counted_ns = clock_ns()
        self._proved: dict[str, str] = {}
        self._failed: dict[str, str] = {}

    async def run(self) -> None:
        while True:
            try:
                self.tick()
            except Exception:
                # Nothing is told then, and the supervisor takes that for what it is: nothing is proved.
                log.exception("the heartbeat failed")
            await asyncio.sleep(TICK_S * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, guards nothing

    def tick(self) -> None:
        """Looks at all versions, begins what is due, and tells what is known."""
        self._keep_up()
        now_ns = self._clock_ns()
        earned_ns = SHARE * (now_ns - self._counted_ns)
        self._allowance_ns = min(SHARE * self._period_ns, self._allowance_ns + earned_ns)
        self._counted_ns = now_ns
        self._look_for_hangs(now_ns)
        due = [pulse for pulse in self._pulses.values() if pulse.due_ns <= now_ns and not pulse.under_way]
        self._due = deque(sorted(due, key=lambda pulse: pulse.due_ns))
        self._next()
        self.announce()

    def announce(self) -> None:
        """Tells what is known now: of versions that have just been loaded, that they ran their warm-up."""
        self._keep_up()
        proved, self._proved = self._proved, {}
        failed, self._failed = self._failed, {}
        self._tell(proved=proved, failed=failed, good_for_s=self._good_for_s())

    def _keep_up(self) -> None:
        """With the versions that the snapshot needs; of those that have gone nothing is run any more."""
        if self._live.snapshot is self._snapshot:
            return
        self._snapshot = self._live.snapshot
        known, self._pulses = self._pulses, {}
        for key in self._live.required_keys():
            loaded = self._live.engines.get(key)
            if loaded is None:
                continue
            pulse = known.get(key)
            if pulse is None or pulse.loaded is not loaded:
                pulse = _Pulse(loaded, self._clock_ns())
                self._succeeded(pulse, loaded.refuses_zeros)
            self._pulses[key] = pulse
        self._due.clear()

    def _good_for_s(self) -> float:
        round_ns = sum(pulse.took_ns for pulse in self._pulses.values()) / SHARE
        return GOOD_PERIODS * max(self._period_ns, round_ns) / _NS

    def _look_for_hangs(self, now_ns: int) -> None:
        """What holds requests up fails every version that it concerns, whatever its heartbeats say."""
        if self._beat is not None:
            pulse, began_ns = self._beat
            lasts_ns = now_ns - began_ns
            if lasts_ns > max(OVERDUE_S * _NS, OVERDUE_RUNS * pulse.took_ns):
                self._fail(pulse, f"a run of zeros has not ended for {lasts_ns / _NS:.0f} s")
                # The thread is the hung run's from now on; what waits behind it gets another.
                self._thread = PulseThread()
                self._beat = None
        for pulse in self._pulses.values():
            lasts_ns = pulse.loaded.batcher.overdue_ns(now_ns)
            if lasts_ns > OVERDUE_S * _NS:
                self._fail(pulse, f"a run of requests has not ended for {lasts_ns / _NS:.0f} s")
        if self._probe is None or self._probe[0].done():
            self._probe = self._run_threads.probe(), now_ns
        elif now_ns - self._probe[1] > 2 * OVERDUE_S * _NS:
            for pulse in self._pulses.values():
                self._fail(pulse, "the threads for long runs are all held up")

    def _next(self) -> None:
        """Begins the heartbeat that is due longest; one at a time. What has no time for it now has at a later tick."""
        now_ns = self._clock_ns()
        while self._due and self._beat is None:
            pulse = self._due.popleft()
            if pulse.loaded.batcher.answered_ns > pulse.seen_ns:
                self._succeeded(pulse, "")
            elif self._allowance_ns > 0 and self._has_time(pulse, now_ns):
                self._begin(pulse, now_ns)

    def _has_time(self, pulse: _Pulse, now_ns: int) -> bool:
        """An idle moment; without one for a whole period, any."""
        busy = pulse.loaded.batcher.busy or self._run_threads.busy or pulse.loaded.batcher.turns.busy
        return not busy or now_ns - pulse.due_ns > self._period_ns

    def _begin(self, pulse: _Pulse, now_ns: int) -> None:
        pulse.under_way = True
        pulse.loaded.lease()
        self._beat = pulse, now_ns

        def ended(error: Exception | None, took_ns: int) -> None:
            self._loop.call_soon_threadsafe(self._ended, pulse, error, took_ns)

        self._thread.run(pulse.loaded.engine.warm, ended)

    def _ended(self, pulse: _Pulse, error: Exception | None, took_ns: int) -> None:
        pulse.under_way = False
        pulse.loaded.release()
        pulse.took_ns = took_ns
        self._allowance_ns -= took_ns
        if self._beat is not None and self._beat[0] is pulse:
            self._beat = None
        if error is None:
            self._succeeded(pulse, "")
        elif isinstance(error, EngineError) and pulse.loaded.refuses_zeros:
            # It runs, and says what it said when it was loaded: zeros are not for it, and that is no fault of it.
            self._succeeded(pulse, pulse.loaded.refuses_zeros)
        else:
            reason = str(error) if isinstance(error, EngineError) else type(error).__name__
            self._fail(pulse, f"a run of zeros failed: {reason}")
        self._next()

    def _succeeded(self, pulse: _Pulse, leaves_open: str) -> None:
        now_ns = self._clock_ns()
        pulse.seen_ns = now_ns
        # Not all of those that were loaded together at the same moment for ever.
        pulse.due_ns = now_ns + int(self._period_ns * random.uniform(0.8, 1.0))  # noqa: S311
        if pulse.failing:
            pulse.failing = False
            log.warning("version %s answers again", pulse.loaded.key.digest[:12])
        self._proved[pulse.token] = leaves_open
        self._failed.pop(pulse.token, None)

    def _fail(self, pulse: _Pulse, reason: str) -> None:
        pulse.due_ns = self._clock_ns() + self._period_ns
        if not pulse.failing:
            pulse.failing = True
            log.warning("version %s is not ready: %s", pulse.loaded.key.digest[:12], reason)
        self._failed[pulse.token] = reason
        self._proved.pop(pulse.token, None)

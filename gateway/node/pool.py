"""The workers of one supervisor: started, called together, replaced when they die, drained."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from gateway.control.deliver import LoadFailed, WorkersApplied
from gateway.node.balance import SLOT_BYTES
from gateway.node.channel import CallFailed, Channel, ChannelClosed, Handler
from gateway.node.proofs import Proofs
from gateway.node.worker import WorkerConfig
from gateway.routing.state import EMPTY, EngineOptions, InForce, Pin, State, encode_in_force
from gateway.telemetry.observations import SIZE_BYTES, ObservedVersion, read_blocks
from gateway.wire.oip_json import Limits

log = logging.getLogger(__name__)

RESTART_PAUSES_S = (0.0, 0.1, 0.5, 1.0, 5.0)
"""Before each restart in a row. A worker that had come to serve starts the row anew: only one that cannot
start is held back, and one that something kills again and again is back as soon as it can be."""
LOAD_TIMEOUT_S = 600.0
APPLY_TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 40.0


class _Slot:
    """One worker process, and the memory that outlives it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: asyncio.subprocess.Process | None = None
        self.channel: Channel | None = None
        self.memory: mmap.mmap | None = None
        self.in_step = False
        """It has the newest state, and is rung with every later one."""
        self.ready = False
        """It accepts connections, too."""
        self.ring: _Ring | None = None
        """The last one that it took without an error."""
        self.proofs = Proofs()
        self.document: State | None = None
        """What was sent to it last: a ring that only adds denies to it goes without."""


class _Ring:
    """A state as it is sent to the workers."""

    def __init__(self, held: InForce, paths: dict[str, str]) -> None:
        self.held = held
        self._paths = paths

    def message(self, slot: _Slot) -> dict[str, Any]:
        """To be sent at once, and after all that was made before it: what `slot` has then is counted on."""
        known, slot.document = slot.document is self.held.state, self.held.state
        return {"held": encode_in_force(self.held, document=not known), "paths": self._paths}


class WorkerPool:
    """All workers. One that dies is replaced; its counts are kept; calls go to those that are alive."""

    def __init__(
        self,
        *,
        count: int,
        listener: socket.socket,
        grpc_address: str = "",
        state_file: str,
        handlers: Mapping[str, Handler],
        on_change: Callable[[], None],
        on_death: Callable[[list[ObservedVersion]], None],
        drain_s: float,
        limits: Limits,
    ) -> None:
        self._listener = listener
        self._grpc_address = grpc_address
        self._state_file = state_file
        self._handlers = handlers
        self._on_change = on_change
        self._on_death = on_death
        self._drain_s = drain_s
        self._limits = limits
        self._slots = [_Slot(index) for index in range(count)]
        self._balance = tempfile.TemporaryFile(prefix="turnout-balance-")  # noqa: SIM115 - as long as the pool
        self._balance.truncate(count * SLOT_BYTES)
        self._ring = _Ring(EMPTY, {})
        self._stopping = False
        self.restarts = 0

    @property
    def total(self) -> int:
        return len(self._slots)

    @property
    def ready(self) -> int:
        return sum(slot.ready for slot in self._slots)

    def applied(self, held: InForce) -> int:
        """Workers that serve `held`; none while it is held already and not rung yet, or overtaken."""
        rung = self._ring.held is held
        return sum(rung and slot.ready and slot.ring is self._ring for slot in self._slots)

    def lacking(self, version: str) -> str:
        """Why not every worker that accepts connections has proved of late that this version answers; "" where
        they all have."""
        ready = [slot for slot in self._slots if slot.ready]
        reasons = [(slot.index, slot.proofs.lacking(version)) for slot in ready]
        found = [f"worker {index}: {reason}" for index, reason in reasons if reason]
        return "; ".join(found) if ready else "no worker is ready"

    def leaves_open(self, version: str) -> str:
        """What the workers' proofs do not show, "" where they are whole."""
        return next((text for slot in self._slots if (text := slot.proofs.leaves_open(version))), "")

    @property
    def pids(self) -> list[int]:
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    async def run(self) -> None:
        """Keeps every worker alive until `stop`."""
        async with asyncio.TaskGroup() as group:
            for slot in self._slots:
                group.create_task(self._keep_alive(slot))

    async def load(self, pin: Pin, options: EngineOptions, path: str) -> None:
        """Has every worker load and warm a version. Raises `LoadFailed` with the first reason."""
        params = {"pin": msgspec.to_builtins(pin), "options": msgspec.to_builtins(options), "path": path}
        results = await self._call_all("load", LOAD_TIMEOUT_S, **params)
        for result in results:
            if isinstance(result, CallFailed | TimeoutError):
                raise LoadFailed(str(result) or "the load took too long")

    async def apply(self, held: InForce, paths: Mapping[str, str]) -> WorkersApplied:
        """Rings every worker. `ok` counts those that swapped and have no answer of a denied version left."""
        ring = self._ring = _Ring(held, dict(paths))
        rung = [
            self._ring_one(slot, slot.channel, ring) for slot in self._slots if slot.in_step and slot.channel
        ]
        results = await asyncio.gather(*rung, return_exceptions=True)
        errors = [str(result) or type(result).__name__ for result in results if isinstance(result, Exception)]
        errors += [
            reason for result in results if isinstance(result, dict) for reason in result["errors"].values()
        ]
        ok = sum(isinstance(result, dict) and not result["errors"] for result in results)
        return WorkersApplied(ok=ok, total=self.total, errors=errors)

    async def load_explicit(self, route: str, version: str) -> None:
        """Has every worker load a version that clients name themselves. Raises `CallFailed`."""
        for result in await self._call_all("load_explicit", LOAD_TIMEOUT_S, route=route, version=version):
            if isinstance(result, CallFailed):
                raise result
            if isinstance(result, TimeoutError):
                raise CallFailed("the load took too long", status=503, retry_after_s=5)

    async def _ring_one(self, slot: _Slot, channel: Channel, ring: _Ring) -> Any:
        try:
            result = await channel.call("apply", timeout_s=APPLY_TIMEOUT_S, **ring.message(slot))
        except BaseException:
            slot.document = None  # nobody knows what it has now
            raise
        if ring is self._ring:
            # Each as it answers: one that hangs does not make the others look as if they had not.
            slot.ring = None if result["errors"] else ring
        return result

    async def unload(self, route: str, version: str | None) -> None:
        await self._call_all("unload", 10.0, route=route, version=version)

    async def stop(self) -> None:
        """Drains every worker and waits until they are gone."""
        self._stopping = True
        self._listener.close()
        await self._call_all("drain", EXIT_TIMEOUT_S, everybody=True)
        for slot in self._slots:
            if slot.channel is not None:
                slot.channel.close()
            if slot.process is not None:
                await self._wait_or_kill(slot.process)

    def observations(self) -> Iterator[ObservedVersion]:
        """The counts of the workers that are alive."""
        for slot in self._slots:
            if slot.memory is not None:
                yield from read_blocks(memoryview(slot.memory))

    async def _call_all(
        self, method: str, timeout_s: float, *, everybody: bool = False, **params: Any
    ) -> list[Any]:
        channels = [slot.channel for slot in self._slots if slot.channel and (slot.in_step or everybody)]
        return await asyncio.gather(
            *(channel.call(method, timeout_s=timeout_s, **params) for channel in channels),
            return_exceptions=True,
        )

    async def _keep_alive(self, slot: _Slot) -> None:
        row = 0
        while not self._stopping:
            served = await self._run_once(slot)
            row = 0 if served else min(row + 1, len(RESTART_PAUSES_S) - 1)
            await asyncio.sleep(RESTART_PAUSES_S[row])

    async def _run_once(self, slot: _Slot) -> bool:
        """One life of one worker, from its start to its death; whether it ever accepted connections."""
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile(prefix="turnout-observations-") as shared, theirs:
            os.ftruncate(shared.fileno(), SIZE_BYTES)
            slot.memory = mmap.mmap(shared.fileno(), SIZE_BYTES)
            slot.process = await self._spawn(slot.index, theirs, shared.fileno())
        slot.proofs = Proofs()
        slot.channel = Channel({**self._handlers, "proved": slot.proofs.note})
        serving = asyncio.create_task(slot.channel.run(ours))
        try:
            await self._bring_up(slot)
            code = await slot.process.wait()
            served = slot.ready
            if not self._stopping:
                self.restarts += 1
                log.warning(
                    "worker %d (pid %d) ended with %s: replacing it", slot.index, slot.process.pid, code
                )
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            ours.close()
            self._bury(slot)
        return served

    async def _spawn(self, index: int, channel: socket.socket, memory_fd: int) -> asyncio.subprocess.Process:
        config = WorkerConfig(
            index=index,
            state_file=self._state_file,
            channel_fd=channel.fileno(),
            listen_fd=self._listener.fileno(),
            observations_fd=memory_fd,
            balance_fd=self._balance.fileno(),
            workers=self.total,
            run_threads=2,
            drain_s=self._drain_s,
            grpc_address=self._grpc_address,
            limits=self._limits,
            log_level=logging.getLogger().getEffectiveLevel(),
        )
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.node.worker",
            msgspec.json.encode(config).decode(),
            pass_fds=(config.channel_fd, config.listen_fd, config.observations_fd, config.balance_fd),
            stdin=subprocess.DEVNULL,
            # Out of the terminal's group: Ctrl-C is for the supervisor, which drains the workers.
            process_group=0,
        )

    async def _bring_up(self, slot: _Slot) -> None:
        """The state first, then the connections: a new worker answers right from its first request."""
        assert slot.channel is not None
        assert slot.process is not None
        try:
            while not slot.in_step:
                ring = self._ring
                result = await slot.channel.call("apply", **ring.message(slot), timeout_s=LOAD_TIMEOUT_S)
                slot.ring = None if result["errors"] else ring
                # A state that came meanwhile was not rung here: a denied version must not be served again.
                slot.in_step = ring is self._ring
            await slot.channel.call("listen", timeout_s=APPLY_TIMEOUT_S)
        except (CallFailed, ChannelClosed, TimeoutError) as error:
            log.error("worker %d could not start: %s", slot.index, error or type(error).__name__)
            with contextlib.suppress(ProcessLookupError):
                slot.process.kill()
            return
        slot.ready = True
        self._on_change()

    def _bury(self, slot: _Slot) -> None:
        os.pwrite(self._balance.fileno(), bytes(SLOT_BYTES), slot.index * SLOT_BYTES)
        if slot.memory is not None:
            self._on_death(list(read_blocks(memoryview(slot.memory))))
        slot.in_step = slot.ready = False
        slot.ring = slot.document = None
        slot.memory, slot.channel, slot.process = None, None, None
        self._on_change()

    async def _wait_or_kill(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            log.error("pid %d did not end within %d s: killed", process.pid, EXIT_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

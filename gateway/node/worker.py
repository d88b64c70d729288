"""A worker process: the snapshot, the router and the engines. It knows no Redis, no registry and no admin.

    python -m gateway.node.worker '<WorkerConfig as JSON>'

The supervisor starts it, and it ends when its channel to the supervisor does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import mmap
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.control import state_file
from gateway.node.balance import SLOT_BYTES, Balance
from gateway.node.channel import CallFailed, Channel, ChannelClosed
from gateway.node.data_server import DataServer
from gateway.routing.documents import Documents
from gateway.routing.state import EngineOptions, InForce, Pin, StateError
from gateway.serving.engine import EngineError
from gateway.serving.explicit import ExplicitVersions, Located
from gateway.serving.exposure import Allowed, Quotas, Wanted
from gateway.serving.heartbeat import Heartbeat
from gateway.serving.inference import Inference
from gateway.serving.live import EngineKey, Live, ServedArm
from gateway.serving.loading import LOADS_AT_ONCE, Loader
from gateway.serving.run_threads import RunThreads
from gateway.serving.tensors import InferenceError
from gateway.telemetry.observations import SIZE_BYTES, ObservationWriter
from gateway.wire.app import data_plane
from gateway.wire.models import Models
from gateway.wire.oip_json import Limits
from gateway.wire.readiness import Readiness

if TYPE_CHECKING:
    from gateway.wire.grpc.server import GrpcServer

log = logging.getLogger(__name__)

STAT_PERIOD_S = 1.0
"""How often the state file is looked at, in case a ring of the channel was lost."""
SWITCH_S = 0.0005
"""How long a thread keeps the interpreter while others wait for it."""
PREPARED_KEPT_S = 600.0
"""How long an engine that was prepared for a change waits for the change to be committed."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor hands to a worker; the numbers are file descriptors that it inherits."""

    index: int
    state_file: str
    channel_fd: int
    listen_fd: int
    observations_fd: int
    balance_fd: int
    workers: int
    run_threads: int
    drain_s: float
    grpc_address: str = ""
    """Bound by every worker, and reserved by the supervisor; empty where gRPC is off."""
    limits: Limits = Limits()
    log_level: int = logging.WARNING


class Worker:
    """Composes the data plane of one process and answers the supervisor's calls."""

    def __init__(self, config: WorkerConfig, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._state_file = Path(config.state_file)
        memory = mmap.mmap(config.observations_fd, SIZE_BYTES)
        self._live = Live(ObservationWriter(memoryview(memory)), Quotas(self._allowance))
        load_threads = ThreadPoolExecutor(LOADS_AT_ONCE, thread_name_prefix="load")
        run_threads = RunThreads(config.run_threads)
        self._loader = Loader(loop, load_threads, run_threads, shared=config.workers > 1)
        self._explicit = ExplicitVersions(self._live, self._loader, self._locate)
        self._channel = Channel(
            {
                "load": self.load,
                "apply": self.apply,
                "listen": self.listen,
                "load_explicit": self.load_explicit,
                "unload": self.unload,
                "drain": self.drain,
            }
        )
        self._heartbeat = Heartbeat(self._live, run_threads, loop, self._tell)
        self._inference = Inference(self._live, self._explicit)
        self._models = Models(self._live, self._explicit, self._ask)
        self._readiness = Readiness(self._live)
        self._plane = data_plane(self._inference, self._models, self._readiness, config.limits)
        self._paths: dict[str, str] = {}
        self._prepared: dict[EngineKey, float] = {}
        self._loading: dict[EngineKey, asyncio.Task[None]] = {}
        self._documents = Documents()
        self._asked = 0
        self._swapped = 0
        self._draining = False
        self._server: DataServer | None = None
        self._grpc: GrpcServer | None = None

    async def run(self) -> None:
        """Until the supervisor says drain, or is gone."""
        end = socket.socket(fileno=self._config.channel_fd)
        watching = [asyncio.create_task(self._watch_file()), asyncio.create_task(self._heartbeat.run())]
        try:
            await self._channel.run(end)
        finally:
            for task in watching:
                task.cancel()
            # A supervisor that was killed asked for no drain, but its clients deserve one all the same.
            await (self._stop() if self._draining else self.drain())

    # What the supervisor calls.

    async def load(self, pin: dict[str, Any], options: dict[str, Any], path: str) -> None:
        """Loads and warms a version that is not in force yet."""
        key = EngineKey(msgspec.convert(pin, Pin).digest, msgspec.convert(options, EngineOptions))
        self._prepared[key] = asyncio.get_running_loop().time() + PREPARED_KEPT_S
        self._paths[key.digest] = path
        try:
            await self._ensure(key)
        except EngineError as error:
            self._prepared.pop(key, None)
            raise CallFailed(str(error)) from error

    async def apply(self, held: bytes, paths: dict[str, str]) -> dict[str, Any]:
        """Makes a state the truth; returns when no answer of a denied version is under way.

        A version that cannot be loaded does not keep the rest from being served: the fallback answers for it.
        """
        self._paths.update(paths)
        try:
            # In the order in which they were sent: a state without its document is about the one before it.
            decoded = self._documents.in_force(held)
        except StateError as error:
            raise CallFailed(str(error)) from error
        return await self._apply(decoded)

    async def _apply(self, held: InForce) -> dict[str, Any]:
        self._asked += 1
        asked = self._asked
        errors = await self._load_required(held)
        if asked > self._swapped:
            # A later state may have overtaken this one while its versions were loading.
            self._swapped = asked
            leaving = self._live.swap(held)
            self._readiness.announce()
            await _idle(leaving)
            self._retire_unneeded()
            # Ahead of the acknowledgement: what was loaded for it has run its warm-up.
            self._heartbeat.announce()
            # What was loaded now stays: the collector would look at all of it again and again, and of 10,000
            # routes that holds up every request for a tenth of a second.
            gc.collect(1)
            gc.freeze()
        return {
            "label": self._live.snapshot.label,
            "errors": errors,
            "missing": self._live.snapshot.missing(),
        }

    async def listen(self) -> None:
        """Starts to accept connections."""
        if self._server is None:
            if self._config.grpc_address:
                await self._listen_grpc()
            listener = socket.socket(fileno=self._config.listen_fd)
            memory = mmap.mmap(self._config.balance_fd, self._config.workers * SLOT_BYTES)
            balance = Balance(memoryview(memory), self._config.index)
            self._server = DataServer(self._plane, listener, balance)
            gc.collect()
            gc.freeze()
            self._server.start()

    async def _listen_grpc(self) -> None:
        # Here, because a worker without gRPC should not carry it: see docs/how-to/grpc.md.
        from gateway.wire.grpc.server import GrpcServer

        self._grpc = GrpcServer(
            self._inference, self._models, self._readiness, self._config.limits, self._config.grpc_address
        )
        await self._grpc.start()

    async def load_explicit(self, route: str, version: str) -> None:
        """Loads a version that clients are going to name themselves."""
        live = self._live.snapshot.routes.get(route)
        try:
            if live is None or self._explicit.find(live, version) is None:
                await asyncio.shield(self._explicit.load(route, version))
        except InferenceError as error:
            raise CallFailed(str(error), status=error.status, retry_after_s=error.retry_after_s) from error

    async def unload(self, route: str, version: str | None = None) -> None:
        """Lets go of explicit versions of a route."""
        self._explicit.unload(route, version)

    async def drain(self) -> None:
        """Unready at once; clients are told to go with their next answer; then no more is accepted."""
        self._draining = True
        self._plane.drain()
        await asyncio.sleep(self._config.drain_s)
        await self._stop()

    # How a version comes to be loaded.

    async def _ensure(self, key: EngineKey) -> None:
        if key in self._live.engines:
            return
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        await asyncio.shield(task)

    async def _load(self, key: EngineKey) -> None:
        self._live.engines[key] = await self._loader.load(key, self._paths[key.digest])

    async def _load_required(self, held: InForce) -> dict[str, str]:
        """Loads what `held` needs and is in the cache. Returns digest → why it could not be loaded."""
        missing = [key for key in self._live.lacking(held) if key.digest in self._paths]
        results = await asyncio.gather(*(self._ensure(key) for key in missing), return_exceptions=True)
        errors = {}
        for key, result in zip(missing, results, strict=True):
            if isinstance(result, EngineError):
                errors[key.digest] = str(result)
            elif isinstance(result, BaseException):
                raise result
        return errors

    def _retire_unneeded(self) -> None:
        now = asyncio.get_running_loop().time()
        self._prepared = {key: until for key, until in self._prepared.items() if until > now}
        self._live.retire_unneeded(self._explicit.needed | self._prepared.keys())

    async def _watch_file(self) -> None:
        seen = None
        while True:
            await asyncio.sleep(STAT_PERIOD_S)
            signature = state_file.signature(self._state_file)
            if self._swapped and signature != seen:
                seen = signature
                with contextlib.suppress(StateError):
                    await self._apply_file()

    async def _apply_file(self) -> None:
        written = await asyncio.to_thread(state_file.read, self._state_file)
        if written is not None and written.revision > self._live.snapshot.held.revision:
            log.warning("revision %s was in the state file and was not rung", written.label)
            await self._apply(written)

    async def _locate(self, route: str, version: str) -> Located:
        found = await self._ask("locate", route=route, version=version)
        return Located(msgspec.convert(found["pin"], Pin), found["path"])

    async def _allowance(self, wanted: Wanted) -> Allowed:
        return msgspec.convert(
            await self._ask("allowance", wanted=msgspec.to_builtins(wanted, builtin_types=(bytes,))), Allowed
        )

    async def _ask(self, method: str, **params: Any) -> Any:
        """The supervisor's answer. Raises `InferenceError`."""
        try:
            return await self._channel.call(method, **params)
        except CallFailed as error:
            raise InferenceError(
                error.status or 503, str(error), retry_after_s=error.retry_after_s
            ) from error
        except ChannelClosed as error:
            raise InferenceError(503, "this worker is going away: try again", retry_after_s=1) from error

    def _tell(self, **proofs: Any) -> None:
        with contextlib.suppress(ChannelClosed):
            self._channel.notify("proved", **proofs)

    async def _stop(self) -> None:
        if self._server is not None:
            self._plane.drain()
            await asyncio.gather(self._server.stop(), *([self._grpc.stop()] if self._grpc else []))


async def _idle(arms: list[ServedArm]) -> None:
    """Returns when no answer of these arms is under way."""
    events = []
    for arm in arms:
        event = asyncio.Event()
        arm.when_idle(event.set)
        events.append(event.wait())
    await asyncio.gather(*events)


def main() -> None:
    import uvloop

    config = msgspec.json.decode(sys.argv[1], type=WorkerConfig)
    logging.basicConfig(
        level=config.log_level, format=f"%(asctime)s %(levelname)s worker {config.index} %(message)s"
    )
    # Ctrl-C reaches the whole process group; the supervisor drains its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # The default is 5 ms: so long a thread that has run a model would wait for the loop to hand the interpreter over.
    sys.setswitchinterval(SWITCH_S)

    async def run() -> None:
        await Worker(config, asyncio.get_running_loop()).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()

"""The supervisor: composes the control plane and the admin listener over a pool of workers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import secrets
import signal
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from gateway.admin.api import admin_app
from gateway.admin.replica import Replica
from gateway.admin.tokens import TokensError, TokensFile
from gateway.control import state_file
from gateway.control.bootstrap import Bootstrap
from gateway.control.deliver import Deliverer
from gateway.control.events import Events
from gateway.control.exposure import Exposures
from gateway.control.exposure_store import ExposureStore
from gateway.control.file_exposure import FileExposure
from gateway.control.file_store import FileStore
from gateway.control.operations import Operations
from gateway.control.reader import Reader
from gateway.control.redis_exposure import RedisExposure
from gateway.control.redis_store import RedisStore
from gateway.control.registries import Registries
from gateway.control.settlement import Settlement
from gateway.control.store import Store, StoreUnavailable
from gateway.control.versions import Versions
from gateway.control.weights import FetchProgress, WeightsCache
from gateway.node import exposure_calls
from gateway.node.condition import Condition
from gateway.node.explicit_calls import ExplicitCalls
from gateway.node.fetched import Fetched
from gateway.node.flip_times import FlipTimes
from gateway.node.identity import replica_name
from gateway.node.listeners import at, bound_to, listener, reserved
from gateway.node.pool import WorkerPool
from gateway.node.reports import Reports
from gateway.node.rollbacks import Rollbacks
from gateway.routing.state import InForce, StateError
from gateway.settings import Settings, SettingsError, check_settings
from gateway.telemetry.ledger import Ledger
from gateway.telemetry.metrics import TurnoutCollector
from gateway.wire.oip_json import Limits
from gateway.wire.statistics import statistics_document

log = logging.getLogger(__name__)

NOT_READY_S = 5.0
"""How often a replica that is not ready says why."""


class Supervisor:
    """One replica. `run` serves until SIGTERM or SIGINT and returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        check_settings(settings)
        self._settings = settings
        self._tokens = _tokens(settings)
        self.replica = replica_name(settings.state_dir)
        self.events = Events()
        self._mirror = settings.state_dir / "state.json"
        self._data = listener(settings.host, settings.port, "--port")
        self._admin_socket = listener(settings.admin_host, settings.admin_port, "--admin-port")
        self._grpc = None if settings.grpc_port is None else reserved(settings.host, settings.grpc_port)
        self.weights = WeightsCache(
            settings.cache_dir,
            max_bytes=settings.cache_bytes,
            in_use=lambda: self.deliverer.in_use(),
            on_progress=self._fetching,
        )
        self._fetched = Fetched()
        self._registries = Registries()
        self.versions = Versions(self._registries, self.weights)
        self._explicit = ExplicitCalls(self.versions)
        self.ledger = Ledger(lambda: self.pool.observations())
        self.pool = WorkerPool(
            count=settings.workers,
            listener=self._data,
            grpc_address="" if self._grpc is None else bound_to(self._grpc),
            state_file=str(self._mirror),
            handlers={
                "locate": self._locate,
                "allowance": self._allowance,
                "statistics": self._statistics,
                "load": self._load,
                "unload": self._unload,
            },
            on_change=self._workers_changed,
            on_death=self.ledger.bury,
            drain_s=settings.drain_s,
            limits=Limits(body_bytes=settings.body_bytes),
        )
        self.deliverer = Deliverer(
            self._mirror,
            self.versions,
            self.pool,
            self.events,
        )
        self.store = _store(settings, self.replica)
        self.exposures = Exposures(
            # Counts errors from 0 in every life, so the name is another one in each.
            _exposure_store(settings, f"{self.replica}-{secrets.token_hex(3)}"),
            self.deliverer,
            on_trip=lambda key, trip, count: self.operations.exceeded(key, trip, count),
        )
        self.operations = Operations(self.store, self.deliverer, self.versions, self.exposures)
        self.reader = Reader(self.store, self.deliverer, self.operations, self.events)
        self._bootstrap = Bootstrap(
            settings.config, self.operations, self.deliverer, shared=self.store.shared
        )
        self._stopping = asyncio.Event()
        self._rollbacks = Rollbacks(self.deliverer, self.pool)
        self.condition = Condition(
            replica=self.replica,
            pool=self.pool,
            deliverer=self.deliverer,
            reader=self.reader,
            bootstrap=self._bootstrap,
            ledger=self.ledger,
            fetched=self._fetched,
            rollbacks=self._rollbacks,
            exposures=self.exposures,
            stopping=self._stopping.is_set,
            tokens=self._tokens,
        )
        self.collector = TurnoutCollector(totals=self.condition.totals, standing=self.condition.standing)
        self._reports = Reports(
            self.store,
            lambda: self.deliverer.held,
            self.condition.member,
            FlipTimes(self.collector.flips.observe),
            self.events,
            self.weights,
            self._fetched,
            self.reader.troubles,
        )

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        with _owned(self._settings.state_dir):
            mirrored = await asyncio.to_thread(_last_known_good, self._mirror)
            if mirrored is not None:
                await self.deliverer.start(mirrored)
            admin = uvicorn.Server(_admin_config(admin_app(self._replica_view())))
            tasks = [
                asyncio.create_task(task)
                for task in (
                    self.pool.run(),
                    self.deliverer.run(),
                    self.reader.run(),
                    self._bootstrap.run(self.reader.reached),
                    self._reports.run(),
                    self.exposures.run(),
                    self._announce(),
                    *([self._tokens.run()] if self._tokens else []),
                    _serve(admin, self._admin_socket),
                )
            ]
            stopping = asyncio.create_task(self._stopping.wait())
            try:
                done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
                failed = _failure(done - {stopping})
            finally:
                await self._stop(admin, tasks)
        if failed is not None:
            raise failed
        return 0

    def _replica_view(self) -> Replica:
        tokens = self._tokens
        return Replica(
            operations=self.operations,
            settlement=Settlement(self.store, self.deliverer),
            deliverer=self.deliverer,
            store=self.store,
            versions=self.versions,
            events=self.events,
            collector=self.collector,
            totals=self.condition.totals,
            ready=lambda: self.condition.ready,
            degraded=self.condition.degraded,
            exposed=self.condition.exposed,
            member=self.condition.member,
            rollback=self._rollbacks.document,
            token=self._settings.admin_token,
            holders=(lambda: tokens.holders) if tokens else None,
        )

    # What the workers ask.

    async def _locate(self, route: str, version: str) -> dict[str, Any]:
        located = await self._explicit.locate(self.deliverer.held, route, version)
        return {"pin": msgspec.to_builtins(located.pin), "path": located.path}

    async def _allowance(self, wanted: dict[str, Any]) -> Any:
        return await exposure_calls.allowance(self.exposures, wanted)

    async def _statistics(self, route: str | None, version: str | None) -> Any:
        return statistics_document(self.condition.totals(), route, version)

    async def _load(self, route: str, version: str) -> None:
        await self.pool.load_explicit(route, version)

    async def _unload(self, route: str, version: str | None) -> None:
        await self.pool.unload(route, version)

    # What goes on all the time.

    def _workers_changed(self) -> None:
        self.events.publish("workers", ready=self.pool.ready, of=self.pool.total)
        self._reports.due()

    def _fetching(self, progress: FetchProgress) -> None:
        self._fetched.note(progress)
        self.events.publish("fetch", **msgspec.to_builtins(progress))

    async def _announce(self) -> None:
        """The one line on the screen, when the first request would be answered, or why there is none yet."""
        with self.events.subscribe() as events:
            while not self.condition.ready:
                try:
                    async with asyncio.timeout(NOT_READY_S):
                        await events.get()
                except TimeoutError:
                    log.warning(
                        "not ready: %s", "; ".join(self.condition.degraded()) or "no state is in force yet"
                    )
        settings = self._settings
        grpc = "" if self._grpc is None else f"grpc {at(settings.host, self._grpc)}  "
        print(
            f"turnout is ready: data http://{at(settings.host, self._data)}  "
            f"admin http://{at(settings.admin_host, self._admin_socket)}  {grpc}"
            f"({self.pool.total} workers, revision {self.deliverer.held.label})",
            flush=True,
        )
        if settings.example is not None:
            route = next(iter(self.deliverer.held.state.routes), "MODEL")
            url = f"http://{at(settings.host, self._data)}/v2/models/{route}/infer"
            print(f"try it:\n  curl -s {url} -d @{settings.example}", flush=True)
        await asyncio.Event().wait()

    async def _stop(self, admin: uvicorn.Server, tasks: list[asyncio.Task[Any]]) -> None:
        self._stopping.set()
        log.info("draining")
        await self.pool.stop()
        admin.should_exit = True
        await _end(tasks)
        with contextlib.suppress(StoreUnavailable):
            await self.store.leave()
        await self.exposures.aclose()
        await self.store.aclose()
        await self._registries.aclose()


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancels until they have ended: redis-py sends by `asyncio.wait_for`, which swallows a cancellation that
    comes in the same tick as its result (before Python 3.12, https://github.com/python/cpython/issues/86296).
    """
    pending: Collection[asyncio.Task[Any]] = tasks
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)


def _store(settings: Settings, replica: str) -> Store:
    if settings.redis:
        try:
            return RedisStore(settings.redis, settings.namespace, replica)
        except ValueError as error:
            raise SettingsError(f"--redis: {error}") from error
    return FileStore(settings.state_dir / "store")


def _tokens(settings: Settings) -> TokensFile | None:
    if settings.tokens is None:
        return None
    try:
        return TokensFile(settings.tokens)
    except TokensError as error:
        raise SettingsError(f"--tokens: {error}") from error


def _exposure_store(settings: Settings, replica: str) -> ExposureStore:
    """Beside the state, where that is; its address was checked with it."""
    if settings.redis:
        return RedisExposure(settings.redis, settings.namespace, replica)
    return FileExposure(settings.state_dir / "store", replica)


def _last_known_good(path: Path) -> InForce | None:
    """What this replica served last; a damaged file is kept aside, and the store is asked instead."""
    try:
        return state_file.read(path)
    except StateError as error:
        aside = state_file.set_aside(path)
        log.error("%s; kept as %s", error, aside)
        return None


@contextlib.contextmanager
def _owned(directory: Path) -> Iterator[None]:
    """One supervisor a state directory. Raises `SettingsError` where another one has it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "supervisor.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"another turnout serves from {directory}: give this one its own --state-dir"
            ) from None
        yield


def _admin_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    await server.serve(sockets=[listener])


def _failure(done: set[asyncio.Task[Any]]) -> BaseException | None:
    """A part that ended by itself ends the process: a half-working supervisor must not look alive."""
    for task in done:
        error = task.exception()
        return error or RuntimeError(f"{task.get_name()} ended by itself")
    return None

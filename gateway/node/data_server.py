"""The data listener of one worker: uvicorn's protocol over connections that we accept and drain ourselves."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import socket
import struct
import sys
from typing import Any

import uvicorn

from gateway.node.balance import Balance
from gateway.wire.app import DataPlane
from gateway.wire.fast_lane import FastLane

log = logging.getLogger(__name__)

QUIET_S = 1.0
"""How long a new connection may stay silent when its worker stops, before it is closed."""
IN_FLIGHT_S = 30
KEEP_ALIVE_S = 75
_POLL_S = 0.02
_TURN_S = 0.001
"""How long a connection is left to a worker that has fewer; the shortest that libuv can wait."""
_PAUSE_S = 1.0
"""Without free descriptors a listener is ready for ever: accepting would only spin."""


class DataServer:
    """Serves the data plane on a listening socket that other workers share."""

    def __init__(self, plane: DataPlane, listener: socket.socket, balance: Balance) -> None:
        self._listener = listener
        self._balance = balance
        self._loop = asyncio.get_running_loop()
        self._lane = plane.lane
        self._config = _config(plane)
        self._config.load()
        self._server = _QuietServer(self._config)
        self._exhausted = False
        self._serving: asyncio.Task[None] | None = None
        self._accepting: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Connections are accepted from now on."""
        self._listener.setblocking(False)
        self._serving = asyncio.create_task(self._server.serve(sockets=[]))
        self._balance.accepts(0)
        self._loop.add_reader(self._listener, self._offered)

    async def stop(self) -> None:
        """Answers every request whose connection had been made, then closes.

        A connection in the kernel's queue is made already, its client may have sent a request: uvicorn's own
        shutdown resets both those and the ones that it has just accepted. So first nobody can connect any
        more, then what had connected is accepted and answered, and only then the listener is closed.
        """
        if self._serving is None:
            return
        if not self._server.should_exit:
            refuse_new_connections(self._listener)
            await self._wait_until_quiet()
            self._balance.leaves()
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._server.should_exit = True
        await self._serving

    def _offered(self) -> None:
        """A connection waits: it is for the worker with the fewest, or whoever is there after a while."""
        self._count()
        self._loop.remove_reader(self._listener)
        if self._balance.is_my_turn():
            # One for each turn of the loop: libuv takes all that wait, and one worker gets whole bursts.
            self._take()
        else:
            self._loop.call_later(_TURN_S, self._take)

    def _take(self) -> None:
        """The others had their turn: a worker that hangs must not keep a connection waiting."""
        if self._listener.fileno() >= 0:
            self._accept_one()
            if self._exhausted:
                self._exhausted = False
                self._loop.call_later(_PAUSE_S, self._resume)
            else:
                self._resume()

    def _count(self) -> None:
        self._balance.accepts(len(self._server.server_state.connections) + len(self._accepting))

    def _accept_one(self) -> bool:
        """Whether there was one."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            log.error("no connection can be accepted for a moment: %s", error)
            self._exhausted = True
            return False
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
        self._accepting.add(task)
        self._count()
        task.add_done_callback(self._accepted)
        return True

    def _accepted(self, task: asyncio.Task[Any]) -> None:
        self._accepting.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a connection was lost as it was accepted: %s", task.exception())

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._offered)

    def _protocol(self) -> asyncio.Protocol:
        state = self._server.server_state
        return FastLane(self._lane, config=self._config, server_state=state, app_state={}, _loop=self._loop)

    async def _wait_until_quiet(self) -> None:
        """Returns when no connection waits for its first answer, nor in the kernel's queue."""
        deadline = self._loop.time() + QUIET_S
        while self._loop.time() < deadline:
            while self._accept_one():
                pass
            await asyncio.sleep(_POLL_S)
            if not self._accepting and not any(map(_is_new, self._server.server_state.connections)):
                return


class _QuietServer(uvicorn.Server):
    """The supervisor decides when a worker ends; signals are not for uvicorn to catch."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _is_new(connection: Any) -> bool:
    """Whether it has not got as far as one whole request: uvicorn would close it."""
    return connection.cycle is None


def refuse_new_connections(listener: socket.socket) -> None:
    """Lets no new handshake begin, while those that are under way come to their end.

    By a packet filter on the socket that drops SYNs (Linux). The clients behind them try again after a
    second, and are refused then. Elsewhere a connection made in the instant of the close is reset.
    """
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN)
    buffer = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(buffer))
    with contextlib.suppress(OSError):  # in a sandbox that knows no filters
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


_SO_ATTACH_FILTER = 26
_DROP_SYN = (
    (0x30, 0, 0, 13),  # ldb [13]: the flags of the TCP header, where a socket's filter starts to read
    (0x45, 0, 1, 0x02),  # jset SYN
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # accept
)
"""A program of the classic Berkeley packet filter: (code, jump if true, jump if false, operand)."""


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=IN_FLIGHT_S,
    )

"""Large bodies over HTTP: a transport for httpx that reads in threads, megabytes at a time.

httpx reads 64 KiB at a time on the event loop: two to four CPU seconds a GiB, in which the loop does nothing
else. The standard library's client in a thread takes a fifth of that (docs/decisions/011). So: GET only, one
connection a request, no proxies. It raises what httpx's own transport raises, so one table maps both.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx

CHUNK_BYTES = 4 * 1024 * 1024
"""What one step between a thread and the loop hands over."""
READ_BYTES = 1024 * 1024
"""What a time-out in the middle may lose. Each read and each chunk costs a change of threads: 1 MiB a chunk and
256 KiB a read took twice the CPU."""
THREADS = 16
"""Each connection that is waited for takes one."""


class BulkTransport(httpx.AsyncBaseTransport):
    """See https://www.python-httpx.org/advanced/transports/#custom-transports."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="registry-bytes")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer's headers; its body is read as it is iterated over. Raises `httpx.TransportError`s."""
        exchange = _Exchange(request, self._tls)
        asking = asyncio.get_running_loop().run_in_executor(self._threads, exchange.ask)
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: it ends by itself, and what it has opened then is closed.
            exchange.abandon(asking)
            raise
        return httpx.Response(
            answer.status, headers=answer.getheaders(), stream=_Body(exchange, self._threads)
        )

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Body(httpx.AsyncByteStream):
    """One chunk ahead of its reader: the next is on its way while the reader works on this one.

    Two buffers take turns. A chunk is released when the next one is asked for, so that who keeps it gets an
    error and not other bytes: fresh memory for each would cost as much as the reading.
    """

    def __init__(self, exchange: _Exchange, threads: ThreadPoolExecutor) -> None:
        self._exchange = exchange
        self._threads = threads
        self._ahead: asyncio.Future[int] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        filling, spare = memoryview(bytearray(CHUNK_BYTES)), memoryview(bytearray(CHUNK_BYTES))
        self._ahead = self._fill(filling)
        while size := await asyncio.shield(self._ahead):
            self._ahead = self._fill(spare)
            with filling[:size] as chunk:
                yield cast(bytes, chunk)  # httpx passes on what it gets
            filling, spare = spare, filling

    async def aclose(self) -> None:
        if self._ahead is None:
            self._exchange.close()
        else:
            self._exchange.abandon(self._ahead)

    def _fill(self, chunk: memoryview) -> asyncio.Future[int]:
        return asyncio.get_running_loop().run_in_executor(self._threads, self._exchange.read_into, chunk)


class _Exchange:
    """One request and its answer, over a connection of their own. `ask` and `read_into` block, one at a time."""

    def __init__(self, request: httpx.Request, tls: ssl.SSLContext) -> None:
        timeouts = request.extensions.get("timeout", {})
        self._request = request
        self._tls = tls
        self._connect_s = timeouts.get("connect")
        self._read_s = timeouts.get("read")
        self._socket: socket.socket | None = None
        self._answer: http.client.HTTPResponse | None = None
        self._left: int | None = None
        self._failed: httpx.TransportError | None = None

    def ask(self) -> http.client.HTTPResponse:
        connection = _connection(self._request.url, self._tls, self._connect_s)
        with _translated(httpx.ConnectTimeout, httpx.ConnectError):
            connection.connect()
        self._socket = connection.sock
        self._socket.settimeout(self._read_s)
        try:
            with _translated(httpx.ReadTimeout, httpx.ReadError):
                _send(connection, self._request)
                self._answer = connection.getresponse()
        except httpx.TransportError:
            self.close()
            raise
        length = self._answer.headers.get("content-length", "")
        chunked = "transfer-encoding" in self._answer.headers
        self._left = int(length) if length.isdecimal() and not chunked else None
        return self._answer

    def read_into(self, chunk: memoryview) -> int:
        """The bytes of the next chunk, 0 at the end. What came before a break is counted before it is raised."""
        size = 0
        while size < len(chunk) and self._failed is None:
            try:
                count = self._read_some(chunk[size : size + READ_BYTES])
            except httpx.TransportError as error:
                self._failed = error
                break
            if not count:
                break
            size += count
        if self._failed is not None and not size:
            raise self._failed
        return size

    def abandon(self, work: asyncio.Future[Any]) -> None:
        """Closes when the thread that does `work` has ended, whose waiting is cut short."""

        def ended(work: asyncio.Future[Any]) -> None:
            self.close()
            if not work.cancelled():
                work.exception()  # nobody waits for it any more

        if work.done():
            ended(work)
            return
        work.add_done_callback(ended)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        if self._socket is not None:
            self._socket.close()

    def _read_some(self, into: memoryview) -> int:
        assert self._answer is not None
        with _translated(httpx.ReadTimeout, httpx.ReadError):
            count = self._answer.readinto(into)
        if self._left is not None:
            self._left -= count
            if not count and self._left > 0:
                # The standard library says nothing where a body ends before its Content-Length.
                raise httpx.RemoteProtocolError(f"{self._left} bytes are missing")
        return count


def _connection(url: httpx.URL, tls: ssl.SSLContext, timeout_s: float | None) -> http.client.HTTPConnection:
    host = url.raw_host.decode("ascii")
    if url.scheme == "https":
        return http.client.HTTPSConnection(host, url.port, timeout=timeout_s, context=tls)
    return http.client.HTTPConnection(host, url.port, timeout=timeout_s)


def _send(connection: http.client.HTTPConnection, request: httpx.Request) -> None:
    connection.putrequest(
        request.method, request.url.raw_path.decode("ascii"), skip_host=True, skip_accept_encoding=True
    )
    for name, value in request.headers.raw:
        if name.lower() != b"connection":
            connection.putheader(name.decode("ascii"), value)
    connection.putheader("Connection", "close")
    connection.endheaders()


@contextlib.contextmanager
def _translated(late: type[httpx.TransportError], broken: type[httpx.TransportError]) -> Iterator[None]:
    """The standard library's exceptions in httpx's words."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except http.client.HTTPException as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
    except ValueError as error:  # of a header or a target that HTTP cannot carry
        raise httpx.LocalProtocolError(str(error)) from error

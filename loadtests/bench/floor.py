"""What HTTP costs in Python before anything is done: a constant through ASGI, and through a bare protocol.

python -m uvicorn loadtests.bench.floor:app
python -m loadtests.bench.floor PORT
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httptools
import uvloop

Message = MutableMapping[str, Any]

BODY = (
    b'{"model_name":"tiny","model_version":"1","outputs":'
    b'[{"name":"output","datatype":"FP32","shape":[1,2],"data":[0.123456789,-0.123456789]}]}'
)
"""As long as the tiny model's answer."""
_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
)
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))],
}


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """The least that ASGI can do; the request's body is not even asked for."""
    await send(_START)
    await send({"type": "http.response.body", "body": BODY})


class ConstantProtocol(asyncio.Protocol):
    """Parses each request whole, and writes the constant: no scope, no task, no ASGI."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.header = (name, value)

    def on_body(self, body: bytes) -> None:
        self.body = body

    def on_message_complete(self) -> None:
        self._transport.write(_ANSWER)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(ConstantProtocol, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))

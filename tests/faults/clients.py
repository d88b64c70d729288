"""Clients over kept-alive connections that write down every answer, in a process of their own.

    python -m tests.faults.clients ANSWERS SPAN_MS ADDRESS:CONNECTIONS ... < routes, one a line

Each connection has a key of its own and asks for one route after the other, once in SPAN_MS; an answer that takes
longer holds up its own connection alone. The file gets `tests.faults.history.Answer` rows. Ends when its
standard input does. Raw sockets, because a client's library hides which connection an answer came on.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.history import Answer, Label

GIVE_UP_S = 20.0
REFUSED_PAUSE_NS = 50_000_000
FLUSH_BYTES = 64 * 1024
_BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.0, 0.0, 0.0]}]}
).encode()
_NOWHERE = Label(0, 0)


@dataclass
class Client:
    """One connection after the other to one replica."""

    address: tuple[str, int]
    replica: int
    key: int
    due_ns: int
    turn: int = 0
    connection: int = 0
    socket: socket.socket | None = None
    sent_ns: int = 0
    """0 while nothing is under way."""
    route: int = 0
    received: bytearray = field(default_factory=bytearray)


class Recorder:
    def __init__(self, path: Path, span_ns: int, clients: list[Client], routes: list[str]) -> None:
        self._file = path.open("wb", buffering=FLUSH_BYTES)
        self._span_ns = span_ns
        self._clients = clients
        self._routes = routes
        self._poll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._connections = 0

    def run(self) -> None:
        self._poll.register(sys.stdin, select.EPOLLIN)
        flushed_ns = 0
        while True:
            now = time.monotonic_ns()
            due = min(client.due_ns if not client.sent_ns else now + 10**9 for client in self._clients)
            for fd, _ in self._poll.poll(max(0, due - now) / 1e9):
                if fd == sys.stdin.fileno():
                    self._file.close()
                    return
                self._read(self._by_fd[fd])
            for client in self._clients:
                self._send_if_due(client)
            if now > flushed_ns + 10**9:
                self._file.flush()
                flushed_ns = now

    def _send_if_due(self, client: Client) -> None:
        now = time.monotonic_ns()
        if client.sent_ns:
            if now > client.sent_ns + GIVE_UP_S * 1e9:
                self._lose(client)
            return
        if now < client.due_ns:
            return
        if client.socket is None and not self._connect(client):
            client.due_ns = now + REFUSED_PAUSE_NS
            return
        assert client.socket is not None
        client.route = client.turn % len(self._routes)
        client.turn += 1
        client.due_ns = max(client.due_ns + self._span_ns, now)
        client.sent_ns = time.monotonic_ns()
        try:
            client.socket.sendall(self._request(client))
        except OSError:
            self._lose(client)

    def _request(self, client: Client) -> bytes:
        head = (
            f"POST /v2/models/{self._routes[client.route]}/infer HTTP/1.1\r\nhost: faults\r\n"
            f"turnout-key: {client.key}\r\ncontent-length: {len(_BODY)}\r\n\r\n"
        )
        return head.encode() + _BODY

    def _connect(self, client: Client) -> bool:
        try:
            made = socket.create_connection(client.address, timeout=1.0)
        except OSError:
            return False  # refused: nothing was asked, so nothing is lost
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections += 1
        client.socket, client.connection = made, self._connections
        client.received.clear()
        self._by_fd[made.fileno()] = client
        self._poll.register(made, select.EPOLLIN)
        return True

    def _read(self, client: Client) -> None:
        assert client.socket is not None
        try:
            content = client.socket.recv(65536)
        except OSError:
            content = b""
        if not content:
            self._lose(client) if client.sent_ns else self._leave(client)
            return
        client.received += content
        end = client.received.find(b"\r\n\r\n")
        if end < 0:
            return
        status, headers = _head(bytes(client.received[:end]))
        if len(client.received) < end + 4 + int(headers.get("content-length", 0)):
            return
        self._note(client, status, headers)
        client.received.clear()
        if headers.get("connection") == "close":
            self._leave(client)

    def _lose(self, client: Client) -> None:
        self._note(client, 0, {})
        self._leave(client)

    def _leave(self, client: Client) -> None:
        if client.socket is not None:
            del self._by_fd[client.socket.fileno()]
            client.socket.close()
            client.socket = None

    def _note(self, client: Client, status: int, headers: dict[str, str]) -> None:
        answer = Answer(
            sent_ns=client.sent_ns,
            received_ns=time.monotonic_ns(),
            connection=client.connection,
            key=client.key,
            replica=client.replica,
            route=client.route,
            version=int(headers.get("turnout-version", 0)),
            status=status,
            label=Label.parse(headers["turnout-revision"]) if "turnout-revision" in headers else _NOWHERE,
        )
        client.sent_ns = 0
        self._file.write(answer.packed())


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}


def main() -> None:
    path, span_ms, *targets = sys.argv[1:]
    routes = sys.stdin.readline().split()
    span_ns, now = int(span_ms) * 1_000_000, time.monotonic_ns()
    clients = []
    for replica, target in enumerate(targets):
        host, port, count = target.split(":")
        for number in range(int(count)):
            # Spread over the span, so that they do not ask all at once.
            due_ns = now + span_ns * number // int(count)
            clients.append(
                Client(address=(host, int(port)), replica=replica, key=number, due_ns=due_ns, turn=number)
            )
    gc.disable()
    Recorder(Path(path), span_ns, clients, routes).run()


if __name__ == "__main__":
    main()

"""The clients of the flip bench, in a process of their own: each asks again as soon as it has its answer.

    python -m loadtests.bench.flip_client ADDRESS NOTES CONNECTIONS PAUSE_US

Raw sockets, one request under way on each, no pipelining. NOTES is a file that this process and the bench both
map: every answer is a row of it, with the times of CLOCK_MONOTONIC, which all processes share. With a pause each
connection waits between its answer and its next request. Ends when its standard input does.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtests.bench.paced import is_whole

ROWS = 6_000_000
COLUMNS = 3
"""When it was asked, when it was answered (ns of the monotonic clock), and by which version."""
Notes = npt.NDArray[np.int64]
_VERSION = b"turnout-version: "


def make_notes(path: Path) -> Notes:
    """A sparse file: rows that are not used take no room. The first row's first cell is their number."""
    with path.open("wb") as file:
        file.truncate((ROWS + 1) * COLUMNS * 8)
    return map_notes(path)


def map_notes(path: Path) -> Notes:
    return np.memmap(path, np.int64, "r+", shape=(ROWS + 1, COLUMNS))


def noted(notes: Notes) -> Notes:
    """The rows so far, oldest first."""
    return notes[1 : 1 + int(notes[0, 0])]


def version_of(answer: bytes) -> int:
    at = answer.index(_VERSION) + len(_VERSION)
    return int(answer[at : answer.index(b"\r", at)])


def ask(address: str, requests: Sequence[bytes], notes: Notes, connections: int, pause_ns: int) -> None:
    host, _, port = address.partition(":")
    sockets: dict[int, socket.socket] = {}
    asked: dict[int, int] = {}
    waiting: list[int] = []
    poll = select.epoll()
    clock, turn, count = time.monotonic_ns, 0, 0

    def send(fd: int) -> None:
        nonlocal turn
        turn += 1
        asked[fd] = clock()
        sockets[fd].send(requests[turn % len(requests)])

    for _ in range(connections):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
        send(connection.fileno())
    poll.register(sys.stdin, select.EPOLLIN)
    partial: dict[int, bytes] = {}
    while count < ROWS:
        for fd, _ in poll.poll(pause_ns / 1e9 if waiting else None):
            if fd == sys.stdin.fileno():
                return
            answer = partial.pop(fd, b"") + sockets[fd].recv(65536)
            if not is_whole(answer):
                partial[fd] = answer
                continue
            count += 1
            notes[count] = asked[fd], clock(), version_of(answer)
            notes[0, 0] = count
            if pause_ns:
                waiting.append(fd)
            else:
                send(fd)
        due = clock() - pause_ns
        for fd in [fd for fd in waiting if notes[count, 1] <= due]:
            waiting.remove(fd)
            send(fd)
    raise SystemExit(f"more than {ROWS} answers: measure fewer flips at once")


def main() -> None:
    address, path, connections, pause_us = sys.argv[1:]
    requests = [text.encode("latin-1") for text in json.loads(sys.stdin.readline())]
    gc.disable()
    ask(address, requests, map_notes(Path(path)), int(connections), int(pause_us) * 1000)


if __name__ == "__main__":
    main()

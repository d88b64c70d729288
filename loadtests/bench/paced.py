"""An open load: requests leave when they are due, not when the one before has been answered.

    python -m loadtests.bench.paced ADDRESS REQUESTS RATE SECONDS CONNECTIONS

Latency counts from when a request was due, so a server that stalls is charged for all that should have been
asked meanwhile (a closed loop, as wrk's, would have asked nothing: "coordinated omission"). Arrivals are
Poisson. This client is one Python process that never sleeps: its own share is in the figures, about 20 µs a
request, and grows where two are due at once. The same load on nginx tells how much that is.
"""

from __future__ import annotations

import gc
import json
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtests.bench.machine import BenchError
from loadtests.bench.wrk import Load

CONNECTIONS = 64
GIVE_UP_S = 10.0
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def run(
    address: str,
    requests: Sequence[bytes],
    *,
    per_s: float,
    seconds: int,
    core: int,
    connections: int = CONNECTIONS,
) -> Load:
    """Asks from a process of its own on `core`. Raises `BenchError` where an answer was none."""
    root = Path(__file__).resolve().parents[2]
    with tempfile.NamedTemporaryFile() as blob:
        blob.write(json.dumps([request.decode("latin-1") for request in requests]).encode())
        blob.flush()
        command = [
            *("taskset", "--cpu-list", str(core), sys.executable, "-m", "loadtests.bench.paced"),
            *(address, blob.name, str(per_s), str(seconds), str(connections)),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=seconds + 60)
    if ran.returncode != 0:
        raise BenchError(f"the paced load on {address} failed: {ran.stderr.strip()[-500:]}")
    return Load(**json.loads(ran.stdout))


def arrivals_ns(per_s: float, seconds: float, seed: int = 1) -> npt.NDArray[np.int64]:
    """When the requests of a Poisson process are due, from 0, within `seconds`."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1e9 / per_s, int(per_s * seconds * 1.2) + 100)
    due = np.cumsum(gaps)
    return due[due < seconds * 1e9].astype(np.int64)


def is_whole(answer: bytes) -> bool:
    """Whether all of a response with a Content-Length is there. Raises `BenchError` for one that is no 200."""
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return False
    if not answer.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"answered {answer[:200]!r}")
    length = _LENGTH.search(answer, 0, head)
    if length is None:
        raise BenchError(f"no content-length in {answer[:head]!r}")
    return len(answer) >= head + 4 + int(length[1])


def ask(
    address: str, requests: Sequence[bytes], due_ns: npt.NDArray[np.int64], connections: int
) -> npt.NDArray[np.int64]:
    """The latency in ns of each request, from when it was due; those that wait for a connection wait here."""
    host, _, port = address.partition(":")
    sockets: dict[int, socket.socket] = {}
    poll = select.epoll()
    for _ in range(connections):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
    idle = deque(sockets.values())
    due, count, kinds = due_ns.tolist(), len(due_ns), len(requests)
    took = np.zeros(count, np.int64)
    asked: dict[int, int] = {}
    partial: dict[int, bytes] = {}
    clock = time.perf_counter_ns
    sent = answered = 0
    start = clock()
    give_up = due[-1] + int(GIVE_UP_S * 1e9)
    while answered < count:
        now = clock() - start
        while sent < count and due[sent] <= now and idle:
            connection = idle.popleft()
            asked[connection.fileno()] = sent
            connection.send(requests[sent % kinds])
            sent += 1
        for fd, _ in poll.poll(0):
            answer = partial.pop(fd, b"") + sockets[fd].recv(65536)
            if is_whole(answer):
                number = asked.pop(fd)
                took[number] = clock() - start - due[number]
                answered += 1
                idle.append(sockets[fd])
            else:
                partial[fd] = answer
        if now > give_up:
            raise BenchError(f"{count - answered} of {count} requests had no answer after {GIVE_UP_S} s")
    for connection in sockets.values():
        connection.close()
    return took


def main() -> None:
    address, path, per_s, seconds, connections = sys.argv[1:]
    requests = [text.encode("latin-1") for text in json.loads(Path(path).read_bytes())]
    due_ns = arrivals_ns(float(per_s), float(seconds))
    gc.disable()
    started = time.perf_counter_ns()
    took_us = ask(address, requests, due_ns, int(connections)) / 1000
    load = {
        "requests": len(took_us),
        "duration_us": (time.perf_counter_ns() - started) // 1000,
        **{f"p{q}_us": float(np.percentile(took_us, q)) for q in (50, 90, 99)},
        "max_us": float(took_us.max()),
    }
    print(json.dumps(load))


if __name__ == "__main__":
    main()

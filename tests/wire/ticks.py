"""Requests that reach a worker in one tick of its loop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from gateway.routing.state import Revision
from gateway.serving.engine import Signature, TensorSpec
from tests.wire.lane import Client, ServedLane, ask

SECOND = Revision(2, 2)
TOO_BIG = [3e38, 3e38]
"""A row whose sum is infinite in FP32."""


def rows(datatype: str = "FP32", shape: tuple[int, ...] = (-1, 2)) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=shape, dimensions=("batch", *[""] * 9)),),
        outputs=(TensorSpec(name="sum", datatype="FP32", shape=(-1, 1), dimensions=("batch", "")),),
    )


def body(data: Any, *, datatype: str = "FP32", **fields: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": datatype, "data": data, **fields.pop("tensor", {})}
    return json.dumps({"inputs": [tensor], **fields}).encode()


PLAIN = body([1, 2])


class Ticks:
    """Clients that have been answered before, so that the lines of their heads are known."""

    def __init__(self, served: ServedLane, clients: list[Client]) -> None:
        self.served = served
        self.clients = clients
        self.queued: list[tuple[str, int]] = []
        """What was submitted: the kind of work, and its requests."""
        for engine in served.desk.engines.values():
            engine.runs.clear()
            engine.entered.clear()
        for loaded in served.desk.live.engines.values():
            self._note(loaded.batcher)

    def _note(self, batcher: Any) -> None:
        submit = batcher.submit

        def noting(work: Any) -> None:
            self.queued.append((type(work).__name__, work.requests))
            submit(work)

        batcher.submit = noting

    def send(self, *bodies: bytes, lines: tuple[str, ...] = (), query: str = "") -> None:
        """One request of each client, all in one tick."""
        for client, sent in zip(self.clients, bodies, strict=True):
            client.writer.write(ask(query, *lines, body=sent))

    async def statuses(self) -> list[int]:
        return [await client.status() for client in self.clients]

    @property
    def counted(self) -> dict[int, int]:
        """Without the requests that came before."""
        counted = self.served.counted
        left = counted.get(200, 0) - len(self.clients)
        return {
            **{code: count for code, count in counted.items() if code != 200},
            **({200: left} if left else {}),
        }


async def clients_of(served: ServedLane, count: int) -> Ticks:
    open_before = served.hold.is_set()
    served.hold.set()
    clients = [await served.client(ask(body=PLAIN)) for _ in range(count)]
    assert [await client.status() for client in clients] == [200] * count
    if not open_before:
        served.hold.clear()
    return Ticks(served, clients)


async def under_way(ticks: Ticks) -> None:
    await ticks.served.until(lambda: ticks.served.engine.entered.is_set())


async def outcome(client: Client) -> int | None:
    try:
        async with asyncio.timeout(1):
            return await client.status()
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        return None

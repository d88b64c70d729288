"""What was seen of a fleet while it was hurt: answers, changes and faults, on one monotonic clock.

All times are nanoseconds of CLOCK_MONOTONIC, which every process of a machine shares. Replicas are numbers
from 0, routes are numbers from 0; version 1 is the stable one, version 2 the canary.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

STABLE, CANARY = 1, 2
_ROW = struct.Struct("<qqIHBBBHIIH")
ROW_BYTES = _ROW.size


class Label(NamedTuple):
    """`turnout-revision`: `1.7+2` is two denies ahead of revision 7 of epoch 1. In this order."""

    epoch: int
    rev: int
    ahead: int = 0

    def __str__(self) -> str:
        return f"{self.epoch}.{self.rev}+{self.ahead}" if self.ahead else f"{self.epoch}.{self.rev}"

    @property
    def revision(self) -> Label:
        """Without what is ahead of it."""
        return Label(self.epoch, self.rev)

    @classmethod
    def parse(cls, text: str) -> Label:
        revision, _, ahead = text.partition("+")
        epoch, _, rev = revision.partition(".")
        return cls(int(epoch), int(rev), int(ahead or 0))


class Answer(NamedTuple):
    """One prediction, from its first byte to its last."""

    sent_ns: int
    received_ns: int
    connection: int
    """A kept-alive connection; one that was made anew has a new number."""
    key: int
    """The sticky key's number."""
    replica: int
    route: int
    version: int
    """0 where there is none."""
    status: int
    """0: the connection was lost before the answer came."""
    label: Label

    def packed(self) -> bytes:
        return _ROW.pack(*self[:-1], *self.label)


def read_answers(path: Path) -> Iterator[Answer]:
    """As they were written: in the order in which they were received."""
    content = path.read_bytes()
    for row in _ROW.iter_unpack(content[: len(content) // ROW_BYTES * ROW_BYTES]):
        yield Answer(*row[:8], Label(*row[8:]))


class Change(msgspec.Struct, kw_only=True):
    """One write of an operator to one register of a route; a route has one operator, who waits for each.

    The registers are `denied` (0 or 1, of the canary) and `weight` (per cent, of the canary).
    """

    route: int
    register: Literal["denied", "weight"]
    value: int
    by: str
    """How: signal, api, cli."""
    sent_ns: int
    through: int = -1
    """The replica that was asked, -1 for a signal."""
    sent_again_ns: int = 0
    """When a signal that the store had lost was sent last."""
    replied_ns: int = 0
    """The answer, or when it was found out what became of the change."""
    outcome: Literal["done", "refused", "unknown"] = "unknown"
    """`refused` had no effect at any time; `unknown` had none at `replied_ns`, before that perhaps."""
    label: Label | None = None
    """The revision that it was committed with."""
    durable: bool | None = None
    """What the answer said of it: whether a fail-over can lose it."""
    here_ns: int = 0
    """A rollback's answer: from here on, it is in force on the replica that was asked."""
    acknowledged_ns: dict[int, int] = {}
    """By each replica, with all its workers."""


class Fault(msgspec.Struct, kw_only=True):
    kind: str
    target: str
    began_ns: int
    over_ns: int = 0
    whole_ns: int = 0
    """When every replica said of itself that nothing is wrong; 0: never."""
    noticed_ns: dict[int, int] = {}
    """When each replica said that it is degraded, where that was looked for."""
    loses: bool = False
    """Whether the store may lose what only one server's memory had."""
    replica: int = -1
    """Whose workers were killed: requests in flight there may be lost. -1: none may."""


class Standing(msgspec.Struct, kw_only=True, frozen=True):
    """One route at the end, as one replica or the store holds it."""

    where: str
    route: int
    denied: int
    weight: int


class History(msgspec.Struct, kw_only=True):
    seed: int
    replicas: int
    routes: int
    changes: list[Change] = []
    faults: list[Fault] = []
    final: list[Standing] = []
    ended_ns: int = 0

    def save(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)))

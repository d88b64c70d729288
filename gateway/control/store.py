"""What every replica agrees on, behind one interface: the embedded file, or Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import msgspec

from gateway.routing.state import DenyKey, InForce, Revision, State


class StoreError(Exception):
    """The base of what a store raises."""


class Conflict(StoreError):
    """The state moved on since it was read. `current` is the revision that is in force now."""

    def __init__(self, current: Revision) -> None:
        super().__init__(f"the state is at revision {current} now: read it again and repeat the change")
        self.current = current


class StoreUnavailable(StoreError):
    """The store cannot be reached or refuses to work; what is served goes on being served."""


class StoreRefused(StoreUnavailable):
    """It answers, and refuses what it was asked for."""


class StoreDiverged(StoreError):
    """The store holds another state than this replica, and a person has to say which of them is right."""


class StoreBehind(StoreDiverged):
    """A fail-over has just lost changes that are known here, and nobody has made another since: `carry_over`."""


class Author(msgspec.Struct, frozen=True, kw_only=True):
    """Who changes something and why. `op_id` makes a retried write the same write."""

    actor: str
    reason: str = ""
    op_id: str


class Committed(Revision):
    """The revision that a change made, and whether the change outlives the store's primary."""

    durable: bool | None
    """True: on the primary's disk, or, under Sentinel, with every replica that the sentinels know. False: a
    loss of the primary may undo it. None: the store cannot say, or nothing was written."""

    def __new__(cls, epoch: int, rev: int, durable: bool | None = None) -> Self:
        made = super().__new__(cls, epoch, rev)
        made.durable = durable
        return made


class HistoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history."""

    type: str
    """put, deny, undeny, restore or reject (a signal that was refused)."""
    epoch: int
    rev: int
    us: int
    """Microseconds since the epoch, by the store's clock."""
    actor: str
    reason: str = ""
    op_id: str = ""
    sha256: str = ""
    changes: list[dict[str, Any]] = []
    """For each route that changed: {"route", "before", "after"}, as `routing.change.summary` writes them."""
    prev: str = ""
    """The hash chain's head before this line; "" where the chain begins."""
    head: str = ""
    """The hash chain's head with this line: it covers the line and, by `prev`, all earlier ones. See `chain`."""


class Line(NamedTuple):
    """One line of the history as it lies in the store; `record` is None where nobody here has written it."""

    where: str
    """For people: the line's number in a file, or the entry's id in a stream."""
    record: HistoryRecord | None


class Ledger(NamedTuple):
    """The whole history of one moment."""

    head: str | None
    """The newest line's head as the state holds it; None where there is no state to hold one."""
    kept: int
    """How many lines the store's own trimming always leaves."""
    pages: AsyncIterator[Sequence[Line]]
    """The oldest line first. Each may raise `StoreUnavailable`."""


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """A request from outside, as it lies in the `:signals` stream; nothing in it is trusted."""

    id: str
    fields: dict[str, str]


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica says of itself. Times are the store's own."""

    replica: str
    epoch: int
    rev: int
    denies_rev: int
    """The highest revision of a deny that is applied: a deny may be ahead of the document."""
    deny_n: int
    sha256: str
    base: str = ""
    """The revision that its epoch continues; "" of a replica of an earlier release."""
    status: str
    """ACK, or NACK with `error`: the replica keeps the revision it names and refuses a later one. LOST: this is what
    it said last, and it has fallen silent since (see `member`)."""
    error: str = ""
    workers_ok: int
    workers_total: int
    applied_us: int = 0


Changes = Sequence[dict[str, Any]]


class Store(Protocol):
    """The state, changed only by compare-and-set. Every method may raise `StoreUnavailable`."""

    shared: bool
    """True where other replicas use the same store (Redis)."""

    @property
    def heard(self) -> float:
        """When the store gave its last sign of life, by the monotonic clock; at first, when it was opened."""

    async def read(self) -> InForce | None:
        """State and denies whole, at one point in time; None where the store is empty."""

    async def put(self, state: State, expect: Revision, author: Author, changes: Changes) -> Committed:
        """Replaces the document if the revision is still `expect` (0.0: if the store is empty).

        A known `op_id` returns its first revision and changes nothing. Raises `Conflict`.
        """

    async def restore(
        self, held: InForce, expect: Revision, author: Author, changes: Changes, *, known_epoch: int = 0
    ) -> Committed:
        """Begins a new epoch with `held`, if the store is still at `expect` (0.0: empty, or unreadable).

        The epoch is one more than the store's, `held`'s and `known_epoch`, the highest that anybody has seen,
        so that every replica takes it for newer; `held.revision` becomes its `base`. Denied is what is denied
        in `held` or in the store. It mends a damaged document. Raises `Conflict`.
        """

    async def carry_over(
        self, held: InForce, expect: Revision, author: Author, changes: Changes, *, known_epoch: int = 0
    ) -> Committed | None:
        """As `restore`, by nobody's hand: the first change after a fail-over that lost some gives back what `held`
        has. Denied is what is denied in `held`. None, and nothing done, where there was no fail-over, or somebody
        has made a change since. Raises `Conflict`.
        """

    async def deny(self, denies: Mapping[DenyKey, str], author: Author, changes: Changes) -> Committed:
        """Adds denies (key → version for people); needs no expected revision, because denies commute.

        Denies that exist already are left as they are; where all of them do, nothing changes and the
        present revision is returned. An empty store has nothing to deny: `Conflict` with 0.0, as from
        `undeny` and `reject`. Raises `StoreBehind`, as `undeny` does.
        """

    async def undeny(self, keys: Sequence[DenyKey], author: Author, changes: Changes) -> Committed:
        """Lifts denies."""

    async def reject(self, author: Author, error: str) -> None:
        """One line of history for a request that was refused; the revision stays. Idempotent by op_id."""

    async def known(self, op_id: str) -> bool:
        """Whether a change, or a refusal, with this op_id has its line in this life of the store."""

    async def history(self, limit: int = 100) -> list[HistoryRecord]:
        """The newest first."""

    async def ledger(self) -> Ledger:
        """The whole history of one moment, with what it takes to verify it."""

    def watch(self) -> AsyncGenerator[list[Signal], None]:
        """Yields whenever something may have changed, with the signals that came, if any.

        The first item comes at once. It never ends by itself; an error of the store is raised out of it,
        and the reader starts a new one. A signal is yielded again until `seen` was told of it.
        """

    async def seen(self, signal_id: str) -> None:
        """The signal is done with: committed or rejected."""

    async def report(self, member: Member) -> int:
        """Publishes what this replica has applied; it fades by itself when not repeated.

        Returns since when it has been so, in microseconds since the epoch by the store's clock.
        """

    async def leave(self) -> None:
        """This replica goes on purpose: nobody waits for it any longer."""

    async def members(self) -> list[Member]:
        """The live replicas, and those that fell silent in the last ten minutes, as LOST."""

    async def aclose(self) -> None: ...


__all__ = [
    "Author",
    "Changes",
    "Committed",
    "Conflict",
    "HistoryRecord",
    "Ledger",
    "Line",
    "Member",
    "Signal",
    "Store",
    "StoreBehind",
    "StoreDiverged",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
]

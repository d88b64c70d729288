"""The embedded store: the state in a local file, for one machine without Redis."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.control import state_file
from gateway.control.file_lock import locked
from gateway.control.history_file import HistoryFile
from gateway.control.member import FADES_S, AppliedClock
from gateway.control.store import (
    Author,
    Changes,
    Committed,
    Conflict,
    HistoryRecord,
    Ledger,
    Line,
    Member,
    Signal,
    StoreUnavailable,
)
from gateway.routing.documents import Documents
from gateway.routing.state import DamagedState, Deny, DenyKey, InForce, Revision, State, StateError

STATE_NAME = "state.json"
HISTORY_NAME = "history.jsonl"

POLL_S = 0.25
"""How often `watch` looks whether another process replaced the file. Its own commits it sees at once."""
COMPARE_S = 5.0
"""How often `watch` yields without a cause: who follows the store then knows that it is still there."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Step(NamedTuple):
    """What a change makes of the state; `held` None: nothing changes, and `revision` is the answer."""

    type: str
    held: InForce | None
    revision: Revision


class FileStore:
    """A `Store` in one directory, safe between processes of one machine by `flock`.

    Every method may raise `StoreUnavailable`; `read` and the changes raise `StateError` where the state
    file is damaged. `restore` sets a damaged file aside.
    """

    shared = False

    def __init__(
        self, directory: Path, *, clock_us: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self._directory = directory
        self._state_path = directory / STATE_NAME
        self._history = HistoryFile(directory / HISTORY_NAME)
        self._clock_us = clock_us
        self._documents = Documents()
        # Commits of this process queue here: `flock` alone would be a race of pollers.
        self._turn = asyncio.Lock()
        self._watchers: set[asyncio.Event] = set()
        self._applied = AppliedClock()
        self._member: tuple[float, Member] | None = None
        self._swept = False
        self._heard = time.monotonic()

    @property
    def heard(self) -> float:
        return self._heard

    @property
    def state_path(self) -> Path:
        """The file that workers may read."""
        return self._state_path

    async def read(self) -> InForce | None:
        with self._mapped():
            return await asyncio.to_thread(state_file.read, self._state_path, self._documents)

    async def put(self, state: State, expect: Revision, author: Author, changes: Changes) -> Committed:
        def step(held: InForce | None) -> _Step:
            current = held.revision if held else Revision(0, 0)
            if current != expect:
                raise Conflict(current)
            if held is None:
                first = InForce(revision=Revision(self._history.last_epoch + 1, 1), state=state)
                return _Step("put", first, first.revision)
            revision = _following(current)
            return _Step("put", msgspec.structs.replace(held, revision=revision, state=state), revision)

        return await self._commit(step, author, changes)

    async def restore(
        self, held: InForce, expect: Revision, author: Author, changes: Changes, *, known_epoch: int = 0
    ) -> Committed:
        def step(stored: InForce | None) -> _Step:
            current = stored.revision if stored else Revision(0, 0)
            if current != expect:
                raise Conflict(current)
            known = (current.epoch, held.revision.epoch, known_epoch, self._history.last_epoch)
            revision = Revision(max(known) + 1, 1)
            denies = {**(stored.denies if stored else {}), **held.denies}
            first = InForce(
                revision=revision,
                state=held.state,
                # Of this epoch, and so lifted by whatever comes later in it.
                denies={key: msgspec.structs.replace(deny, rev=1) for key, deny in denies.items()},
                base=held.revision,
            )
            return _Step("restore", first, revision)

        return await self._commit(step, author, changes, mends=True)

    async def carry_over(
        self, held: InForce, expect: Revision, author: Author, changes: Changes, *, known_epoch: int = 0
    ) -> None:
        """A file has no fail-overs."""

    async def deny(self, denies: Mapping[DenyKey, str], author: Author, changes: Changes) -> Committed:
        def step(held: InForce | None) -> _Step:
            held = _required(held)
            new = [key for key in denies if key not in held.denies]
            if not new:
                return _Step("deny", None, held.revision)
            revision = _following(held.revision)
            added = {key: self._tombstone(denies[key], revision, author) for key in new}
            all_denies = {**held.denies, **added}
            return _Step(
                "deny", msgspec.structs.replace(held, revision=revision, denies=all_denies), revision
            )

        return await self._commit(step, author, changes)

    async def undeny(self, keys: Sequence[DenyKey], author: Author, changes: Changes) -> Committed:
        def step(held: InForce | None) -> _Step:
            held = _required(held)
            left = {key: deny for key, deny in held.denies.items() if key not in keys}
            if len(left) == len(held.denies):
                return _Step("undeny", None, held.revision)
            revision = _following(held.revision)
            return _Step("undeny", msgspec.structs.replace(held, revision=revision, denies=left), revision)

        return await self._commit(step, author, changes)

    async def reject(self, author: Author, error: str) -> None:
        async with self._owned():
            await asyncio.to_thread(self._reject_locked, author, error)

    async def known(self, op_id: str) -> bool:
        async with self._owned():
            return await asyncio.to_thread(self._known_locked, op_id)

    async def history(self, limit: int = 100) -> list[HistoryRecord]:
        with self._mapped():
            return await asyncio.to_thread(self._read_history, limit)

    async def ledger(self) -> Ledger:
        # Under the lock: a line comes before the state that holds its head.
        async with self._owned():
            held, lines = await asyncio.to_thread(self._read_ledger)
        return Ledger(head=held.head if held else None, kept=self._history.kept_lines, pages=_one_page(lines))

    async def watch(self) -> AsyncGenerator[list[Signal], None]:
        """As `Store.watch`; there are no signals, because nobody but this machine reaches the store."""
        rung = asyncio.Event()
        self._watchers.add(rung)
        try:
            while True:
                rung.clear()
                seen = await self._signature()
                yield []
                until = time.monotonic() + COMPARE_S
                while not rung.is_set() and await self._signature() == seen and time.monotonic() < until:
                    with suppress(TimeoutError):
                        # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes with the ring.
                        async with asyncio.timeout(POLL_S):
                            await rung.wait()
        finally:
            self._watchers.discard(rung)

    async def seen(self, signal_id: str) -> None:
        """Nothing to do: this store has no signals."""

    async def report(self, member: Member) -> int:
        applied_us = self._applied.known_us(member) or self._clock_us()
        self._member = (time.monotonic(), self._applied.keep(member, applied_us))
        return applied_us

    async def leave(self) -> None:
        self._member = None

    async def members(self) -> list[Member]:
        """This process alone, while it goes on reporting."""
        if self._member is None or time.monotonic() - self._member[0] > FADES_S:
            return []
        return [self._member[1]]

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    async def _commit(
        self,
        step: Callable[[InForce | None], _Step],
        author: Author,
        changes: Changes,
        mends: bool = False,
    ) -> Committed:
        loop = asyncio.get_running_loop()

        def in_thread() -> Revision:
            with self._locked():
                revision = self._commit_locked(step, author, changes, mends)
            # From the thread: also a caller that was cancelled meanwhile has changed the state.
            loop.call_soon_threadsafe(self._ring)
            return revision

        async with self._owned():
            revision = await asyncio.to_thread(in_thread)
        # State and history were synchronised with the disk before they counted.
        return Committed(*revision, durable=True)

    def _commit_locked(
        self, step: Callable[[InForce | None], _Step], author: Author, changes: Changes, mends: bool
    ) -> Revision:
        held, damaged = self._held(mends)
        self._history.settle(held, unreadable=damaged and held is None)
        if held and (known := self._history.find(author.op_id, held.revision.epoch)):
            return known
        made = step(held)
        if made.held is None:
            return made.revision
        # The order matters: a line without its state is ignored and cut off, a state without its line
        # would be a change that nobody can account for.
        record = self._record(made.type, made.held, author, author.reason, changes)
        # A damaged state tells no head: the chain goes on from the lines that are left.
        head = self._history.append(record, None if damaged else held)
        committed = msgspec.structs.replace(made.held, head=head, commit_us=record.us)
        self._write_state(committed, damaged)
        with suppress(OSError):
            self._history.compact(committed)
        return made.revision

    def _write_state(self, held: InForce, damaged: bool = False) -> None:
        try:
            if damaged:
                state_file.set_aside(self._state_path)
            state_file.write(self._state_path, held)
        except OSError:
            with suppress(OSError):
                self._history.undo()
            raise

    def _held(self, mends: bool) -> tuple[InForce | None, bool]:
        """And whether the file is damaged; then what is sound of it."""
        try:
            return state_file.read(self._state_path, self._documents), False
        except StateError as error:
            if not mends:
                raise StateError(
                    f"the store {self._state_path} is damaged ({error}): put a copy of it back, or give it what "
                    "this replica holds with: turnout restore"
                ) from error
            if isinstance(error, DamagedState):
                return InForce(revision=error.revision, state=State(), denies=error.denies), True
            return None, True

    def _known_locked(self, op_id: str) -> bool:
        with self._locked():
            held, _ = self._held(mends=False)
            self._history.settle(held)
            return held is not None and self._history.find(op_id, held.revision.epoch) is not None

    def _reject_locked(self, author: Author, error: str) -> None:
        with self._locked():
            held = _required(self._held(mends=False)[0])
            self._history.settle(held)
            if self._history.find(author.op_id, held.revision.epoch):
                return
            reason = f"{author.reason} (refused: {error})" if author.reason else f"refused: {error}"
            head = self._history.append(self._record("reject", held, author, reason, ()), held)
            self._write_state(msgspec.structs.replace(held, head=head))

    def _record(
        self, type_: str, held: InForce, author: Author, reason: str, changes: Changes
    ) -> HistoryRecord:
        return HistoryRecord(
            type=type_,
            epoch=held.revision.epoch,
            rev=held.revision.rev,
            us=self._clock_us(),
            actor=author.actor,
            reason=reason,
            op_id=author.op_id,
            sha256=held.state.sha256,
            changes=list(changes),
        )

    def _tombstone(self, version: str, revision: Revision, author: Author) -> Deny:
        return Deny(
            version=version,
            rev=revision.rev,
            op_id=author.op_id,
            actor=author.actor,
            reason=author.reason,
            us=self._clock_us(),
        )

    def _read_history(self, limit: int) -> list[HistoryRecord]:
        held = state_file.read(self._state_path, self._documents)
        return self._history.committed(held, limit)

    def _read_ledger(self) -> tuple[InForce | None, list[Line]]:
        with self._locked():
            held = state_file.read(self._state_path, self._documents)
            return held, self._history.lines(held)

    async def _signature(self) -> state_file.Signature | None:
        with self._mapped():
            return await asyncio.to_thread(state_file.signature, self._state_path)

    def _ring(self) -> None:
        for rung in self._watchers:
            rung.set()

    @asynccontextmanager
    async def _owned(self) -> AsyncGenerator[None, None]:
        async with self._turn:
            with self._mapped():
                yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._directory):
            if not self._swept:
                state_file.sweep(self._state_path)
                self._swept = True
            yield

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
            self._heard = time.monotonic()
        except OSError as error:
            raise StoreUnavailable(_explain(self._directory, error)) from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StoreUnavailable(f"the change cannot be written as JSON: {error}") from error


async def _one_page(lines: Sequence[Line]) -> AsyncGenerator[Sequence[Line], None]:
    yield lines


def _explain(directory: Path, error: OSError) -> str:
    if error.errno in FULL:
        return (
            f"no space left for the state in {directory} ({error.strerror}); nothing was changed: "
            "free some, or choose another --state-dir"
        )
    return f"the state in {directory} cannot be used: {error.strerror or error}"


def _required(held: InForce | None) -> InForce:
    if held is None:
        raise Conflict(Revision(0, 0))
    return held


def _following(revision: Revision) -> Revision:
    return Revision(revision.epoch, revision.rev + 1)

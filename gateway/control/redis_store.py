"""The shared store: the state in Redis or Valkey, for any number of replicas.

Keys, under one hash tag so that they share a slot: `{turnout:<namespace>}` and

    :state      HASH epoch, rev, doc, sha256, op_id, actor, reason, commit_us, signals_id, base, head, life, first
    :deny       HASH route|digest → {version, rev, op_id, actor, reason, us}
    :log        STREAM, one entry a change; also what wakes the readers
    :signals    STREAM of rollback requests from outside
    :ops        ZSET op_id by rev: a retried write is answered with its first revision
    :ack:<replica>  HASH with a time to live, and :members, a ZSET by when each reported, 0 where it left
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

import msgspec

from gateway.control import redis_scripts
from gateway.control.chain import encode_changes, told_sha256
from gateway.control.member import FADES_S, LOST_S, AppliedClock, lost
from gateway.control.redis_address import parse_address
from gateway.control.redis_connection import CALL_TIMEOUT_S, RedisConnections
from gateway.control.redis_durability import durable
from gateway.control.redis_ledger import read_ledger
from gateway.control.redis_values import (
    decode_document,
    fields,
    history_record,
    in_force,
    member_from,
    text,
    tombstone_head,
)
from gateway.control.redis_watch import DoneWith, news
from gateway.control.store import (
    Author,
    Changes,
    Committed,
    Conflict,
    HistoryRecord,
    Ledger,
    Member,
    Signal,
    StoreBehind,
    StoreUnavailable,
)
from gateway.routing.documents import Documents
from gateway.routing.state import DenyKey, InForce, Revision, State, encode_state, state_sha256

_HEAD = (b"epoch", b"rev", b"sha256", b"commit_us", b"base", b"head")
"""What the script READ answers first."""


def _jitter() -> float:
    return random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing


class RedisStore:
    """A `Store` in Redis. `read` also raises `StateError` where the document is damaged.

    Constructing it connects to nothing. Raises `ValueError` for an unusable URL or namespace.
    """

    shared = True

    def __init__(
        self, url: str, namespace: str, replica: str, *, jitter: Callable[[], float] = _jitter
    ) -> None:
        if not namespace or any(sign in namespace for sign in "{}*?[]^\\ ") or not namespace.isprintable():
            raise ValueError(f"namespace {namespace[:80]!r} must be printable, without braces and wildcards")
        self._connections = RedisConnections(parse_address(url))
        self._replica = replica
        self._jitter = jitter
        self._prefix = f"{{turnout:{namespace}}}:"
        self._documents = Documents()
        self._document = ("none", 0, State())
        """The last one that was read, with its digest and its length in bytes."""
        self._applied = AppliedClock()
        self._done = DoneWith()
        self._newest = Revision(0, 0)
        """That was read or written here: a primary that lacks it came by a fail-over that lost it."""

    @property
    def heard(self) -> float:
        return self._connections.heard

    async def read(self) -> InForce | None:
        sha256, length, state = self._document
        keys = [self._key("state"), self._key("deny")]
        answer = await self._connections.script(redis_scripts.READ, keys, [sha256, length])
        values, denies, document = answer
        head = {name: value for name, value in zip(_HEAD, values, strict=True) if value is not None}
        if not head and document is None:
            return None
        if document is None and head.get(b"sha256") == sha256.encode():
            held = in_force(head, fields(denies), lambda: state)
        else:

            def decode() -> State:
                return decode_document(self._documents, document, head.get(b"sha256"))

            held = await asyncio.to_thread(in_force, head, fields(denies), decode)
            self._document = text(head[b"sha256"]), len(document), held.state
        self._newest = max(self._newest, held.revision)
        return held

    async def put(self, state: State, expect: Revision, author: Author, changes: Changes) -> Committed:
        doc = encode_state(state)
        return await self._commit(
            redis_scripts.PUT,
            author,
            changes,
            [str(expect.epoch), str(expect.rev), doc, state_sha256(doc)],
        )

    async def restore(
        self, held: InForce, expect: Revision, author: Author, changes: Changes, *, known_epoch: int = 0
    ) -> Committed:
        own = self._beginning("settle", held, expect, known_epoch)
        return await self._commit(redis_scripts.RESTORE, author, changes, own)

    async def carry_over(
        self, held: InForce, expect: Revision, author: Author, changes: Changes, *, known_epoch: int = 0
    ) -> Committed | None:
        own = self._beginning("carry over", held, expect, known_epoch)
        done = await self._commit(redis_scripts.RESTORE, author, changes, own)
        return None if done == expect else done

    def _beginning(self, why: str, held: InForce, expect: Revision, known_epoch: int) -> list[str | bytes]:
        epoch = str(max(known_epoch, held.revision.epoch))
        own: list[str | bytes] = [why, str(expect.epoch), str(expect.rev), epoch, str(held.revision)]
        own += [held.state.encoded, held.state.sha256, self._done.id]
        for key, deny in held.denies.items():
            own += [str(key), msgspec.json.encode(msgspec.structs.replace(deny, rev=1))]
        return own

    async def deny(self, denies: Mapping[DenyKey, str], author: Author, changes: Changes) -> Committed:
        pairs: list[str | bytes] = []
        for key, version in denies.items():
            pairs += [str(key), tombstone_head(version, author)]
        return await self._commit(redis_scripts.DENY, author, changes, pairs)

    async def undeny(self, keys: Sequence[DenyKey], author: Author, changes: Changes) -> Committed:
        (now,) = await self._connections.call(["TIME"])
        until_us = int(now[0]) * 1_000_000 + int(now[1]) + int(CALL_TIMEOUT_S * 1_000_000)
        own = [str(until_us), *(str(key) for key in keys)]
        return await self._commit(redis_scripts.UNDENY, author, changes, own)

    async def reject(self, author: Author, error: str) -> None:
        reason = f"{author.reason} (refused: {error})" if author.reason else f"refused: {error}"
        await self._commit(redis_scripts.REJECT, msgspec.structs.replace(author, reason=reason), (), [])

    async def known(self, op_id: str) -> bool:
        (rank,) = await self._connections.call(["ZSCORE", self._key("ops"), op_id])
        return rank is not None

    async def history(self, limit: int = 100) -> list[HistoryRecord]:
        if limit < 1:
            return []
        command = ["XREVRANGE", self._key("log"), "+", "-", "COUNT", limit]
        (entries,) = await self._connections.call(command)
        records = (history_record(fields(flat)) for _, flat in entries)
        return [record for record in records if record is not None]

    async def ledger(self) -> Ledger:
        return await read_ledger(self._connections, self._key("state"), self._key("log"))

    async def watch(self) -> AsyncGenerator[list[Signal], None]:
        async with (
            self._connections.waiting_line() as line,
            aclosing(news(line, self._key, self._done, self._jitter)) as found,
        ):
            while True:
                with self._connections.mapped():
                    signals, compared = await anext(found)
                    if compared:
                        await self._connections.see_that_it_leads(line)
                yield signals

    async def seen(self, signal_id: str) -> None:
        keys = [self._key("state"), self._key("signals")]
        cursor = await self._connections.script(redis_scripts.SEEN, keys, [signal_id])
        # A store that was emptied has none, and this process keeps it for the one that comes after.
        self._done.id = cursor or signal_id.encode()

    async def report(self, member: Member) -> int:
        values = msgspec.structs.asdict(member)
        del values["applied_us"]
        pairs = [str(part) for pair in values.items() for part in pair]
        applied_us = int(
            await self._connections.script(
                redis_scripts.REPORT,
                [self._key(f"ack:{member.replica}"), self._key("members")],
                [member.replica, LOST_S, self._applied.known_us(member), *pairs],
            )
        )
        self._applied.keep(member, applied_us)
        return applied_us

    async def leave(self) -> None:
        # Long ago, which needs no right that a report does not need: gone, and not lost.
        await self._connections.call(["ZADD", self._key("members"), 0, self._replica])

    async def members(self) -> list[Member]:
        async with self._connections.line() as line:
            all_of_them = ["ZRANGEBYSCORE", self._key("members"), "-inf", "+inf", "WITHSCORES"]
            now, scored = await line.call(["TIME"], all_of_them)
            now_us = int(now[0]) * 1_000_000 + int(now[1])
            silent_s = {text(name): (now_us - float(us)) / 1e6 for name, us in fields(scored).items()}
            names = [name for name, seconds in silent_s.items() if seconds <= LOST_S]
            found = await line.call(*(["HGETALL", self._key(f"ack:{name}")] for name in names))
        reports = {name: member_from(fields(flat)) for name, flat in zip(names, found, strict=True)}
        return [
            member if silent_s[name] <= FADES_S else lost(member, int(silent_s[name]))
            for name, member in reports.items()
            if member is not None
        ]

    async def aclose(self) -> None:
        await self._connections.aclose()

    def _key(self, name: str) -> str:
        return self._prefix + name

    async def _commit(
        self, script: str, author: Author, changes: Changes, own: Sequence[str | bytes]
    ) -> Committed:
        keys = [self._key(name) for name in ("state", "deny", "log", "ops", "signals")]
        encoded = encode_changes(changes)
        told = told_sha256(author.op_id, author.actor, author.reason, encoded)
        arguments = [author.op_id, author.actor, author.reason, told.encode() + encoded]
        async with self._connections.line() as line:
            newest = str(self._newest)
            word, epoch, rev = await line.script(script, keys, [*arguments, line.life, newest, *own])
            revision = Revision(int(epoch), int(rev))
            if word == b"conflict":
                raise Conflict(revision)
            if word == b"late":
                raise StoreUnavailable(f"Redis at {self._connections.address.masked}: it took too long")
            if word == b"behind":
                raise StoreBehind(f"after a fail-over the store is at revision {revision}, before {newest}")
            # On the same connection: a server knows of each what it has written last.
            kept = await durable(line, self._connections) if word == b"done" else None
        self._newest = max(self._newest, revision)
        return Committed(*revision, durable=kept)

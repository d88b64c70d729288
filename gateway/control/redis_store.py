"""The shared store: the state in Redis or Valkey, for any number of replicas.

Keys, under one hash tag so that they share a slot: `{turnout:<namespace>}` and

    :state      HASH epoch, rev, doc, sha256, op_id, actor, reason, commit_us, signals_id, base
    :deny       HASH route|digest → {version, rev, op_id, actor, reason, us}
    :log        STREAM, one entry a change; also what wakes the readers
    :signals    STREAM of rollback requests from outside
    :ops        ZSET op_id by rev: a retried write is answered with its first revision
    :ack:<replica>  HASH with a time to live, and :members, a ZSET by the server's time
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from gateway.control import redis_scripts
from gateway.control.member import FADES_S, AppliedClock
from gateway.control.redis_connection import RedisAddress
from gateway.control.redis_values import history_record, in_force, member_from, signal, text, tombstone_head
from gateway.control.store import Author, Changes, Conflict, HistoryRecord, Member, Signal, StoreUnavailable
from gateway.routing.documents import Documents
from gateway.routing.state import DenyKey, InForce, Revision, State, encode_state, state_sha256

CALL_TIMEOUT_S = 2.0
BLOCK_MS = 500
WATCH_TIMEOUT_S = 1.5
"""An empty answer after `BLOCK_MS` proves that the server lives; none by now, that it does not."""
COMPARE_S = 5.0
"""How often `watch` yields without a cause. A reader whose cursor is ahead of the server (a promoted stale
replica) would wait silently for ever."""
SIGNALS_AT_ONCE = 100


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
        self._address = RedisAddress(url)
        self._replica = replica
        self._jitter = jitter
        self._prefix = f"{{turnout:{namespace}}}:"
        self._redis = self._address.connect(timeout_s=CALL_TIMEOUT_S)
        self._watching: set[Redis] = set()
        self._documents = Documents()
        self._applied = AppliedClock()
        # The last signal that is known to be done with: an emptied store does not say it.
        self._done = ""

    async def read(self) -> InForce | None:
        with self._address.mapped():
            # MULTI: the document and the denies of one moment.
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(self._key("state"))
                pipe.hgetall(self._key("deny"))
                state, denies = await pipe.execute()
        return await asyncio.to_thread(in_force, state, denies, self._documents) if state else None

    async def put(self, state: State, expect: Revision, author: Author, changes: Changes) -> Revision:
        doc = encode_state(state)
        return await self._commit(
            redis_scripts.PUT,
            author,
            changes,
            [str(expect.epoch), str(expect.rev), doc, state_sha256(doc)],
        )

    async def restore(
        self, held: InForce, expect: Revision, author: Author, changes: Changes, *, known_epoch: int = 0
    ) -> Revision:
        epoch = str(max(known_epoch, held.revision.epoch))
        own: list[str | bytes] = [str(expect.epoch), str(expect.rev), epoch, str(held.revision)]
        own += [held.state.encoded, held.state.sha256, self._done]
        for key, deny in held.denies.items():
            own += [str(key), msgspec.json.encode(msgspec.structs.replace(deny, rev=1))]
        return await self._commit(redis_scripts.RESTORE, author, changes, own)

    async def deny(self, denies: Mapping[DenyKey, str], author: Author, changes: Changes) -> Revision:
        pairs: list[str | bytes] = []
        for key, version in denies.items():
            pairs += [str(key), tombstone_head(version, author)]
        return await self._commit(redis_scripts.DENY, author, changes, pairs)

    async def undeny(self, keys: Sequence[DenyKey], author: Author, changes: Changes) -> Revision:
        return await self._commit(redis_scripts.UNDENY, author, changes, [str(key) for key in keys])

    async def reject(self, author: Author, error: str) -> None:
        reason = f"{author.reason} (refused: {error})" if author.reason else f"refused: {error}"
        await self._commit(redis_scripts.REJECT, author, (), [reason])

    async def history(self, limit: int = 100) -> list[HistoryRecord]:
        if limit < 1:
            return []
        with self._address.mapped():
            entries: Any = await self._redis.xrevrange(self._key("log"), count=limit)
        records = (history_record(fields) for _, fields in entries)
        return [record for record in records if record is not None]

    async def watch(self) -> AsyncGenerator[list[Signal], None]:
        redis = self._address.connect(timeout_s=WATCH_TIMEOUT_S)
        self._watching.add(redis)
        try:
            while True:
                # The ends first, the signals after: what comes in between is seen twice, never missed.
                ends = await self._ends(redis)
                signals = await self._unseen(redis, ends[self._key("signals")])
                yield signals
                await self._wait(redis, ends)
        finally:
            self._watching.discard(redis)
            with suppress(RedisError, OSError):
                await redis.aclose()

    async def seen(self, signal_id: str) -> None:
        self._done = signal_id
        await self._run(redis_scripts.SEEN, [self._key("state")], [signal_id])

    async def report(self, member: Member) -> None:
        ack, members = self._key(f"ack:{member.replica}"), self._key("members")
        now_us = await self._now_us()
        fields: Any = msgspec.structs.asdict(self._applied.stamp(member, now_us))
        with self._address.mapped():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(ack, mapping=fields)
                pipe.expire(ack, FADES_S)
                pipe.zadd(members, {member.replica: now_us})
                # What has not reported for an hour is not only away.
                pipe.zremrangebyscore(members, "-inf", now_us - 3_600_000_000)
                await pipe.execute()

    async def leave(self) -> None:
        with self._address.mapped():
            # Long ago, which needs no right that a report does not need.
            await self._redis.zadd(self._key("members"), {self._replica: 0})

    async def members(self) -> list[Member]:
        since_us = await self._now_us() - FADES_S * 1_000_000
        with self._address.mapped():
            names: Any = await self._redis.zrangebyscore(self._key("members"), since_us, "+inf")
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(self._key(f"ack:{text(name)}"))
                found = await pipe.execute()
        live = (member_from(fields) for fields in found)
        return [member for member in live if member is not None]

    async def aclose(self) -> None:
        with suppress(RedisError, OSError):
            for redis in (self._redis, *self._watching):
                await redis.aclose()

    def _key(self, name: str) -> str:
        return self._prefix + name

    async def _commit(
        self, script: str, author: Author, changes: Changes, own: Sequence[str | bytes]
    ) -> Revision:
        keys = [self._key(name) for name in ("state", "deny", "log", "ops", "signals")]
        encoded = msgspec.json.encode(list(changes))
        arguments = [author.op_id, author.actor, author.reason, encoded, *own]
        word, epoch, rev = await self._run(script, keys, arguments)
        revision = Revision(int(epoch), int(rev))
        if word == b"conflict":
            raise Conflict(revision)
        return revision

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes]) -> Any:
        sha = redis_scripts.sha1(script)
        with self._address.mapped():
            try:
                return await self._redis.evalsha(sha, len(keys), *keys, *arguments)
            except NoScriptError:
                # Also after every restart of the server: scripts are not kept.
                return await self._redis.eval(script, len(keys), *keys, *arguments)

    async def _now_us(self) -> int:
        with self._address.mapped():
            seconds, micros = await self._redis.time()
        return int(seconds) * 1_000_000 + int(micros)

    async def _ends(self, redis: Redis) -> dict[Any, Any]:
        """For each stream the id after which something is new."""
        ends: dict[Any, Any] = {}
        with self._address.mapped():
            for name in (self._key("log"), self._key("signals")):
                last = await redis.xrevrange(name, count=1)
                ends[name] = last[0][0] if last else b"0-0"
        return ends

    async def _unseen(self, redis: Redis, end: bytes) -> list[Signal]:
        with self._address.mapped():
            done = await redis.hget(self._key("state"), "signals_id")
            # An emptied store has lost its cursor: then from where this process knows to be done.
            self._done = text(done) if done is not None else self._done or text(end)
            entries: Any = await redis.xrange(
                self._key("signals"), min=f"({self._done}", count=SIGNALS_AT_ONCE
            )
        return [signal(id_, fields) for id_, fields in entries if fields]

    async def _wait(self, redis: Redis, ends: dict[Any, Any]) -> None:
        until = time.monotonic() + COMPARE_S * self._jitter()
        while time.monotonic() < until:
            with self._address.mapped():
                if await redis.xread(ends, count=1, block=BLOCK_MS):
                    return


__all__ = ["RedisStore", "StoreUnavailable"]

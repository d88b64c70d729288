"""The counts of exposure in Redis or Valkey, for any number of replicas."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from gateway.control import exposure_scripts
from gateway.control.exposure_store import Ask, Found
from gateway.control.redis_address import parse_address
from gateway.control.redis_connection import RedisConnections, RedisLine
from gateway.control.redis_durability import durable
from gateway.control.redis_scripts import sha1
from gateway.control.redis_values import text
from gateway.control.store import StoreUnavailable
from gateway.routing.exposure import Count
from gateway.routing.state import DenyKey

AT_ONCE = 200
"""Scripts of one round trip."""
COPIED_MS = 200
"""How long a copy of what was given may take to reach a replica of the server, where it has any."""


class RedisExposure:
    """An `ExposureStore` in Redis. Constructing it connects to nothing."""

    def __init__(self, url: str, namespace: str, replica: str) -> None:
        self._connections = RedisConnections(parse_address(url))
        self._prefix = f"{{turnout:{namespace}}}:"
        self._replica = replica

    async def ask(self, asks: Mapping[DenyKey, Ask]) -> dict[DenyKey, Found]:
        found: dict[DenyKey, Found] = {}
        pending = iter(asks.items())
        while some := list(islice(pending, AT_ONCE)):
            calls = [(key, self._arguments(ask)) for key, ask in some]
            wants = any(ask.requests or ask.keys for _, ask in some)
            answers = await self._run(exposure_scripts.ASK, calls, copied=wants)
            for (key, _), answer in zip(some, answers, strict=True):
                if answer[0] == b"empty":
                    raise StoreUnavailable(f"Redis at {self._connections.address.masked} holds no state")
                found[key] = _found(answer)
        return found

    async def renew(self, keys: Collection[DenyKey]) -> None:
        await self._run(exposure_scripts.RENEW, [(key, []) for key in keys])

    async def restart(self, numbers: Mapping[DenyKey, int]) -> None:
        calls = [(key, [number, secrets.token_hex(8)]) for key, number in numbers.items()]
        await self._run(exposure_scripts.RESTART, calls)

    async def aclose(self) -> None:
        await self._connections.aclose()

    def _arguments(self, ask: Ask) -> list[Any]:
        seen = ask.seen or Count(life="", number=0)
        return [
            *(self._replica, seen.life, seen.number, seen.requests, seen.keys),
            *(ask.limit, ask.requests, int(ask.ahead), ask.errors, ask.keys_limit),
            *(secrets.token_hex(8), *ask.keys),
        ]

    async def _run(
        self, script: str, calls: Sequence[tuple[DenyKey, list[Any]]], *, copied: bool = False
    ) -> list[Any]:
        """The answers in order. With `copied` none is given that a fail-over would forget."""
        full = [[3, *self._keys(key), *arguments] for key, arguments in calls]
        async with self._connections.line() as line:
            answers = await line.attempt(*(["EVALSHA", sha1(script), *each] for each in full))
            # Also after every restart of the server: scripts are not kept.
            unknown = [index for index, each in enumerate(answers) if isinstance(each, NoScriptError)]
            if unknown:
                again = await line.attempt(*(["EVAL", script, *full[index]] for index in unknown))
                for index, answer in zip(unknown, again, strict=True):
                    answers[index] = answer
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
            if copied and not await self._is_copied(line):
                raise StoreUnavailable(
                    f"Redis at {self._connections.address.masked}: its replicas have not confirmed what was given"
                )
        return answers

    async def _is_copied(self, line: RedisLine) -> bool:
        """On the connection that wrote: WAIT asks for what was written by its own."""
        if self._connections.address.service:
            return await durable(line, self._connections) is True
        (role,) = await line.call(["ROLE"])
        if not role[2]:
            return True  # there is nothing that could be promoted
        (reached,) = await line.call(["WAIT", 1, COPIED_MS])
        return bool(reached)

    def _keys(self, key: DenyKey) -> Iterator[str]:
        yield self._prefix + "state"
        yield f"{self._prefix}exposure:{key}"
        yield f"{self._prefix}exposed:{key}"


def _found(answer: Any) -> Found:
    word, life, number, given, errors, keys, renewed_us, now_us, given_now, *admitted = answer
    count = None
    if word == b"found":
        count = Count(
            life=text(life),
            number=number,
            requests=given,
            errors=errors,
            keys=keys,
            renewed_us=int(renewed_us),
        )
    return Found(count, given_now, tuple(admitted), int(now_us))

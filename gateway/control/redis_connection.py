"""Connections to Redis that fail fast, hold one call each, and whose errors name no secrets."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple

import redis.exceptions as errors
from redis.asyncio.connection import AbstractConnection

from gateway.control import redis_scripts
from gateway.control.redis_address import Host, RedisAddress
from gateway.control.store import StoreRefused, StoreUnavailable

CALL_TIMEOUT_S = 1.5
"""Of a whole call, the making of its connection included: a frozen server is noticed within 2 s."""
SENTINEL_TIMEOUT_S = 0.5
SENTINELS_LAG_S = 10.0
"""How long sentinels that name an older primary than was named before are taken to be late."""
CONNECTIONS = 8
"""At most at once, beside those that wait for news."""

Command = Sequence[Any]
"""Its name and its arguments: text, bytes or numbers."""

# The first that matches; what an operator can do about it.
_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (errors.BusyLoadingError, "it is still loading its data"),
    (errors.AuthenticationError, "it refused the user name or the password"),
    (errors.AuthorizationError, "it refused the user name or the password"),
    (errors.NoPermissionError, "its ACL does not allow this user what Turnout needs"),
    (errors.ReadOnlyError, "it is a read-only replica: give the address of the primary"),
    (errors.OutOfMemoryError, "its memory is full (maxmemory)"),
    (errors.TimeoutError, "it did not answer in time"),
    (TimeoutError, "it did not answer in time"),
    (errors.ConnectionError, "the connection failed"),
)
# Those that the driver has no class for, by the word that they begin with.
_WORDS = {
    # Of a command inside of a script, where the server has no word of its own for it.
    "can't run this command": "its ACL does not allow this user what Turnout needs",
    "WRONGTYPE": "a key of Turnout's holds something else: delete it, and what is lost by that comes back "
    "with turnout restore",
    "MISCONF": "it cannot save its data",
    "NOREPLICAS": "too few of its own replicas are connected",
}


class Primary(NamedTuple):
    """What a sentinel says of its service; of two, the greater one is the newer."""

    config_epoch: int
    host: Host
    replicas: int
    """How many it knows, whether they are up or not."""


class RedisLine:
    """One connection. A call that failed or was cancelled half-way leaves answers behind, which would be
    taken for the next call's: so it is closed then, and never used again."""

    def __init__(self, connection: AbstractConnection, primary: Primary | None = None) -> None:
        self._connection = connection
        self.primary = primary
        """What the sentinels said of where it leads; None without Sentinel."""
        self.broken = False
        self.heard = -math.inf

    @property
    def life(self) -> int:
        """Which of all primaries this is, by the sentinels' count of fail-overs; 0 without Sentinel."""
        return self.primary.config_epoch if self.primary else 0

    async def call(self, *commands: Command) -> list[Any]:
        """The answers, in one round trip. Raises the first error of redis-py that is among them."""
        answers = await self.attempt(*commands)
        for answer in answers:
            if isinstance(answer, errors.ResponseError):
                raise answer
        return answers

    async def attempt(self, *commands: Command) -> list[Any]:
        """As `call`, with what the server refuses in the place of its answer."""
        whole, self.broken = self.broken, True
        assert not whole, "this connection is closed"
        await self._connection.send_packed_command(
            self._connection.pack_commands(commands), check_health=False
        )
        answers = []
        for _ in commands:
            try:
                answers.append(await self._connection.read_response())
            except errors.ResponseError as error:
                answers.append(error)
            self.heard = time.monotonic()
        self.broken = False
        return answers

    async def script(self, script: str, keys: Sequence[str], arguments: Command) -> Any:
        rest = [len(keys), *keys, *arguments]
        try:
            (answer,) = await self.call(["EVALSHA", redis_scripts.sha1(script), *rest])
        except errors.NoScriptError:
            # Also after every restart of the server and every fail-over: scripts are not kept.
            (answer,) = await self.call(["EVAL", script, *rest])
        return answer

    async def usable(self) -> bool:
        """Whether the server has neither closed it nor sent what nobody asked for."""
        try:
            return not self.broken and not await self._connection.can_read()
        except (errors.RedisError, OSError):
            return False

    async def close(self) -> None:
        # Where an answer is outstanding nobody waits for the other side's farewell, which may be frozen.
        abrupt, self.broken = self.broken, True
        with suppress(errors.RedisError, OSError, TimeoutError):
            await self._connection.disconnect(nowait=abrupt)


class RedisConnections:
    """Connections to the primary, wherever it is now.

    After any error of a connection all of them are dropped, and the next call asks the sentinels anew. It
    never tries a call again: who calls knows whether that is safe.
    """

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._idle: list[RedisLine] = []
        self._lines: set[RedisLine] = set()
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._heard = time.monotonic()
        self._closed = False
        self._life = 0
        """Of the newest primary that any sentinel has named."""
        self._older_since: float | None = None
        """Since when they name none but an older one."""

    @property
    def heard(self) -> float:
        """When the server answered last, by the monotonic clock; at first, when this was made."""
        return max([self._heard, *(line.heard for line in self._lines)])

    @asynccontextmanager
    async def line(self) -> AsyncGenerator[RedisLine, None]:
        """A connection for some calls in a row, within `CALL_TIMEOUT_S`. Raises `StoreUnavailable`."""
        with self.mapped():
            async with asyncio.timeout(CALL_TIMEOUT_S), self._places:
                line = await self._take()
                try:
                    yield line
                    if line.life < self._life:
                        # It was frozen, and answers now by what it had: not by what is in force.
                        raise errors.ConnectionError("it was deposed meanwhile")
                except errors.RedisError:
                    # Also what the server refuses: it may be a primary no longer.
                    line.broken = True
                    raise
                finally:
                    await self._give_back(line)

    async def call(self, *commands: Command) -> list[Any]:
        """As `RedisLine.call`, on any connection. Raises `StoreUnavailable`."""
        async with self.line() as line:
            return await line.call(*commands)

    async def script(self, script: str, keys: Sequence[str], arguments: Command) -> Any:
        async with self.line() as line:
            return await line.script(script, keys, arguments)

    @asynccontextmanager
    async def waiting_line(self) -> AsyncGenerator[RedisLine, None]:
        """A connection of its own, for calls that block; each call within a time-out of the caller's."""
        with self.mapped():
            async with asyncio.timeout(CALL_TIMEOUT_S):
                line = await self._open()
        try:
            yield line
        except BaseException:
            line.broken = True
            raise
        finally:
            await self._give_back(line)

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Turns every error of the driver into `StoreUnavailable`."""
        try:
            yield
        except (errors.RedisError, OSError, TimeoutError) as error:
            kind = StoreRefused if isinstance(error, errors.ResponseError) else StoreUnavailable
            raise kind(f"Redis at {self.address.masked}: {_meaning(error)}") from error

    async def primary(self) -> Primary | None:
        """What the sentinels say where the primary is; None where the address names one server.

        Asks all of them at once: of those that answer, the one with the newest configuration is right, and
        one that was cut off from the others, or that is frozen, is not waited for.
        """
        if not self.address.service:
            return None
        asked = [asyncio.create_task(self._ask(sentinel)) for sentinel in self.address.sentinels]
        answers: list[Primary] = []
        failed: Exception | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    answers.append(await answer)
                except (errors.RedisError, OSError, TimeoutError) as error:
                    failed = error
                if len(answers) > len(asked) // 2 and max(answers).config_epoch >= self._life:
                    break
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not answers:
            raise errors.ConnectionError(f"no sentinel knows where {self.address.service} is: {failed}")
        newest = max(answers)
        self._see_that_it_is_newest(newest)
        return newest

    def _see_that_it_is_newest(self, primary: Primary) -> None:
        """Raises `ConnectionError` where a newer one was named before, and may only be unknown to these sentinels.

        Not for ever: sentinels that were set up anew count from 0.
        """
        now = time.monotonic()
        if primary.config_epoch < self._life:
            self._older_since = self._older_since or now
            if now - self._older_since < SENTINELS_LAG_S:
                raise errors.ConnectionError(
                    f"the sentinels name a primary of {self.address.service} that was deposed"
                )
        self._life, self._older_since = primary.config_epoch, None

    async def see_that_it_leads(self, line: RedisLine) -> None:
        """Breaks a connection whose server was deposed. It does not know of that for up to ten seconds, and
        goes on answering meanwhile. Raises the driver's `ConnectionError`."""
        try:
            primary = await self.primary()
        except errors.RedisError:
            return  # without sentinels there is no fail-over either
        if primary is not None and line.primary is not None and primary[:2] != line.primary[:2]:
            line.broken = True
            raise errors.ConnectionError(f"{self.address.service} has another primary now")

    async def aclose(self) -> None:
        """Calls that are under way fail, and what is opened later is closed after its call."""
        self._closed = True
        await self._discard(*self._lines)

    async def _ask(self, sentinel: Host) -> Primary:
        line = RedisLine(self.address.sentinel(sentinel))
        try:
            async with asyncio.timeout(SENTINEL_TIMEOUT_S):
                # In the midst of a fail-over only the first names the new one, and both know that it has begun.
                address, answer = await line.call(
                    ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.address.service],
                    ["SENTINEL", "MASTER", self.address.service],
                )
        finally:
            line.broken = True
            await self._discard(line)
        known = {bytes(name): value for name, value in zip(answer[::2], answer[1::2], strict=True)}
        host = address[0].decode(), int(address[1])
        return Primary(int(known[b"config-epoch"]), host, int(known[b"num-slaves"]))

    async def _take(self) -> RedisLine:
        while self._idle:
            line = self._idle.pop()
            if line.life >= self._life and await line.usable():
                return line
            line.broken = True
            await self._give_back(line)
        return await self._open()

    async def _open(self) -> RedisLine:
        primary = await self.primary()
        line = RedisLine(self.address.server(primary.host if primary else None), primary)
        self._lines.add(line)
        try:
            if primary is not None:
                # A sentinel may be the last to hear of a fail-over.
                (role,) = await line.call(["ROLE"])
                if role[0] != b"master":
                    at = ":".join(map(str, primary.host))
                    raise errors.ConnectionError(f"{at} is no primary any more, or not yet")
            return line
        except BaseException:
            await self._discard(line)
            raise

    async def _give_back(self, line: RedisLine) -> None:
        if not line.broken and not self._closed:
            self._idle.append(line)
            return
        # The others lead to the same server: each would cost whoever takes it a time-out.
        idle, self._idle = self._idle, []
        for one in (line, *idle):
            one.broken = True
        await self._discard(line, *idle)

    async def _discard(self, *lines: RedisLine) -> None:
        self._heard = self.heard
        for line in lines:
            self._lines.discard(line)
            await line.close()
        # The loop closes the sockets in its next round.
        await asyncio.sleep(0)


def _meaning(error: Exception) -> str:
    for kind, text in _MEANINGS:
        if isinstance(error, kind):
            return f"{text} ({_brief(error)})"
    for word, text in _WORDS.items():
        if word in str(error):
            return f"{text} ({_brief(error)})"
    return f"it refused: {_brief(error)}"


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]

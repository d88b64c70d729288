"""The counts of exposure in a local file, beside the embedded store's."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from gateway.control import state_file
from gateway.control.exposure_store import SHARE, SHARE_AHEAD, Ask, Found
from gateway.control.store import StoreUnavailable
from gateway.routing.exposure import Count, follows
from gateway.routing.state import DenyKey

FILE_NAME, LOCK_NAME = "exposure.json", "exposure.lock"
T = TypeVar("T")


class Counted(msgspec.Struct, kw_only=True):
    """One version's count, as it lies in the file."""

    life: str
    number: int
    renewed_us: int
    given: int = 0
    errors: dict[str, int] = {}
    keys: set[bytes] = set()

    def count(self) -> Count:
        return Count(
            life=self.life,
            number=self.number,
            requests=self.given,
            errors=sum(self.errors.values()),
            keys=len(self.keys),
            renewed_us=self.renewed_us,
        )


All = dict[str, Counted]
_ALL = msgspec.json.Decoder(All)
"""Made before there are threads: see `gateway.routing.state`."""


def step(counted: Counted, ask: Ask, replica: str, now_us: int) -> Found:
    """Gives what may be given, and notes it in `counted`."""
    if not follows(ask.seen, counted.count()):
        return Found(None, 0, (), now_us)
    if ask.errors and (ask.seen is None or ask.seen.number == counted.number):
        counted.errors[replica] = max(ask.errors, counted.errors.get(replica, 0))
    left, given = ask.limit - counted.given, 0
    if ask.requests and left > 0:
        part = left // SHARE_AHEAD if ask.ahead else max(1, left // SHARE)
        given = min(ask.requests, part)
        counted.given += given
    admitted = []
    for key in ask.keys:
        if key in counted.keys or len(counted.keys) < ask.keys_limit:
            counted.keys.add(key)
            admitted.append(key)
    return Found(counted.count(), given, tuple(admitted), now_us)


class FileExposure:
    """An `ExposureStore` in one directory, safe between processes of one machine by `flock`."""

    def __init__(
        self,
        directory: Path,
        replica: str,
        *,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._path = directory / FILE_NAME
        self._replica = replica
        self._clock_us = clock_us
        self._turn = asyncio.Lock()

    async def ask(self, asks: Mapping[DenyKey, Ask]) -> dict[DenyKey, Found]:
        def change(counts: All) -> dict[DenyKey, Found]:
            return {key: self._ask_one(counts, key, ask) for key, ask in asks.items()}

        return await self._change(change)

    async def renew(self, keys: Collection[DenyKey]) -> None:
        def change(counts: All) -> None:
            for key in keys:
                if str(key) in counts:
                    counts[str(key)].renewed_us = self._clock_us()

        await self._change(change)

    async def restart(self, numbers: Mapping[DenyKey, int]) -> None:
        def change(counts: All) -> None:
            for key, number in numbers.items():
                held = counts.get(str(key))
                if held is None and not number:
                    continue
                counts[str(key)] = Counted(
                    life=held.life if held is not None else secrets.token_hex(8),
                    number=max(held.number if held is not None else 0, number) + 1,
                    renewed_us=self._clock_us(),
                )

        await self._change(change)

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    def _ask_one(self, counts: All, key: DenyKey, ask: Ask) -> Found:
        counted = counts.get(str(key))
        if counted is None:
            if ask.seen is not None:
                return Found(None, 0, (), self._clock_us())
            counted = counts[str(key)] = Counted(
                life=secrets.token_hex(8), number=1, renewed_us=self._clock_us()
            )
        return step(counted, ask, self._replica, self._clock_us())

    async def _change(self, change: Callable[[All], T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(self._change_locked, change)

    def _change_locked(self, change: Callable[[All], T]) -> T:
        try:
            with _locked(self._path.parent):
                before = self._path.read_bytes() if self._path.exists() else b"{}"
                counts = _ALL.decode(before)
                result = change(counts)
                after = msgspec.json.encode(counts, order="deterministic")
                if after != before:
                    state_file.replace(self._path, after)
                return result
        except OSError as error:
            raise StoreUnavailable(f"the counts in {self._path} cannot be used: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            # Not set aside: to begin anew would expose anew all that was limited.
            raise StoreUnavailable(
                f"the counts in {self._path} are damaged ({error}): put a copy back, or remove the file to "
                "begin every count anew"
            ) from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # releases the lock too

"""One process at a time in a directory, by `flock`."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.control.store import StoreUnavailable

LOCK_NAME = "lock"
LOCK_TIMEOUT_S = 5.0
LOCK_RETRY_S = 0.005


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes the directory where there is none. Raises `StoreUnavailable` after `LOCK_TIMEOUT_S`, and `OSError`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(handle, directory)
        yield
    finally:
        os.close(handle)  # releases the lock too


def _lock(handle: int, directory: Path) -> None:
    until = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise StoreUnavailable(
                    f"another process has held the lock {directory / LOCK_NAME} for {LOCK_TIMEOUT_S:g} s"
                ) from None
            time.sleep(LOCK_RETRY_S)
        else:
            return

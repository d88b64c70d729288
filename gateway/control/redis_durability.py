"""Whether a change that was just made outlives the server that took it."""

from __future__ import annotations

from redis.exceptions import RedisError, ResponseError

from gateway.control.redis_address import RedisAddress
from gateway.control.redis_connection import RedisLine

WAIT_MS = 250
"""Long for a disk or a replica nearby; less than what a rollback waits for the store (`STORE_GRACE_S`)."""


async def durable(line: RedisLine, address: RedisAddress) -> bool | None:
    """As `Committed.durable`, of all that was written on this connection. Raises no error of the server's.

    Under Sentinel only a replica's memory counts, because a fail-over leaves the primary's disk behind;
    elsewhere the disk alone is enough, because the same server comes back with it.
    """
    try:
        on_disk, replicas = await _state_of(line)
        if on_disk and not address.service:
            return True
        if not replicas:
            return False if address.service else on_disk
        (reached,) = await line.call(["WAIT", 1, WAIT_MS])
        return bool(reached >= 1)
    except ResponseError:
        return None
    except (RedisError, OSError):
        # The change is made, and its server may be lost with it.
        return False


async def _state_of(line: RedisLine) -> tuple[bool | None, int]:
    """Whether the server's append-only file has it, None where it cannot say; and how many replicas it has."""
    synced, role = await line.attempt(["WAITAOF", 1, 0, WAIT_MS], ["ROLE"])
    if isinstance(role, ResponseError):
        raise role
    on_disk: bool | None = None
    if not isinstance(synced, ResponseError):
        on_disk = synced[0] >= 1
    elif "appendonly is disabled" in str(synced):
        on_disk = False
    return on_disk, len(role[2]) if role[0] == b"master" else 0

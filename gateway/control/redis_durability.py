"""Whether a change that was just made outlives the server that took it."""

from __future__ import annotations

from redis.exceptions import RedisError, ResponseError

from gateway.control.redis_connection import RedisConnections, RedisLine

WAIT_MS = 250
"""Long for a disk or a replica nearby; less than what a rollback waits for the store (`STORE_GRACE_S`)."""


async def durable(line: RedisLine, connections: RedisConnections) -> bool | None:
    """As `Committed.durable`, of all that was written on this connection. Raises no error of the server's."""
    try:
        if connections.address.service:
            return await _outlives_a_fail_over(line, connections)
        return await _outlives_a_restart(line)
    except ResponseError:
        return None
    except (RedisError, OSError):
        # The change is made, and its server may be lost with it.
        return False


async def _outlives_a_fail_over(line: RedisLine, connections: RedisConnections) -> bool:
    """The disk does not count: a fail-over leaves it behind. And all the replicas do, the dead ones too.

    A sentinel promotes by offsets that may be seconds old, and a primary that it has deposed goes on taking
    writes for seconds, with whatever replica was not led away from it yet. With one replica of two, hundreds of
    such changes were lost in a fail-over of a primary that was only slow. What all have, whoever is promoted has.
    """
    primary = await connections.primary()
    if primary is None or primary[:2] != (line.primary or ())[:2] or not primary.replicas:
        return False
    (reached,) = await line.call(["WAIT", primary.replicas, WAIT_MS])
    return bool(reached >= primary.replicas)


async def _outlives_a_restart(line: RedisLine) -> bool | None:
    """On the server's disk, or with all its replicas."""
    synced, role = await line.attempt(["WAITAOF", 1, 0, WAIT_MS], ["ROLE"])
    on_disk: bool | None = None
    if not isinstance(synced, ResponseError):
        on_disk = synced[0] >= 1
    elif "appendonly is disabled" in str(synced):
        on_disk = False
    if on_disk or isinstance(role, ResponseError) or role[0] != b"master" or not role[2]:
        return on_disk
    (reached,) = await line.call(["WAIT", len(role[2]), WAIT_MS])
    return bool(reached >= len(role[2]))

"""Signals out of the store's stream: whoever may append to it wrote them, and nothing in them is trusted."""

from __future__ import annotations

from gateway.control.authors import author
from gateway.control.redis_values import SIGNAL_BYTES
from gateway.control.store import Author, Signal
from gateway.routing.change import ChangeRefused, named_routes


def author_of(signal: Signal) -> Author:
    """The stream's id makes a signal that is read twice, or by every replica, the same one."""
    actor = signal.fields.get("actor", "") or "redis"
    return author(f"signal:{actor}", signal.fields.get("reason", ""), f"signal-{signal.id}")


def routes_of(signal: Signal) -> dict[str, str | None]:
    """The routes that it asks to roll back, each with a version or None. Raises `ChangeRefused`."""
    action = signal.fields.get("action", "")
    if action != "rollback":
        raise ChangeRefused(f"signal {signal.id}: action {action[:40]!r} is not known; known: rollback")
    for name in ("route", "version"):
        if len(signal.fields.get(name, "").encode()) >= SIGNAL_BYTES:
            # Cut in the middle of a name, which may be that of another route.
            raise ChangeRefused(
                f"signal {signal.id}: its {name} is longer than {SIGNAL_BYTES - 1} bytes: "
                "name fewer routes in one signal"
            )
    return named_routes(signal.fields.get("route", ""), signal.fields.get("version", ""))


def position(id_: str) -> tuple[int, int]:
    """Where in its stream a signal lies: the order of ids, which is not that of their text."""
    ms, _, seq = id_.partition("-")
    return int(ms) if ms.isdigit() else 0, int(seq) if seq.isdigit() else 0

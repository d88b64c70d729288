"""Which mix served at a time that has passed, as the history tells it. Pure.

Times are those of the commits, by the store's clock: each replica followed within milliseconds, or, for a
rollback that it was asked for itself, was as much ahead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.control.store import HistoryRecord
from gateway.routing.change import describe_serving, route_of
from gateway.routing.state import InForce, Revision

Serving = dict[str, Any]
"""By variant: version, weight and share, as `routing.change.summary` writes them."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history, for people."""

    revision: str
    us: int
    type: str
    actor: str
    reason: str


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What served one route then."""

    serving: Serving | None
    """None where there was no such route."""
    since: Moment | None
    """The change that brought it; None where that is older than the history."""
    until: Moment | None
    """The change that ended it; None where it still serves."""


class NotTold(LookupError):
    """The history does not reach back to that time."""


class AsOf:
    """Reads the history from its oldest line on, any number of lines at a time, and then tells of one moment."""

    def __init__(self, at_us: int, route: str | None = None) -> None:
        """`at_us`: microseconds since the epoch. Without a `route` it is about all of them."""
        self._at_us = at_us
        self._route = route
        self._oldest: HistoryRecord | None = None
        self._in_force: HistoryRecord | None = None
        self._since: dict[str, tuple[HistoryRecord, Any]] = {}
        self._until: dict[str, tuple[HistoryRecord, Any]] = {}

    def read(self, records: Iterable[HistoryRecord]) -> None:
        for record in records:
            self._oldest = self._oldest or record
            before_it = record.us <= self._at_us
            if before_it:
                self._in_force = record
            for change in record.changes:
                name = change.get("route")
                if not isinstance(name, str) or self._route not in (None, name):
                    continue
                if before_it:
                    self._since[name] = (record, change.get("after"))
                    self._until.pop(name, None)
                else:
                    self._until.setdefault(name, (record, change.get("before")))

    @property
    def revision(self) -> str:
        """That of the newest line then. Raises `NotTold`."""
        if self._oldest is None or self._in_force is None:
            begins = (
                f"begins with revision {_revision(self._oldest)}, after that time"
                if self._oldest
                else "is empty"
            )
            raise NotTold(f"the history {begins}: what served then, it does not tell")
        return _revision(self._in_force)

    def served(self, now: InForce) -> dict[str, Served]:
        """By route; those that did not exist then are left out, unless asked for by name.

        `now`: what was in force when the reading of the history began, for routes that it does not mention.
        Raises `NotTold`, and `UnknownName` for a route that neither knows.
        """
        _ = self.revision
        told = self._since.keys() | self._until.keys()
        if self._route is not None:
            if self._route not in told:
                route_of(now, self._route)
            return {self._route: self._one(self._route, describe_serving(now, {self._route} - told))}
        unchanged = describe_serving(now, now.state.routes.keys() - told)
        everything = {name: self._one(name, unchanged) for name in sorted(told | unchanged.keys())}
        return {name: served for name, served in everything.items() if served.serving is not None}

    def _one(self, name: str, unchanged: dict[str, Serving]) -> Served:
        since, until = self._since.get(name), self._until.get(name)
        told = since or until
        return Served(
            serving=told[1] if told is not None else unchanged[name],
            since=_moment(since[0]) if since else None,
            until=_moment(until[0]) if until else None,
        )


def _moment(record: HistoryRecord) -> Moment:
    return Moment(
        revision=_revision(record),
        us=record.us,
        type=record.type,
        actor=record.actor,
        reason=record.reason,
    )


def _revision(record: HistoryRecord) -> str:
    return str(Revision(record.epoch, record.rev))

"""Whether a rollback of each route would find a version that answers, in every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.control.deliver import Deliverer
from gateway.node.pool import WorkerPool
from gateway.routing.table import RouteEntry, RouteTable
from gateway.serving.heartbeat import version_token

SHOWN = 3
"""Routes that `degraded` names."""
NOTHING = "there is no earlier version to return to"


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Where the next rollback of a route leads, if anywhere."""

    version: str | None
    trouble: str
    """Why it is not ready, "" where it is."""
    leaves_open: str = ""
    """What the proof does not show."""

    @property
    def ready(self) -> bool:
        return not self.trouble


class Rollbacks:
    """Asks the workers' proofs; holds nothing but an index of the table that it saw last."""

    def __init__(self, deliverer: Deliverer, pool: WorkerPool) -> None:
        self._deliverer = deliverer
        self._pool = pool
        self._table: RouteTable = {}
        self._targets: Mapping[str, tuple[str, str]] = {}
        """Route → version for people, and its token. Routes with nothing to return to are missing."""

    def of(self, route: str) -> Rollback:
        """The route exists."""
        target = self._of_table().get(route)
        if target is None:
            return Rollback(version=None, trouble=NOTHING)
        version, token = target
        return Rollback(
            version=version, trouble=self._pool.lacking(token), leaves_open=self._pool.leaves_open(token)
        )

    def ready(self) -> dict[str, bool]:
        """By route."""
        targets = self._of_table()
        lacking = self._lacking(targets)
        return {route: route in targets and not lacking[targets[route][1]] for route in self._table}

    def degraded(self) -> list[str]:
        """In words, which routes have an earlier version that may not answer, where any worker answers at all."""
        if not self._pool.ready:
            return []
        targets = self._of_table()
        lacking = self._lacking(targets)
        found = [
            f"route {route} is not ready for a rollback to version {version}: {lacking[token]}"
            for route, (version, token) in targets.items()
            if lacking[token]
        ]
        if len(found) > SHOWN:
            found[SHOWN:] = [f"{len(found) - SHOWN} routes more are not ready for a rollback"]
        return found

    def document(self, route: str) -> dict[str, Any]:
        """For the admin API."""
        rollback = self.of(route)
        return {
            "version": rollback.version,
            "ready": rollback.ready,
            "trouble": rollback.trouble,
            "leaves_open": rollback.leaves_open,
        }

    def _lacking(self, targets: Mapping[str, tuple[str, str]]) -> dict[str, str]:
        """Each version once: thousands of routes share a few."""
        return {token: self._pool.lacking(token) for token in {token for _, token in targets.values()}}

    def _of_table(self) -> Mapping[str, tuple[str, str]]:
        table = self._deliverer.tables.of(self._deliverer.held)
        if table is not self._table:
            self._table = table
            self._targets = {
                name: target for name, entry in table.items() if (target := _target(entry)) is not None
            }
        return self._targets


def _target(entry: RouteEntry) -> tuple[str, str] | None:
    pin = entry.rollback_to
    return None if pin is None else (pin.version, version_token(pin.digest, entry.engine))

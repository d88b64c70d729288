"""What the admin listener needs of the replica that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from gateway.admin.tokens import Holder
from gateway.control.deliver import Deliverer
from gateway.control.events import Events
from gateway.control.operations import Operations
from gateway.control.settlement import Settlement
from gateway.control.store import Member, Store
from gateway.control.versions import Versions
from gateway.telemetry.exposure import Exposed
from gateway.telemetry.metrics import TurnoutCollector
from gateway.telemetry.observations import Counts, Labels


@dataclass(frozen=True, kw_only=True)
class Replica:
    """Collaborators, and questions that only the composition root can answer."""

    operations: Operations
    settlement: Settlement
    deliverer: Deliverer
    store: Store
    versions: Versions
    events: Events
    collector: TurnoutCollector
    totals: Callable[[], Mapping[Labels, Counts]]
    ready: Callable[[], bool]
    degraded: Callable[[], list[str]]
    member: Callable[[], Member]
    rollback: Callable[[str], Mapping[str, object]]
    """Where a rollback of a route leads, and whether every worker has proved that it answers."""
    exposed: Callable[[], Mapping[Labels, Exposed]] = dict
    token: str = field(repr=False, default="")
    holders: Callable[[], Iterable[Holder]] | None = None
    """Of the file of tokens; None where there is none."""

"""What a replica says of itself: whether it is ready, what is degraded, what it serves and how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.admin.tokens import TokensFile
from gateway.control.bootstrap import Bootstrap
from gateway.control.deliver import Deliverer
from gateway.control.exposure import Exposures
from gateway.control.reader import Reader
from gateway.control.store import Member
from gateway.control.troubles import Trouble
from gateway.node import exposure_calls
from gateway.node.fetched import Fetched
from gateway.node.pool import WorkerPool
from gateway.node.rollbacks import Rollbacks
from gateway.routing.state import EMPTY
from gateway.telemetry.exposure import Exposed
from gateway.telemetry.ledger import Ledger
from gateway.telemetry.metrics import Standing
from gateway.telemetry.observations import UNKNOWN, Labels


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Asks the parts of a replica; holds nothing itself."""

    replica: str
    pool: WorkerPool
    deliverer: Deliverer
    reader: Reader
    bootstrap: Bootstrap
    ledger: Ledger
    fetched: Fetched
    rollbacks: Rollbacks
    exposures: Exposures
    stopping: Callable[[], bool]
    tokens: TokensFile | None = None

    @property
    def ready(self) -> bool:
        """Whether this replica serves: as long as it has a state and a worker, whatever the store does."""
        serving = self.pool.ready > 0 and self.deliverer.acknowledged is not EMPTY
        return serving and not self.stopping()

    def degraded(self) -> list[str]:
        """In words, all that is not as it should be; none of it keeps this replica from serving."""
        found = [
            *self.reader.troubles.texts,
            self.deliverer.error,
            self.deliverer.mirror_error,
            self.bootstrap.trouble,
            self.exposures.trouble,
        ]
        found += self.deliverer.applied.errors
        if self.tokens is not None:
            found.append(self.tokens.trouble)
        if self.pool.ready < self.pool.total:
            found.append(f"{self.pool.ready} of {self.pool.total} workers are ready")
        found += self.rollbacks.degraded()
        found += [
            f"route {name} answers nothing: every version that has a weight is denied"
            for name in self._stopped()
        ]
        return [text for text in found if text]

    def _stopped(self) -> list[str]:
        """Routes whose traffic was denied away: a limit that is reached stops a version even where none is left."""
        held = self.deliverer.held
        table = self.deliverer.tables.of(held)
        denied = sorted({key.route for key in held.denies} & table.keys())
        return [
            name
            for name in denied
            if not table[name].takes_traffic
            and any(variant.weight_bp for variant in table[name].route.variants.values())
        ]

    def totals(self) -> dict[Labels, Any]:
        served = set(self.shares())
        routes = self.deliverer.held.state.routes

        def declared(labels: Labels) -> bool:
            if labels.route == UNKNOWN or labels in served:
                return True
            route = routes.get(labels.route)
            if route is None or not labels.version:
                return route is not None
            # A denied version's, too: what it did is what people look at after a rollback.
            variant = route.variants.get(labels.variant)
            return variant is not None and variant.pin.version == labels.version

        return self.ledger.totals(declared)

    def shares(self) -> dict[Labels, float]:
        """Of every declared variant: the version that answers for it, and the share that it gets."""
        return {
            Labels(name, variant, arm.pin.version): entry.shares_bp[variant] / 10_000
            for name, entry in self.deliverer.tables.of(self.deliverer.held).items()
            for variant, arm in entry.arms.items()
            if arm.variant == variant
        }

    def exposed(self) -> dict[Labels, Exposed]:
        return exposure_calls.exposed(self.exposures, self.deliverer.held)

    def standing(self) -> Standing:
        held = self.deliverer.held
        return Standing(
            epoch=held.revision.epoch,
            rev=held.revision.rev,
            control_plane_age_s=self.reader.age_s,
            degraded=bool(self.degraded()),
            troubles={kind.value: kind in self.reader.troubles for kind in Trouble},
            shares=self.shares(),
            rollback_ready=self.rollbacks.ready(),
            denies=len(held.denies),
            workers_ready=self.pool.ready,
            workers_total=self.pool.total,
            worker_restarts=self.pool.restarts,
            cache_bytes=self.fetched.cache_bytes,
            fetched_bytes=self.fetched.total_bytes,
            exposed=self.exposed(),
        )

    def member(self) -> Member:
        held = self.deliverer.held
        refusal = self.reader.refusal or self.deliverer.error
        return Member(
            replica=self.replica,
            epoch=held.revision.epoch,
            rev=held.revision.rev,
            denies_rev=max((deny.rev for deny in held.denies.values()), default=0),
            deny_n=len(held.denies),
            sha256=held.state.sha256,
            base=str(held.base),
            status="NACK" if refusal else "ACK",
            error=refusal,
            workers_ok=self.pool.applied(held),
            workers_total=self.pool.total,
        )

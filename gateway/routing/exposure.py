"""How far a version may be exposed: which limits hold, and which of them is reached. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from gateway.routing.state import UNLIMITED, DenyKey, Exposure, Route

KINDS = ("requests", "errors", "keys")
LIMIT_ACTOR, LEASE_ACTOR = "limit", "lease"
"""Who denies, in the history, a version that has reached a limit, or whose lease has lapsed."""


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a version's exposure over all replicas, since it was last allowed."""

    life: str
    """Of the counter: random, made with it. Another one means that the counter was lost and made anew."""
    number: int
    """Of the count: up by one each time that the version is allowed again."""
    requests: int = 0
    """That workers were given to answer; those that they will not use are in it as well."""
    errors: int = 0
    keys: int = 0
    renewed_us: int = 0
    """When the lease was renewed last, by the store's clock."""


class Trip(NamedTuple):
    """A limit that is reached, or a lease that has lapsed: why the version is to be denied."""

    actor: str
    reason: str


def limited(route: Route, denied: frozenset[str]) -> Mapping[str, Exposure]:
    """By digest: the limits on the versions of a route, without those that are denied anyway.

    Variants with one digest are one version, and share the strictest limits. The fallback's bytes are not
    limited, under whatever name: they are what answers for all others. A lease holds where there is weight.
    """
    found: dict[str, Exposure] = {}
    kept = route.variants[route.fallback].pin.digest
    for name, variant in route.variants.items():
        digest = variant.pin.digest
        if not variant.exposure or name == route.fallback or digest == kept or digest in denied:
            continue
        exposure = variant.exposure
        if not variant.weight_bp:
            exposure = msgspec.structs.replace(exposure, lease_ms=0)
        if exposure:
            found[digest] = _strictest(found.get(digest, UNLIMITED), exposure)
    return found


def _strictest(one: Exposure, other: Exposure) -> Exposure:
    return Exposure(
        **{
            field: min(filter(None, (getattr(one, field), getattr(other, field))), default=0)
            for field in Exposure.__struct_fields__
        }
    )


def follows(seen: Count | None, found: Count | None) -> bool:
    """Whether `found` can be what became of the count that was `seen`: if not, the store has lost some of it.

    A later number is a new count, which somebody began on purpose. A count that somebody else made anew after
    the loss has another life, however high it is by now.
    """
    if seen is None:
        return True
    if found is None or found.number < seen.number:
        return False
    if found.number > seen.number:
        return True
    return found.life == seen.life and found.requests >= seen.requests and found.keys >= seen.keys


def reached(exposure: Exposure, kind: str, used: int) -> Trip | None:
    """`kind` is one of `KINDS`."""
    most = getattr(exposure, kind)
    if not most or used < most:
        return None
    return Trip(LIMIT_ACTOR, f"its limit of {most} {kind} is reached")


def lost() -> Trip:
    return Trip(LIMIT_ACTOR, "the store has lost its count: nobody knows how far it was exposed")


def lapsed(exposure: Exposure) -> Trip:
    return Trip(LEASE_ACTOR, f"nobody has renewed its lease for {_duration(exposure.lease_ms)}")


def written(exposure: Exposure) -> Iterator[tuple[str, str]]:
    """(field, value) of each limit, as a manifest has them."""
    for kind in KINDS:
        if getattr(exposure, kind):
            yield f"limit.{kind}", str(getattr(exposure, kind))
    if exposure.lease_ms:
        yield "lease", _duration(exposure.lease_ms)


def _duration(ms: int) -> str:
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def leased(route_name: str, route: Route, variant: str | None = None) -> list[DenyKey]:
    """The versions of a route that have a lease; of one variant, where it is named."""
    return [
        DenyKey(route_name, each.pin.digest)
        for name, each in route.variants.items()
        if variant in (None, name) and each.exposure and each.exposure.lease_ms
    ]

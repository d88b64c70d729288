"""The compiled routing table: which version answers a request."""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import log
from typing import Any

from gateway.routing.exposure import limited
from gateway.routing.state import WHOLE_BP, ExplicitVersions, Exposure, InForce, Pin, Route, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A variant and the pin that answers for it at this revision."""

    variant: str
    pin: Pin


@dataclass(frozen=True, slots=True)
class _Share:
    """A declared variant that draws keys, and the arm that answers them: another one where it is denied."""

    weight_bp: int
    hasher: Any
    arm: Arm


TABLES_KEPT = 4
"""What serves, what is about to, and what a plan looks at."""


class RouteEntry:
    """One route at one revision. Immutable; `pick` is called for every request.

    A denied variant keeps drawing its own keys, and its arm is the fallback's: so a rollback moves only the
    keys of the denied variant, and lifting the deny brings back exactly those.
    """

    def __init__(self, name: str, route: Route, denied: frozenset[str]) -> None:
        self.name = name
        self.sticky = route.sticky
        self.timeout_ms = route.timeout_ms
        self.engine = route.engine
        self.explicit_versions: ExplicitVersions = route.explicit_versions
        self.denied = denied
        """Digests that get no traffic on this route."""
        self.fallback = fallback_arm(route, denied)
        self.arms: Mapping[str, Arm] = _arms(route, denied, self.fallback)
        """By variant name: what an override reaches. A denied variant leads to the fallback."""
        self._overrides = route.overrides
        self._shares = _shares(route, self.arms)
        self._only = self._shares[0].arm if len({share.arm for share in self._shares}) == 1 else None
        self._draws = [(share.weight_bp, share.hasher.copy, share.arm) for share in self._shares]
        self._cumulative = list(accumulate(share.weight_bp for share in self._shares))
        self.route = route

    @property
    def model(self) -> tuple[str, str]:
        """(registry, model) of the route: what an explicit version is a version of."""
        pin = self.route.variants[self.route.fallback].pin
        return pin.registry, pin.model

    @cached_property
    def known_versions(self) -> Mapping[str, Pin]:
        """Pins of the route's model by version: those of its variants and those that it had before."""
        pins = [*self.route.previous, *(variant.pin for variant in self.route.variants.values())]
        return {pin.version: pin for pin in pins if (pin.registry, pin.model) == self.model}

    @cached_property
    def spare(self) -> Pin | None:
        """Where a rollback of the whole route would lead: kept loaded, so that it is a pointer swap."""
        if self.fallback is None:
            return None
        beyond = fallback_arm(self.route, self.denied | {self.fallback.pin.digest})
        return beyond.pin if beyond is not None else None

    @cached_property
    def rollback_to(self) -> Pin | None:
        """The version that takes what the next rollback takes away; None where there is none to return to."""
        if self.fallback is None:
            return None
        digest = self.fallback.pin.digest
        if any(share.arm.pin.digest != digest for share in self._shares):
            return self.fallback.pin
        return self.spare

    @cached_property
    def required(self) -> tuple[Pin, ...]:
        """The pins that must be loaded before this entry may serve, each digest once."""
        pins = {arm.pin.digest: arm.pin for arm in self.arms.values()}
        if self.spare is not None:
            pins.setdefault(self.spare.digest, self.spare)
        return tuple(pins.values())

    @cached_property
    def limited(self) -> Mapping[str, Exposure]:
        """By digest: how far a version may be exposed, where that is limited."""
        return limited(self.route, self.denied)

    @property
    def is_split(self) -> bool:
        """Whether not all requests get the same arm."""
        return self._only is None

    @property
    def takes_traffic(self) -> bool:
        """False where every weight is 0, or nothing that has one is allowed."""
        return bool(self._shares)

    @cached_property
    def shares_bp(self) -> Mapping[str, int]:
        """The share that each variant gets in fact, denies applied: where one has dropped out, of what is left."""
        shares = dict.fromkeys(self.route.variants, 0)
        for share in self._shares:
            shares[share.arm.variant] += share.weight_bp
        whole = sum(shares.values()) or WHOLE_BP
        return {name: round(share * WHOLE_BP / whole) for name, share in shares.items()}

    def overrides_to(self, variant: str) -> Arm | None:
        """The arm that a client's override reaches, None for a variant that does not exist.

        Raises `PermissionError` where the route does not allow overrides.
        """
        if not self._overrides:
            raise PermissionError(f"route {self.name!r} does not allow turnout-variant: set overrides: true")
        return self.arms.get(variant)

    def pick(self, key: bytes | None, draw: Callable[[], float]) -> Arm | None:
        """The arm for a request: by its sticky key, or by a number that `draw` takes from [0, 1).

        None where every weight is zero. Weight 0 is exactly 0, and one arm with all the weight takes all.
        Weighted rendezvous: https://en.wikipedia.org/wiki/Rendezvous_hashing#Weighted_rendezvous_hash
        """
        if self._only is not None:
            return self._only
        if not self._shares:
            return None
        if key is None:
            return self._shares[bisect_right(self._cumulative, draw() * self._cumulative[-1])].arm
        best = None
        highest = -1.0
        for weight_bp, copy, arm in self._draws:
            hasher = copy()
            hasher.update(key)
            # `unit_interval`, without the call.
            score = weight_bp / -log(((_first_64_bits(hasher.digest())[0] >> 12) + 0.5) * _TO_UNIT)
            if score > highest:
                highest, best = score, arm
        return best


_first_64_bits = struct.Struct(">Q").unpack_from
_TO_UNIT = 2.0**-52

RouteTable = Mapping[str, RouteEntry]


def compile_table(held: InForce, before: RouteTable | None = None) -> RouteTable:
    """The table of one revision: the document minus what is denied.

    Entries of `before` whose route and denies are the same are taken over, as the same objects.
    """
    denied = _denied(held)
    known = before or {}
    return {
        name: _entry(name, route, denied.get(name, frozenset()), known.get(name))
        for name, route in held.state.routes.items()
    }


def compile_route(held: InForce, name: str) -> RouteEntry:
    """The entry of one route, which exists."""
    denied = frozenset(key.digest for key in held.denies if key.route == name)
    return RouteEntry(name, held.state.routes[name], denied)


class Tables:
    """Compiles each state once, and of the next one only what differs: a deny costs one entry of 10,000."""

    def __init__(self) -> None:
        self._kept: list[tuple[InForce, RouteTable]] = []

    def of(self, held: InForce) -> RouteTable:
        for known, table in self._kept:
            if known is held:
                return table
        table = self._compile(held)
        self._kept = [(held, table), *self._kept[: TABLES_KEPT - 1]]
        return table

    def _compile(self, held: InForce) -> RouteTable:
        for known, table in self._kept:
            if known.state is held.state:
                denied = _denied(held)
                return {
                    **table,
                    **{
                        key.route: _entry(key.route, route, denied.get(key.route, frozenset()), None)
                        for key in known.denies.keys() ^ held.denies.keys()
                        if (route := held.state.routes.get(key.route)) is not None
                    },
                }
        return compile_table(held, self._kept[0][1] if self._kept else None)


def _denied(held: InForce) -> dict[str, frozenset[str]]:
    denied: dict[str, frozenset[str]] = {}
    for key in held.denies:
        denied[key.route] = denied.get(key.route, frozenset()) | {key.digest}
    return denied


def _entry(name: str, route: Route, denied: frozenset[str], before: RouteEntry | None) -> RouteEntry:
    if before is not None and before.denied == denied and (before.route is route or before.route == route):
        return before
    return RouteEntry(name, route, denied)


def fallback_arm(route: Route, denied: frozenset[str]) -> Arm | None:
    """Where denied shares go: the fallback's pin, or the newest earlier one that is not denied itself."""
    for pin in (route.variants[route.fallback].pin, *route.previous):
        if pin.digest not in denied:
            return Arm(variant=route.fallback, pin=pin)
    return None


def sticky_hasher(salt: str, variant: str) -> Any:
    """SHA-256 over what precedes the key; its copies are fed the key. Fixed for good by golden vectors."""
    return hashlib.sha256(b"gw1\0" + salt.encode() + b"\0" + variant.encode() + b"\0")


def unit_interval(digest: bytes) -> float:
    """The first 52 bits of a digest as a number in the open interval (0, 1): its logarithm is never 0."""
    bits: int = _first_64_bits(digest)[0]
    return ((bits >> 12) + 0.5) * _TO_UNIT


def _arms(route: Route, denied: frozenset[str], fallback: Arm | None) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for name, variant in route.variants.items():
        arm = _own_arm(name, variant, denied) or fallback
        if arm is not None:
            arms[name] = arm
    return arms


def _own_arm(name: str, variant: Variant, denied: frozenset[str]) -> Arm | None:
    return None if variant.pin.digest in denied else Arm(variant=name, pin=variant.pin)


def _shares(route: Route, arms: Mapping[str, Arm]) -> list[_Share]:
    # A variant without an arm (denied, and so is every fallback) drops out; the others share its keys.
    return [
        _Share(variant.weight_bp, sticky_hasher(route.salt, name), arms[name])
        for name, variant in route.variants.items()
        if variant.weight_bp > 0 and name in arms
    ]

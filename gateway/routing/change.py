"""The changes that people and signals ask for, each a pure function of what is in force."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from gateway.routing.exposure import leased
from gateway.routing.manifest_values import ManifestError, basis_points
from gateway.routing.state import WHOLE_BP, DenyKey, InForce, Route, State, Variant
from gateway.routing.table import RouteEntry, compile_route

T = TypeVar("T")


class ChangeRefused(Exception):
    """The change makes no sense for what is in force; nothing was changed."""


class UnknownName(ChangeRefused):
    """The change names a route, variant or version that does not exist."""


def set_weights(held: InForce, route_name: str, percents: Mapping[str, float]) -> State:
    """The state with new weights, in per cent, for one route's variants.

    Variants that are not named keep theirs, except the fallback, which takes what the others leave.
    Raises `ChangeRefused` for a sum that is not 100 % (or all 0), or a weight on a denied version.
    """
    route = route_of(held, route_name)
    weights = {name: variant.weight_bp for name, variant in route.variants.items()}
    for name, percent in percents.items():
        variant = variant_of(route_name, route, name)
        weights[name] = _points(f"routes.{route_name}.variants.{name}.weight", percent)
        _refuse_denied(held, route_name, name, variant, weights[name])
    if route.fallback not in percents:
        others = sum(points for name, points in weights.items() if name != route.fallback)
        weights[route.fallback] = max(0, WHOLE_BP - others)
    total = sum(weights.values())
    if total not in (0, WHOLE_BP):
        raise ChangeRefused(
            f"the weights of {route_name} add up to {total / 100:g} %, not to 100 % (or all 0)"
        )
    variants = {
        name: msgspec.structs.replace(variant, weight_bp=weights[name])
        for name, variant in route.variants.items()
    }
    return replace_route(held.state, route_name, msgspec.structs.replace(route, variants=variants))


def set_weights_of(held: InForce, routes: Mapping[str, Mapping[str, float]]) -> State:
    """`set_weights` for several routes in one state: all of them, or none. Raises as it does."""
    after = held
    for route_name, percents in _some(routes).items():
        after = msgspec.structs.replace(after, state=set_weights(after, route_name, percents))
    return after.state


def rollback(held: InForce, route_name: str, version: str | None = None) -> dict[DenyKey, str]:
    """What to deny (key → version) so that the route returns to what served before.

    With a version: that one. Without: the versions of all variants but the fallback that have a weight, or,
    where the fallback has it all, the fallback's own, if there is an earlier one to return to. Empty where
    that has happened already: a signal that is repeated must not walk further and further back.
    Raises `UnknownName`, and `ChangeRefused` where nothing would be left to take the route's traffic.
    """
    route = route_of(held, route_name)
    entry = compile_route(held, route_name)
    if version is not None:
        return _deny_version(route_name, route, entry, version)
    fallback = route.variants[route.fallback].pin
    targets = [
        variant.pin
        for variant in route.variants.values()
        if variant.weight_bp > 0 and variant.pin.digest != fallback.digest
    ] or [fallback]
    denies = {
        DenyKey(route_name, pin.digest): pin.version for pin in targets if pin.digest not in entry.denied
    }
    if denies and _strands(route, entry, denies):
        raise ChangeRefused(
            f"{route_name} has nothing to roll back to: version {', '.join(denies.values())} takes all its "
            "traffic and no earlier version that is allowed is known"
        )
    return denies


def rollback_of(held: InForce, routes: Mapping[str, str | None]) -> dict[DenyKey, str]:
    """`rollback` for several routes, each with its version or None: all of them, or none. Raises as it does."""
    denies: dict[DenyKey, str] = {}
    for route_name, version in _some(routes).items():
        denies |= rollback(held, route_name, version)
    return denies


def _some(routes: Mapping[str, T]) -> Mapping[str, T]:
    if not routes:
        raise ChangeRefused("no route is named: a change names at least one")
    return routes


def named_routes(routes: str, versions: str = "") -> dict[str, str | None]:
    """`"fraud"` or `"fraud, digits"`, as a signal names them, each with its version or None.

    For one route `versions` is its version, as it is written; for several there are as many, in the same order,
    an empty one for none: `"7,"`. Raises `ChangeRefused`.
    """
    names = [name.strip() for name in routes.split(",")]
    if len(names) == 1:
        return {names[0]: versions or None}
    if "" in names:
        raise ChangeRefused(
            f"the routes {routes[:140]!r} name an empty one: write one comma between two routes"
        )
    if len(set(names)) < len(names):
        raise ChangeRefused(f"the routes {routes[:140]!r} name one of them twice")
    given = [version.strip() or None for version in versions.split(",")] if versions else [None] * len(names)
    if len(given) != len(names):
        raise ChangeRefused(
            f"{len(names)} routes and {len(given)} versions ({versions[:140]!r}): "
            "name a version for each route, or for none"
        )
    return dict(zip(names, given, strict=True))


def _strands(route: Route, entry: RouteEntry, denies: Mapping[DenyKey, str]) -> bool:
    """Whether these denies would leave the route without a version that takes its traffic."""
    after = _after(route, entry, denies)
    return not after.arms or (entry.takes_traffic and not after.takes_traffic)


def _moves_on(route: Route, entry: RouteEntry, denies: Mapping[DenyKey, str]) -> list[str]:
    """The variants that would get the fallback's share: there is nothing behind it that it could go back to."""
    after = _after(route, entry, denies)
    if entry.fallback is None or after.fallback is not None:
        return []
    return [name for name, share in after.shares_bp.items() if share > entry.shares_bp[name]]


def _after(route: Route, entry: RouteEntry, denies: Mapping[DenyKey, str]) -> RouteEntry:
    return RouteEntry(entry.name, route, entry.denied | {key.digest for key in denies})


def _deny_version(route_name: str, route: Route, entry: RouteEntry, version: str) -> dict[DenyKey, str]:
    pins = [variant.pin for variant in route.variants.values()] + list(route.previous)
    named = [pin for pin in pins if pin.version == version]
    if not named:
        known = ", ".join(dict.fromkeys(pin.version for pin in pins))
        raise UnknownName(f"{route_name} has no version {version[:140]!r} (it has: {known})")
    denies = {DenyKey(route_name, pin.digest): version for pin in named if pin.digest not in entry.denied}
    if denies and _strands(route, entry, denies):
        raise ChangeRefused(
            f"denying version {version} would leave {route_name} without any version that takes traffic: "
            "set its weights to 0 if it must stop answering"
        )
    if denies and (others := _moves_on(route, entry, denies)):
        # A rollback needs the least of all rights: it must not be the way to move everybody to the canary.
        raise ChangeRefused(
            f"denying version {version}, the fallback's, would give its traffic to {', '.join(others)}, because no "
            f"earlier version is known: say so with the weights first, for example {others[0]}=100"
        )
    return denies


def allow(held: InForce, route_name: str, version: str) -> list[DenyKey]:
    """The denies to lift so that `version` may take traffic on the route again."""
    route_of(held, route_name)
    keys = [key for key, deny in held.denies.items() if key.route == route_name and deny.version == version]
    if not keys:
        denied = [deny.version for key, deny in held.denies.items() if key.route == route_name]
        known = ", ".join(denied) or "none"
        raise UnknownName(f"version {version[:140]!r} is not denied on {route_name} (denied: {known})")
    return keys


def renew(held: InForce, route_name: str, variant: str | None) -> list[DenyKey]:
    """The versions whose leases are to begin anew: of one variant, or of all that have one."""
    route = route_of(held, route_name)
    if variant is not None:
        variant_of(route_name, route, variant)
    keys = leased(route_name, route, variant)
    if not keys:
        raise ChangeRefused(
            f"{variant or 'no variant'} of {route_name} has {'no' if variant else 'a'} lease to renew: "
            "a manifest gives one with lease"
        )
    denied = [held.denies[key].version for key in keys if key in held.denies]
    if denied:
        raise ChangeRefused(
            f"version {denied[0]} is denied on {route_name}, and no lease brings it back: "
            f"turnout allow {route_name} {denied[0]}"
        )
    return keys


def version_of(held: InForce, key: DenyKey) -> str | None:
    """For people: the version that a route's variants have under a digest; None where they have none."""
    route = held.state.routes.get(key.route)
    variants = route.variants.values() if route is not None else ()
    return next((each.pin.version for each in variants if each.pin.digest == key.digest), None)


def deny_orphans(held: InForce) -> list[DenyKey]:
    """Denies on routes that no longer exist."""
    return [key for key in held.denies if key.route not in held.state.routes]


def summary(before: InForce, after: InForce) -> list[dict[str, Any]]:
    """Each route whose serving changes: {"route", "before", "after"}; for the history and for people."""
    names = _touched(before, after)
    old, new = _describe(before, names), _describe(after, names)
    return [
        {"route": name, "before": old.get(name), "after": new.get(name)}
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def lifting(before: InForce, after: InForce) -> list[dict[str, Any]]:
    """As `summary`, of each route of which denies are lifted, with their keys' text as "lifted"."""
    lifted: dict[str, list[str]] = {}
    for key in before.denies.keys() - after.denies.keys():
        lifted.setdefault(key.route, []).append(str(key))
    old, new = _describe(before, lifted), _describe(after, lifted)
    return [
        {"route": name, "before": old.get(name), "after": new.get(name), "lifted": sorted(lifted[name])}
        for name in sorted(lifted)
    ]


def describe_serving(held: InForce, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """By route and variant: the version that answers, its declared weight and the share it gets, per cent.

    Of the routes in `names` that there are, or of all.
    """
    return _describe(held, held.state.routes.keys() if names is None else names)


def _touched(before: InForce, after: InForce) -> set[str]:
    """Routes that may serve otherwise: to describe all of 10,000 takes the better part of a second."""
    denies = {key.route for key in before.denies.keys() ^ after.denies.keys()}
    if before.state is after.state:
        return denies
    old, new = before.state.routes, after.state.routes
    return denies | {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def _describe(held: InForce, names: Collection[str]) -> dict[str, dict[str, Any]]:
    routes = held.state.routes
    return {
        name: _describe_route(routes[name], compile_route(held, name)) for name in names if name in routes
    }


def _describe_route(route: Route, entry: RouteEntry) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for name, variant in route.variants.items():
        arm = entry.arms.get(name)
        own = arm is not None and arm.variant == name
        described[name] = {
            "version": arm.pin.version if arm is not None and own else variant.pin.version,
            "weight": variant.weight_bp / 100,
            "share": entry.shares_bp[name] / 100,
        }
        if variant.pin.digest in entry.denied:
            described[name]["denied"] = variant.pin.version
    return described


def route_of(held: InForce, name: str) -> Route:
    """Raises `UnknownName`."""
    try:
        return held.state.routes[name]
    except KeyError:
        known = ", ".join(sorted(held.state.routes)[:20]) or "none"
        known += " …" if len(held.state.routes) > 20 else ""
        raise UnknownName(f"there is no route {name[:140]!r} (there are: {known})") from None


def variant_of(route_name: str, route: Route, name: str) -> Variant:
    """Raises `UnknownName`."""
    try:
        return route.variants[name]
    except KeyError:
        known = ", ".join(route.variants)
        raise UnknownName(f"route {route_name} has no variant {name[:140]!r} (it has: {known})") from None


def replace_route(state: State, name: str, route: Route) -> State:
    return msgspec.structs.replace(state, routes={**state.routes, name: route})


def _points(path: str, percent: float) -> int:
    try:
        return basis_points(path, percent)
    except ManifestError as error:
        raise ChangeRefused(str(error)) from error


def _refuse_denied(held: InForce, route_name: str, name: str, variant: Variant, points: int) -> None:
    deny = held.denied(route_name, variant.pin)
    if deny is not None and points > 0 and points != variant.weight_bp:
        raise ChangeRefused(
            f"version {variant.pin.version} of {name} is denied on {route_name}: "
            f"lift it first with: turnout allow {route_name} {variant.pin.version}"
        )

"""From a manifest and what the registries answered to the next state, and what that would change."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.routing.change import ChangeRefused, describe_serving
from gateway.routing.exposure import written
from gateway.routing.manifest import DeclaredRoute, Manifest
from gateway.routing.state import (
    PREVIOUS_KEPT,
    UNLIMITED,
    EngineOptions,
    InForce,
    Pin,
    Route,
    State,
    Variant,
)
from gateway.routing.table import compile_route

_DEFAULT_ENGINE = EngineOptions()
Resolved = Mapping[str, Pin]
"""Reference as it is written → the pin behind it now; its digest is "" while it was never fetched."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a plan."""

    path: str
    before: str | None = None
    after: str | None = None

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.path}: {self.after}"
        if self.after is None:
            return f"- {self.path}: {self.before}"
        return f"~ {self.path}: {self.before} -> {self.after}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The state that a manifest leads to, and the difference to what is in force."""

    state: State
    changes: list[Change]
    notes: list[str]
    """What a reader should know and the plan does not change, such as denied versions."""


def make_plan(manifest: Manifest, resolved: Resolved, held: InForce) -> Plan:
    """The next state. Raises `ChangeRefused` where it cannot be: a new variant on a denied version.

    An alias that points to a denied version is not followed: the variant keeps the pin that it has.
    """
    notes: list[str] = []
    routes = {
        name: _plan_route(name, route, resolved, held, notes) for name, route in manifest.routes.items()
    }
    state = State(registries=manifest.registries, routes=routes, manifest_sha256=manifest.sha256)
    return Plan(state=state, changes=_difference(held, state), notes=notes)


def same_release(one: Pin, other: Pin) -> bool:
    """Whether two pins are one release by their registry's own account; digests may be unknown yet."""
    return (one.registry, one.model, one.version, one.identity) == (
        other.registry,
        other.model,
        other.version,
        other.identity,
    ) and (not one.digest or not other.digest or one.digest == other.digest)


def _plan_route(
    name: str, declared: DeclaredRoute, resolved: Resolved, held: InForce, notes: list[str]
) -> Route:
    current = held.state.routes.get(name)
    variants = {
        variant_name: Variant(
            pin=_pin(
                f"{name}.{variant_name}",
                name,
                resolved[str(variant.reference)],
                current,
                variant_name,
                held,
                notes,
            ),
            reference=str(variant.reference),
            weight_bp=variant.weight_bp,
            exposure=variant.exposure,
        )
        for variant_name, variant in declared.variants.items()
    }
    return Route(
        variants=variants,
        fallback=declared.fallback,
        previous=_previous(name, variants[declared.fallback].pin, held),
        sticky=declared.sticky,
        salt=declared.salt,
        overrides=declared.overrides,
        explicit_versions=declared.explicit_versions,
        timeout_ms=declared.timeout_ms,
        engine=declared.engine,
    )


def _pin(
    at: str, route: str, found: Pin, current: Route | None, variant: str, held: InForce, notes: list[str]
) -> Pin:
    present = current.variants[variant].pin if current is not None and variant in current.variants else None
    if present is not None and same_release(present, found):
        if held.denied(route, present):
            notes.append(
                f"{at}: version {present.version} is denied; turnout allow {route} {present.version} lifts it"
            )
        return present
    if found.digest and held.denied(route, found):
        if present is None:
            raise ChangeRefused(
                f"{at}: version {found.version} is denied on {route}: allow it first, or name another"
            )
        notes.append(
            f"{at}: the registry points to version {found.version}, which is denied; "
            f"version {present.version} stays until: turnout allow {route} {found.version}"
        )
        return present
    return found


def _previous(name: str, fallback: Pin, held: InForce) -> tuple[Pin, ...]:
    """The pins to return to: what serves as the fallback now comes first, once it is replaced."""
    route = held.state.routes.get(name)
    if route is None:
        return ()
    serving = compile_route(held, name).fallback
    pins = [serving.pin] if serving is not None else []
    pins += [pin for pin in route.previous if pin not in pins]
    return tuple(pin for pin in pins if not same_release(pin, fallback))[:PREVIOUS_KEPT]


def _difference(held: InForce, state: State) -> list[Change]:
    before = _flatten(held.state, held)
    after = _flatten(state, InForce(revision=held.revision, state=state, denies=held.denies))
    return [
        Change(path=path, before=before.get(path), after=after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def _flatten(state: State, held: InForce) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, registry in state.registries.items():
        fields[f"registries.{name}"] = f"{registry.type} {_inline(registry.options)}".strip()
    for name, route in state.routes.items():
        for variant_name, variant in route.variants.items():
            at = f"routes.{name}.variants.{variant_name}"
            fields[f"{at}.version"] = _release(variant.pin)
            fields[f"{at}.weight"] = f"{variant.weight_bp / 100:g} %"
            fields[f"{at}.model"] = variant.reference
            fields.update({f"{at}.{name}": text for name, text in written(variant.exposure or UNLIMITED)})
        for field in ("fallback", "sticky", "salt", "overrides", "explicit_versions", "timeout_ms"):
            fields[f"routes.{name}.{field}"] = _plain(getattr(route, field))
        for option in route.engine.__struct_fields__:
            value = getattr(route.engine, option)
            # What is not written in a manifest is no line of its plan.
            if value != getattr(_DEFAULT_ENGINE, option):
                fields[f"routes.{name}.engine.{option}"] = _plain(value)
    return fields


def _release(pin: Pin) -> str:
    # The same number can be another release: a registry that counts from 1 again after a deletion.
    return f"{pin.version} ({pin.digest[:12]})" if pin.digest else f"{pin.version} (not fetched yet)"


def _plain(value: object) -> str:
    """As a manifest has it: `true`, `[CPUExecutionProvider]`, `auto`."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def _inline(options: Mapping[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())


__all__ = ["Change", "Plan", "Resolved", "describe_serving", "make_plan", "same_release"]

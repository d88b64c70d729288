"""Small states, as tests need them: versions are digits, and version "2" has the digest 222…"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.routing.state import (
    Deny,
    DenyKey,
    Exposure,
    InForce,
    Pin,
    RegistryDeclaration,
    Revision,
    Route,
    State,
    Variant,
)

FIRST = Revision(1, 1)
LOCAL = {"local": RegistryDeclaration(type="directory", options={"path": "/models"})}


def pin(label: str, **changed: str) -> Pin:
    fields = {"registry": "local", "model": "digits", "version": label, "digest": label[0] * 64}
    return Pin(**{**fields, **changed})


def route(
    weights: dict[str, float],
    *,
    previous: Iterable[str] = (),
    fallback: str | None = None,
    limits: Mapping[str, Exposure] | None = None,
    **options: Any,
) -> Route:
    """`route({"stable 1": 90, "canary 2": 10})`: variants with their versions and per cents.

    `limits` are by variant.
    """
    variants = {}
    for text, percent in weights.items():
        name, version = text.split()
        reference = f"local/digits@{version}"
        variants[name] = Variant(
            pin=pin(version),
            reference=reference,
            weight_bp=round(percent * 100),
            exposure=(limits or {}).get(name, msgspec.UNSET),
        )
    return Route(
        variants=variants,
        fallback=fallback or next(iter(variants)),
        previous=tuple(pin(version) for version in previous),
        **{"salt": "digits", **options},
    )


def deny(version: str, route: str = "digits", rev: int = 1) -> tuple[DenyKey, Deny]:
    return DenyKey(route, pin(version).digest), Deny(version=version, rev=rev)


def in_force(*routes: Route, denied: Iterable[str] = (), revision: Revision = FIRST) -> InForce:
    """The first route is `digits`, the others are `digits2`, `digits3` …"""
    named = {f"digits{index + 1 if index else ''}": each for index, each in enumerate(routes)}
    return InForce(
        revision=revision,
        state=State(registries=LOCAL, routes=named, manifest_sha256="0" * 64),
        denies=dict(deny(version, rev=revision.rev) for version in denied),
    )

"""The YAML that declares registries and routes, checked whole before anything acts on it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from gateway.routing.manifest_values import (
    ManifestError,
    basis_points,
    check_option,
    convert,
    duration_ms,
    name_of,
    with_words,
)
from gateway.routing.manifest_yaml import load_yaml
from gateway.routing.state import (
    WHOLE_BP,
    EngineOptions,
    ExplicitVersions,
    Exposure,
    RegistryDeclaration,
)
from registry_client.errors import InvalidReference
from registry_client.models import ModelRef

SIZE_LIMIT_BYTES = 4 * 1024 * 1024
RESERVED_VARIANTS = frozenset({"pinned"})
"""What metrics and headers call the requests that name their version themselves."""
SHORTEST_LEASE_MS = 5_000
"""A renewal takes up to two seconds to be heard by every replica, and the store may be slow."""
LARGEST_LIMITS = {"requests": 10**12, "errors": 10**9, "keys": 100_000}
"""Keys are held in the memory of every worker that sees them, 100 bytes each."""
_STICKY = re.compile(r"none|(?:header|parameter):[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
DEFAULT_STICKY = "header:turnout-key"
DEFAULT_TIMEOUT = "30s"


class VariantSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant as it is written; the weight is per cent."""

    model: str
    weight: float | None = None
    limit: dict[str, Any] = {}
    lease: str | None = None


class LimitSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a variant may be exposed, as it is written."""

    requests: int | None = None
    errors: int | None = None
    keys: int | None = None


class RouteSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One route as it is written, without its variants, which are checked one by one."""

    variants: dict[str, Any]
    fallback: str | None = None
    sticky: str = DEFAULT_STICKY
    salt: str | None = None
    overrides: bool = False
    explicit_versions: ExplicitVersions = "any"
    timeout: str = DEFAULT_TIMEOUT
    follow: Literal["pin"] = "pin"
    engine: dict[str, Any] = {}


class _Top(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    registries: dict[str, Any] = {}
    routes: dict[str, Any] = {}


class DeclaredVariant(msgspec.Struct, frozen=True, kw_only=True):
    reference: ModelRef
    weight_bp: int
    exposure: Exposure | msgspec.UnsetType = msgspec.UNSET


class DeclaredRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route whose every field has been checked, in the units of the state."""

    variants: dict[str, DeclaredVariant]
    fallback: str
    sticky: str
    salt: str
    overrides: bool
    explicit_versions: ExplicitVersions
    timeout_ms: int
    engine: EngineOptions


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a team wants, before the registries were asked which versions it means."""

    registries: dict[str, RegistryDeclaration]
    routes: dict[str, DeclaredRoute]
    sha256: str

    def references(self) -> Iterator[tuple[str, str, ModelRef]]:
        """(route, variant, reference) of every variant."""
        for route_name, route in self.routes.items():
            for variant_name, variant in route.variants.items():
                yield route_name, variant_name, variant.reference


def parse_manifest(text: str) -> Manifest:
    """The manifest in `text`. Raises `ManifestError`, which names the field, and accepts no half of it."""
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise ManifestError("", f"this is no UTF-8: {error.reason}") from error
    if len(raw) > SIZE_LIMIT_BYTES:
        raise ManifestError("", f"the manifest is larger than {SIZE_LIMIT_BYTES} bytes")
    top = convert("", load_yaml(text), _Top)
    registries = {name: _registry(name, declared) for name, declared in top.registries.items()}
    routes = {name: _route(name, declared, registries) for name, declared in top.routes.items()}
    return Manifest(registries=registries, routes=routes, sha256=hashlib.sha256(raw).hexdigest())


def _registry(name: str, declared: Any) -> RegistryDeclaration:
    path = f"registries.{name_of('registries', name)}"
    options = dict(convert(path, declared, dict[str, Any]))
    kind = convert(f"{path}.type", options.pop("type", None), str)
    for key, value in options.items():
        check_option(f"{path}.{key}", value)
    return RegistryDeclaration(type=kind, options=options)


def _route(name: str, declared: Any, registries: dict[str, RegistryDeclaration]) -> DeclaredRoute:
    path = f"routes.{name_of('routes', name)}"
    spec = convert(path, with_words(declared, {"explicit_versions": (False,)}), RouteSpec)
    if not spec.variants:
        raise ManifestError(f"{path}.variants", "is empty: a route needs at least one variant")
    variants = {
        variant: convert(f"{path}.variants.{name_of(f'{path}.variants', variant)}", value, VariantSpec)
        for variant, value in spec.variants.items()
    }
    for variant in RESERVED_VARIANTS & variants.keys():
        raise ManifestError(f"{path}.variants.{variant}", "is a reserved name: choose another")
    fallback = spec.fallback if spec.fallback is not None else next(iter(variants))
    if fallback not in variants:
        known = ", ".join(variants)
        raise ManifestError(
            f"{path}.fallback", f"{fallback!r} is no variant of the route (those are: {known})"
        )
    if not _STICKY.fullmatch(spec.sticky):
        raise ManifestError(f"{path}.sticky", f"{spec.sticky!r} is not header:NAME, parameter:NAME or none")
    weights = _weights(f"{path}.variants", variants, fallback)
    return DeclaredRoute(
        variants={
            variant: DeclaredVariant(
                reference=_reference(f"{path}.variants.{variant}.model", value.model, registries),
                weight_bp=weights[variant],
                exposure=_exposure(f"{path}.variants.{variant}", value, variant == fallback, spec.sticky),
            )
            for variant, value in variants.items()
        },
        fallback=fallback,
        sticky=spec.sticky,
        salt=spec.salt if spec.salt is not None else name,
        overrides=spec.overrides,
        explicit_versions=spec.explicit_versions,
        timeout_ms=duration_ms(f"{path}.timeout", spec.timeout),
        engine=_engine(f"{path}.engine", spec.engine),
    )


def _exposure(path: str, spec: VariantSpec, fallback: bool, sticky: str) -> Exposure | msgspec.UnsetType:
    written = msgspec.structs.asdict(convert(f"{path}.limit", spec.limit, LimitSpec))
    limits = {kind: value for kind, value in written.items() if value is not None}
    for kind, value in limits.items():
        if not 1 <= value <= LARGEST_LIMITS[kind]:
            raise ManifestError(f"{path}.limit.{kind}", f"{value} is not in 1..{LARGEST_LIMITS[kind]}")
    if "keys" in limits and sticky == "none":
        raise ManifestError(f"{path}.limit.keys", "needs sticky keys, and the route has sticky: none")
    lease_ms = 0 if spec.lease is None else duration_ms(f"{path}.lease", spec.lease)
    if 0 < lease_ms < SHORTEST_LEASE_MS:
        raise ManifestError(f"{path}.lease", f"{spec.lease} is shorter than {SHORTEST_LEASE_MS // 1000} s")
    if fallback and (limits or lease_ms):
        field = "limit" if limits else "lease"
        raise ManifestError(f"{path}.{field}", "is on the fallback, which takes what others may not answer")
    return Exposure(**limits, lease_ms=lease_ms) if limits or lease_ms else msgspec.UNSET


def _weights(path: str, variants: dict[str, VariantSpec], fallback: str) -> dict[str, int]:
    """Basis points. A fallback without a weight takes what the others leave; the others default to 0."""
    weights = {
        name: basis_points(f"{path}.{name}.weight", spec.weight)
        for name, spec in variants.items()
        if spec.weight is not None
    }
    if fallback not in weights:
        weights[fallback] = max(0, WHOLE_BP - sum(weights.values()))
    total = sum(weights.values())
    if total not in (0, WHOLE_BP):
        raise ManifestError(path, f"the weights add up to {total / 100:g} %, not to 100 % (or all 0)")
    return {name: weights.get(name, 0) for name in variants}


def _reference(path: str, text: str, registries: dict[str, RegistryDeclaration]) -> ModelRef:
    try:
        reference = ModelRef.parse(text)
    except InvalidReference as error:
        raise ManifestError(path, str(error)) from error
    if reference.registry not in registries:
        known = ", ".join(registries) or "none"
        raise ManifestError(path, f"registry {reference.registry!r} is not declared (declared: {known})")
    return reference


def _engine(path: str, declared: dict[str, Any]) -> EngineOptions:
    words = {"share_weights": (True, False), "concurrency": (False,)}
    options = convert(path, with_words(declared, words), EngineOptions)
    limits = (
        ("threads", 0, 256),
        ("max_batch_size", 1, 4096),
        ("max_queue", 1, 1_000_000),
        ("concurrency", 1, 1_000_000),
    )
    for field, low, high in limits:
        value = getattr(options, field)
        if isinstance(value, int) and not low <= value <= high:
            beside = " (or auto, off)" if field == "concurrency" else ""
            raise ManifestError(f"{path}.{field}", f"{value} is not in {low}..{high}{beside}")
    if not options.providers:
        raise ManifestError(f"{path}.providers", "is empty: CPUExecutionProvider is always there")
    return options

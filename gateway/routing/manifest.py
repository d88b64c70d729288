"""The YAML that declares registries and routes, checked whole before anything acts on it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import yaml

from gateway.routing.names import NAME
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
DEPTH_LIMIT = 50
RESERVED_VARIANTS = frozenset({"pinned"})
"""What metrics and headers call the requests that name their version themselves."""
LONGEST_DURATION_MS = 30 * 24 * 3_600_000
SHORTEST_LEASE_MS = 5_000
"""A renewal takes up to two seconds to be heard by every replica, and the store may be slow."""
LARGEST_LIMITS = {"requests": 10**12, "errors": 10**9, "keys": 100_000}
"""Keys are held in the memory of every worker that sees them, 100 bytes each."""
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_STICKY = re.compile(r"none|(?:header|parameter):[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_WRONG_KEY = re.compile(r"(.*) - at `key` in `\$(.*)`", re.DOTALL)
_USERINFO = re.compile(r"://[^/?#]*@")
DEFAULT_STICKY = "header:turnout-key"
DEFAULT_TIMEOUT = "30s"
T = TypeVar("T")


class ManifestError(ValueError):
    """The manifest is refused whole. `path` is the field, as `routes.digits.variants.canary.weight`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


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
    top = _convert("", _load_yaml(text), _Top)
    registries = {name: _registry(name, declared) for name, declared in top.registries.items()}
    routes = {name: _route(name, declared, registries) for name, declared in top.routes.items()}
    return Manifest(registries=registries, routes=routes, sha256=hashlib.sha256(raw).hexdigest())


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, where PyYAML was built with it: 10,000 routes take 1 s, and 11 s without."""


class _Loader(_Safe):  # type: ignore[misc]
    """A safe loader that refuses a key written twice: the second would silently win."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ManifestError("", f"line {key_node.start_mark.line + 1}: a key must be plain text")
        if key_node.value in seen:
            line = key_node.start_mark.line + 1
            raise ManifestError("", f"line {line}: the key {key_node.value!r} is written twice")
        seen.add(key_node.value)
    found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def _events(text: str) -> Iterator[tuple[int, yaml.Event]]:
    """(depth, event) of the text, read no further than the caller asks."""
    depth = 0
    for event in yaml.parse(text, Loader=_Safe):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        yield depth, event


def _load_yaml(text: str) -> Any:
    try:
        for depth, event in _events(text):
            if depth > DEPTH_LIMIT:
                # Before anything is built: the time that PyYAML takes grows with the square of the depth.
                raise ManifestError("", f"the manifest is nested deeper than {DEPTH_LIMIT}")
            if getattr(event, "anchor", None) is not None:
                raise ManifestError("", "YAML anchors and aliases are not accepted: write the value out")
        # A subclass of SafeLoader: only plain values can come out of it.
        document = yaml.load(text, Loader=_Loader)  # noqa: S506
    except ManifestError:
        raise
    except Exception as error:
        # Beside its own errors PyYAML lets through whatever a value's constructor throws: ValueError for
        # the date 2001-13-01, KeyError for `!!bool x`, AttributeError for `!!timestamp x`.
        raise ManifestError("", f"this is no YAML: {' '.join(str(error).split())}") from error
    if document is None:
        # An empty file is an accident more often than the wish to remove every route.
        raise ManifestError("", "the manifest is empty: write `routes: {}` to declare that there are none")
    return document


def _convert(path: str, value: Any, type_: type[T]) -> T:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        problem, where = _located(str(error))
        words = _words(get_type_hints(type_).get(where)) if isinstance(type_, type) else []
        if words:
            problem = f"{problem}: write {', '.join(words)}"
        raise ManifestError(".".join(part for part in (path, where) if part), problem) from error


def _words(hint: Any) -> list[str]:
    """The words that a field of this type takes, and whether a number does: `["auto", "off", "a number"]`."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    words = [word for inner in get_args(hint) for word in _words(inner)]
    return [*words, "a number"] if words and int in get_args(hint) else words


def _located(text: str) -> tuple[str, str]:
    """msgspec's message → what is wrong, and the path of the field inside the converted value."""
    key = _WRONG_KEY.fullmatch(text)
    if key:
        return f"a name must be text, put it in quotes: {key[1]}", key[2].strip(".")
    problem, _, where = text.partition(" - at `$")
    where = where.rstrip("`").strip(".")
    unknown = _UNKNOWN_FIELD.fullmatch(problem)
    if unknown:
        return "no such field", ".".join(part for part in (where, unknown[1][:140]) if part)
    return problem, where


def _name(path: str, name: object) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ManifestError(path, f"the name {str(name)[:140]!r} must match {NAME.pattern}")
    return name


def _registry(name: str, declared: Any) -> RegistryDeclaration:
    path = f"registries.{_name('registries', name)}"
    options = dict(_convert(path, declared, dict[str, Any]))
    kind = _convert(f"{path}.type", options.pop("type", None), str)
    for key, value in options.items():
        _check_option(f"{path}.{key}", value)
    return RegistryDeclaration(type=kind, options=options)


def _check_option(path: str, value: Any) -> None:
    """Only what JSON holds, or the state would read back as another one; and no secrets."""
    if isinstance(value, str):
        if _USERINFO.search(value):
            raise ManifestError(
                path, "holds credentials: leave them out and set the registry's environment variables"
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ManifestError(path, f"a name must be text, put it in quotes: {key!r}")
            _check_option(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_option(f"{path}[{index}]", inner)
    elif isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise ManifestError(path, "has more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ManifestError(path, f"{value} is no number to work with")
    elif value is not None:
        raise ManifestError(
            path, f"a {type(value).__name__} is not accepted: put it in quotes to make it text"
        )


def _route(name: str, declared: Any, registries: dict[str, RegistryDeclaration]) -> DeclaredRoute:
    path = f"routes.{_name('routes', name)}"
    spec = _convert(path, _with_words(declared, {"explicit_versions": (False,)}), RouteSpec)
    if not spec.variants:
        raise ManifestError(f"{path}.variants", "is empty: a route needs at least one variant")
    variants = {
        variant: _convert(f"{path}.variants.{_name(f'{path}.variants', variant)}", value, VariantSpec)
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
    written = msgspec.structs.asdict(_convert(f"{path}.limit", spec.limit, LimitSpec))
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


def _with_words(declared: Any, fields: dict[str, tuple[bool, ...]]) -> Any:
    """A plain `on` is true in YAML and `off` is false, and both are words in these fields."""
    if not isinstance(declared, dict):
        return declared
    words = {
        field: "on" if declared[field] else "off"
        for field, taken in fields.items()
        if isinstance(declared.get(field), bool) and declared[field] in taken
    }
    return {**declared, **words}


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


def basis_points(path: str, percent: float) -> int:
    """Per cent → basis points. Raises `ManifestError` outside 0..100 or finer than 0.01 %."""
    if not 0 <= percent <= 100:
        raise ManifestError(path, f"{percent:g} is not a weight: write per cent, from 0 to 100")
    points = round(percent * 100)
    if abs(points - percent * 100) > 1e-6:
        raise ManifestError(path, f"{percent:g} is finer than 0.01 %")
    return points


def _reference(path: str, text: str, registries: dict[str, RegistryDeclaration]) -> ModelRef:
    try:
        reference = ModelRef.parse(text)
    except InvalidReference as error:
        raise ManifestError(path, str(error)) from error
    if reference.registry not in registries:
        known = ", ".join(registries) or "none"
        raise ManifestError(path, f"registry {reference.registry!r} is not declared (declared: {known})")
    return reference


def duration_ms(path: str, text: str) -> int:
    """`"500ms"`, `"30s"`, `"10m"`, `"1h"` → milliseconds. Raises `ManifestError`."""
    match = _DURATION.fullmatch(text)
    if not match or float(match[1]) == 0:
        raise ManifestError(path, f"{text[:40]!r} is no duration: write 500ms, 30s, 10m or 1h")
    duration = max(1, round(float(match[1]) * _UNIT_MS[match[2]]))
    if duration > LONGEST_DURATION_MS:
        raise ManifestError(path, f"{text} is longer than 30 days")
    return duration


def _engine(path: str, declared: dict[str, Any]) -> EngineOptions:
    words = {"share_weights": (True, False), "concurrency": (False,)}
    options = _convert(path, _with_words(declared, words), EngineOptions)
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

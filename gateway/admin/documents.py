"""What the admin API tells about routes, versions and replicas, as plain documents. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.control.store import Member
from gateway.routing.state import InForce, Pin, Route
from gateway.routing.table import RouteEntry, compile_route, compile_table
from gateway.telemetry.exposure import Exposed
from gateway.telemetry.observations import Counts, Labels, quantile_s, requests_by_code
from registry_client import ModelVersion

Document = dict[str, Any]


def route_documents(held: InForce, totals: Mapping[Labels, Counts]) -> list[Document]:
    """Every route, as `GET /api/v1/routes` lists them."""
    table = compile_table(held)
    return [
        _route(name, route, table[name], held, totals) for name, route in sorted(held.state.routes.items())
    ]


def route_document(held: InForce, name: str, totals: Mapping[Labels, Counts]) -> Document:
    """One route with all that is known of it. The name exists."""
    return _route(name, held.state.routes[name], compile_route(held, name), held, totals)


def add_exposure(document: Document, exposed: Mapping[Labels, Exposed]) -> None:
    """Adds `exposure` to each variant of a route's document that is limited and not denied."""
    for variant, fields in document["variants"].items():
        each = exposed.get(Labels(document["name"], variant, fields["version"]))
        if each is not None:
            fields["exposure"] = {
                kind: {"used": each.used[kind], "limit": most} for kind, most in each.limits.items()
            }
            if each.lease_s is not None:
                fields["exposure"]["lease"] = {"left_s": round(each.lease_s, 1)}


def member_document(member: Member) -> Document:
    document = msgspec.to_builtins(member)
    document["revision"] = f"{member.epoch}.{member.rev}"
    return dict(document)


def version_document(version: ModelVersion, digest: str | None) -> Document:
    """A version as its registry describes it; the digest is None until its files were fetched once."""
    return {
        "registry": version.registry,
        "model": version.model,
        "version": version.version,
        "digest": digest,
        "identity": version.identity,
        "aliases": list(version.aliases),
        "created_ms": version.created_ms,
        "description": version.description,
        "files": [
            {
                "path": file.path,
                "size_bytes": file.size_bytes,
                "digest": str(file.digest) if file.digest is not None else None,
            }
            for file in version.files
        ],
        "lineage": {
            "run_id": version.lineage.run_id,
            "metrics": dict(version.lineage.metrics),
            "params": dict(version.lineage.params),
            "datasets": dict(version.lineage.datasets),
            "commit": version.lineage.commit,
            "parent": version.lineage.parent,
            "environment": dict(version.lineage.environment),
            "tags": dict(version.lineage.tags),
        },
    }


def _route(
    name: str, route: Route, entry: RouteEntry, held: InForce, totals: Mapping[Labels, Counts]
) -> Document:
    return {
        "name": name,
        "revision": held.label,
        "fallback": route.fallback,
        "sticky": route.sticky,
        "overrides": route.overrides,
        "explicit_versions": route.explicit_versions,
        "timeout_ms": route.timeout_ms,
        "variants": {
            variant: _variant(name, variant, route, entry, held, totals)
            for variant in sorted(route.variants, key=lambda variant: (variant != route.fallback, variant))
        },
        "previous": [_pin(pin) for pin in route.previous],
        "rollback_to": _pin(entry.spare) if entry.spare is not None else None,
        "denies": [
            {
                "version": deny.version,
                "digest": key.digest,
                "reason": deny.reason,
                "actor": deny.actor,
                "us": deny.us,
            }
            for key, deny in held.denies.items()
            if key.route == name
        ],
    }


def _variant(
    name: str,
    variant_name: str,
    route: Route,
    entry: RouteEntry,
    held: InForce,
    totals: Mapping[Labels, Counts],
) -> Document:
    variant = route.variants[variant_name]
    arm = entry.arms.get(variant_name)
    own = arm is not None and arm.variant == variant_name
    pin = arm.pin if arm is not None and own else variant.pin
    document: Document = {
        **_pin(pin),
        "reference": variant.reference,
        "weight": variant.weight_bp / 100,
        "share": entry.shares_bp[variant_name] / 100,
        "denied": variant.pin.version if held.denied(name, variant.pin) else None,
    }
    document.update(_figures(totals.get(Labels(name, variant_name, pin.version))))
    return document


def _figures(counts: Counts | None) -> Document:
    if counts is None:
        return {"requests": 0, "errors": 0, "p50_ms": None, "p99_ms": None}
    codes = requests_by_code(counts)
    return {
        "requests": sum(codes.values()),
        # What the client got wrong is not the version's fault.
        "errors": sum(count for code, count in codes.items() if code >= 500 or code == 0),
        "p50_ms": _milliseconds(quantile_s(counts, 0.5)),
        "p99_ms": _milliseconds(quantile_s(counts, 0.99)),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _pin(pin: Pin) -> Document:
    return {"registry": pin.registry, "model": pin.model, "version": pin.version, "digest": pin.digest}


def history_documents(records: Iterable[Any]) -> list[Document]:
    return [{**msgspec.to_builtins(record), "revision": f"{record.epoch}.{record.rev}"} for record in records]

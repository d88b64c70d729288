"""The supervisor's side of the workers' quotas, and what people are shown of them."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.control.exposure import Exposures, Watching
from gateway.routing.exposure import KINDS
from gateway.routing.state import DenyKey, InForce
from gateway.serving.exposure import Allowed, Wanted
from gateway.telemetry.exposure import Exposed
from gateway.telemetry.observations import Labels


async def allowance(exposures: Exposures, wanted: dict[str, Any]) -> Any:
    """Answers a worker's call."""
    asked = msgspec.convert(wanted, Wanted)
    found = await exposures.allowance(
        DenyKey(asked.route, asked.digest),
        requests=asked.requests,
        spent=asked.spent,
        errors=asked.errors,
        keys=tuple(asked.keys),
    )
    allowed = Allowed(requests=found.requests, errors=found.errors, keys=found.keys, lease_s=found.lease_s)
    return msgspec.to_builtins(allowed, builtin_types=(bytes,))


def exposed(exposures: Exposures, held: InForce) -> dict[Labels, Exposed]:
    """By variant: each limited one that is not denied."""
    watching = exposures.watching()
    found = {}
    for (route, digest), version in watching.items():
        for name, variant in held.state.routes[route].variants.items():
            if variant.pin.digest == digest:
                found[Labels(route, name, variant.pin.version)] = _exposed(version)
    return found


def _exposed(version: Watching) -> Exposed:
    limits = {kind: most for kind in KINDS if (most := getattr(version.exposure, kind))}
    return Exposed(
        used={kind: getattr(version, kind) for kind in limits},
        limits=limits,
        lease_s=version.lease_s if version.exposure.lease_ms else None,
    )

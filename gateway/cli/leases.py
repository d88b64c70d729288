"""`turnout renew`, and how a version's limits are shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from gateway.cli.admin_client import AdminClient, segment
from gateway.cli.output import say, show


@click.command()
@click.argument("route")
@click.argument("variant", required=False)
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.pass_obj
def renew(admin: AdminClient, route: str, variant: str | None, output: str) -> int:
    """Renew the lease of a variant, or of all of a route: while nobody does, they are denied."""
    at = f"/routes/{segment(route)}"
    document = admin.send("POST", f"{at}/variants/{segment(variant)}/lease" if variant else f"{at}/lease")
    if output == "table":
        say(document["message"])
    else:
        show(document, (), (), output)
    return 0


def exposure_lines(variants: dict[str, Any]) -> Iterator[str]:
    """`canary: 40 of 1000 requests, 0 of 5 errors, lease ends in 540 s`, for each that is limited."""
    for name, variant in variants.items():
        exposure = variant.get("exposure")
        if exposure is None:
            continue
        parts = [
            f"{each['used']} of {each['limit']} {kind}" for kind, each in exposure.items() if kind != "lease"
        ]
        if "lease" in exposure:
            parts.append(f"its lease ends in {exposure['lease']['left_s']:g} s")
        yield f"{name}: {', '.join(parts)}"


COMMANDS = (renew,)

"""The commands that only look."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.admin_client import AdminClient, segment
from gateway.cli.output import moment, per_cent, say, show, size, table

_OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")


@click.group("get")
def get() -> None:
    """List routes, versions or registries."""


@get.command("routes")
@_OUTPUT
@click.pass_obj
def get_routes(admin: AdminClient, output: str) -> None:
    """Every route, its variants and their shares."""
    document = admin.get("/routes")
    rows = [
        (
            route["name"],
            name,
            _version(variant),
            per_cent(variant["weight"]),
            per_cent(variant["share"]),
            variant["requests"],
            variant["errors"],
            _number(variant["p50_ms"]),
            _number(variant["p99_ms"]),
        )
        for route in document["routes"]
        for name, variant in route["variants"].items()
    ]
    show(
        document,
        ("route", "variant", "version", "weight", "share", "requests", "errors", "p50 ms", "p99 ms"),
        rows,
        output,
    )


@get.command("versions")
@click.argument("model", metavar="REGISTRY/MODEL")
@_OUTPUT
@click.pass_obj
def get_versions(admin: AdminClient, model: str, output: str) -> None:
    """The versions of a model in its registry."""
    document = admin.get("/versions", model=model)
    rows = [
        (version["version"], ", ".join(version["aliases"]), _short(version["digest"]), version["description"])
        for version in document["versions"]
    ]
    show(document, ("version", "aliases", "digest", "description"), rows, output)


@get.command("registries")
@_OUTPUT
@click.pass_obj
def get_registries(admin: AdminClient, output: str) -> None:
    """The registries that the manifest declares."""
    document = admin.get("/registries")
    rows = [
        (entry["name"], entry["type"], " ".join(f"{key}={value}" for key, value in entry["options"].items()))
        for entry in document["registries"]
    ]
    show(document, ("name", "type", "options"), rows, output)


@click.command()
@click.argument("route")
@_OUTPUT
@click.pass_obj
def describe(admin: AdminClient, route: str, output: str) -> None:
    """One route: what serves, what is denied and why, and where a rollback would lead."""
    document = admin.get(f"/routes/{segment(route)}")
    if output != "table":
        show(document, (), (), output)
        return
    back = document["rollback_to"]
    say(f"route       {document['name']}, at revision {document['revision']}")
    say(f"sticky by   {document['sticky']}")
    say(
        f"fallback    {document['fallback']}"
        + (f"; before it version {back['version']}, kept loaded" if back else "")
    )
    say("")
    table(
        ("variant", "version", "digest", "reference", "weight", "share", "requests", "errors", "p99 ms"),
        [
            (
                name,
                _version(variant),
                _short(variant["digest"]),
                variant["reference"],
                per_cent(variant["weight"]),
                per_cent(variant["share"]),
                variant["requests"],
                variant["errors"],
                _number(variant["p99_ms"]),
            )
            for name, variant in document["variants"].items()
        ],
    )
    for deny in document["denies"]:
        by = f" by {deny['actor']}" if deny["actor"] else ""
        say(
            f"\ndenied      version {deny['version']}, {moment(deny['us'])}{by}: {deny['reason'] or 'no reason given'}"
        )


@click.command()
@_OUTPUT
@click.pass_obj
def status(admin: AdminClient, output: str) -> None:
    """The replicas, what each has applied, and what is degraded."""
    document = admin.get("/status")
    if output != "table":
        show(document, (), (), output)
        return
    columns = ("replica", "revision", "status", "workers", "denies", "error")
    rows = [
        (
            member["replica"],
            member["revision"],
            member["status"],
            f"{member['workers_ok']}/{member['workers_total']}",
            member["deny_n"],
            member["error"],
        )
        for member in document["members"]
    ]
    table(columns, rows)
    for text in document["degraded"]:
        say(f"degraded: {text}")


@click.group("cache")
def cache() -> None:
    """The weights cache of the gateway."""


@cache.command("list")
@_OUTPUT
@click.pass_obj
def cache_list(admin: AdminClient, output: str) -> None:
    """The cached versions, and the fetches under way."""
    document = admin.get("/cache")
    rows = [
        (
            f"{entry['registry']}/{entry['model']}",
            entry["version"],
            _short(entry["digest"]),
            size(entry["size_bytes"]),
            "yes" if entry["in_use"] else "",
        )
        for entry in document["versions"]
    ]
    show(document, ("model", "version", "digest", "size", "in use"), rows, output)
    if output == "table":
        for fetch in document["fetches"]:
            done, total = size(fetch["done_bytes"]), size(fetch["total_bytes"])
            say(f"fetching {fetch['registry']}/{fetch['model']} {fetch['version']}: {done} of {total}")


@cache.command("prune")
@click.option("--keep", "max_bytes", type=int, default=0, help="Bytes to keep of what is not in use.")
@_OUTPUT
@click.pass_obj
def cache_prune(admin: AdminClient, max_bytes: int, output: str) -> None:
    """Remove cached versions that nothing uses, those unused longest first."""
    document = admin.send("POST", "/cache/prune", {"max_bytes": max_bytes})
    show(document, ("digest",), [(digest,) for digest in document["pruned"]], output)


def _version(variant: dict[str, Any]) -> str:
    denied = variant["denied"]
    if denied is None:
        return str(variant["version"])
    return f"{denied} denied" if denied == variant["version"] else f"{variant['version']} ({denied} denied)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _short(digest: str | None) -> str:
    return "not fetched" if digest is None else digest[:12]


COMMANDS = (get, describe, status, cache)

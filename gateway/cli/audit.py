"""The commands that tell of the history: who changed what, what served when, and whether it is whole."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from gateway.cli.admin_client import AdminClient
from gateway.cli.moments import microseconds
from gateway.cli.output import fail, moment, say, show, table

_CHANGES_SHOWN = 3
_OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")


def _at_us(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """Microseconds since the epoch."""
    try:
        return None if text is None else microseconds(text, datetime.now().astimezone())
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("route", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option(
    "--at", callback=_at_us, metavar="TIME", help="What served then: 14:03, 2026-11-23T14:03, -10m."
)
@_OUTPUT
@click.pass_obj
def history(admin: AdminClient, route: str | None, limit: int, at: int | None, output: str) -> None:
    """Who changed what, when and why; the newest first. With --at, which mix served at a time."""
    of_route = {"route": route} if route is not None else {}
    if at is not None:
        _show_served(admin.get("/audit", at=at, **of_route), output)
        return
    document = admin.get("/audit", limit=limit, **of_route)
    rows = [
        (
            record["revision"],
            moment(record["us"]),
            record["type"],
            record["actor"],
            changes_cell([change for change in record["changes"] if route in (None, change.get("route"))]),
            record["reason"],
        )
        for record in document["records"]
    ]
    show(document, ("revision", "when", "what", "who", "change", "why"), rows, output)


@click.group("audit")
def audit() -> None:
    """Whether the history is as it was written."""


@audit.command("verify")
@click.option(
    "--head", "heads", multiple=True, metavar="HASH", help="A head noted earlier, which must still be in it."
)
@_OUTPUT
@click.pass_context
def verify(context: click.Context, heads: tuple[str, ...], output: str) -> None:
    """Check every line of the history against its hash chain; exits 1 and names the line where it breaks."""
    verdict = context.obj.get("/audit/verify", head=list(heads))
    if output != "table":
        show(verdict, (), (), output)
    elif verdict["lines"]:
        _say_verdict(verdict)
    else:
        say("the history is empty")
    if verdict["broken"]:
        if output == "table":
            fail(f"the history is not whole: {verdict['broken']}")
        context.exit(1)


def _say_verdict(verdict: dict[str, Any]) -> None:
    say(f"lines       {verdict['lines']}")
    if verdict["unprotected"]:
        say(f"unprotected {verdict['unprotected']}, from before there was a hash chain")
    say(f"oldest      {verdict['oldest']}, {moment(verdict['oldest_us'])}")
    say(f"newest      {verdict['newest']}, {moment(verdict['newest_us'])}")
    say(f"head        {verdict['head'] or 'none'}")
    if not verdict["broken"]:
        say(f"every {'other ' if verdict['unprotected'] else ''}line is as it was written")


def _show_served(document: dict[str, Any], output: str) -> None:
    if output != "table":
        show(document, (), (), output)
        return
    say(f"at {moment(document['at_us'])}, revision {document['revision']}")
    rows = [
        (
            name,
            _mix(served["serving"]),
            _change_at(served["since"]) or "before the history begins",
            _change_at(served["until"]) or "now",
            served["since"]["reason"] if served["since"] else "",
        )
        for name, served in document["routes"].items()
    ]
    table(("route", "served", "since", "until", "why"), rows)


def _change_at(change: dict[str, Any] | None) -> str:
    return f"{change['revision']} {moment(change['us'])} by {change['actor']}" if change else ""


def changes_cell(changes: list[dict[str, Any]]) -> str:
    """The first few: a manifest may change thousands of routes at once, and a table has one line for it."""
    lines = [_change_line(change) for change in changes[:_CHANGES_SHOWN]]
    if len(changes) > _CHANGES_SHOWN:
        lines.append(f"and {len(changes) - _CHANGES_SHOWN} routes more (-o json)")
    return "; ".join(lines)


def _change_line(change: dict[str, Any]) -> str:
    return f"{change.get('route')}: {_mix(change.get('before'))} -> {_mix(change.get('after'))}"


def _mix(serving: dict[str, Any] | None) -> str:
    if serving is None:
        return "nothing"
    try:
        shares = [
            f"{name} {variant['version']} {variant['share']:g}%"
            for name, variant in serving.items()
            if variant["share"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        # Somebody wrote to the history by hand; `audit verify` says where.
        return "unreadable"
    return ", ".join(shares) or "no traffic"


COMMANDS = (history, audit)

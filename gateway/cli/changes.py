"""The commands that change what is served."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from gateway.cli.admin_client import APPLY_TIMEOUT_S, AdminClient, segment
from gateway.cli.errors import AdminError
from gateway.cli.output import fail, say, show
from gateway.control.manifest_file import read_manifest
from gateway.routing.state import Revision

_POLL_S = 0.02
_OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
_FILE = click.option("-f", "--file", "file", type=click.Path(path_type=Path, dir_okay=False), required=True)
_REASON = click.option("--reason", default="", help="For the history.")
_WAIT = click.option(
    "--wait", is_flag=True, help="Return when every live worker of every live replica has it."
)


def _seconds(_: click.Context, __: click.Parameter, value: float) -> float:
    if not value >= 0:  # of no number this is not so either, and no time would ever be beyond it
        raise click.BadParameter(f"{value:g} is no number of seconds: write 0 or more")
    return value


_TIMEOUT = click.option(
    "--timeout", type=float, default=30.0, show_default=True, callback=_seconds, help="Seconds for --wait."
)
_REVISION = click.option("--revision", help="Refuse unless this revision is still in force.")


@click.command()
@_FILE
@_OUTPUT
@click.pass_obj
def plan(admin: AdminClient, file: Path, output: str) -> int:
    """Show what applying a manifest would change. Exits 2 if it would change something."""
    document = admin.send("POST", "/plan", _manifest(file), timeout_s=APPLY_TIMEOUT_S)
    _show_plan(document, output)
    return 2 if document["changes"] else 0


@click.command()
@_FILE
@_REASON
@_REVISION
@_WAIT
@_TIMEOUT
@_OUTPUT
@click.pass_obj
def apply(
    admin: AdminClient, file: Path, reason: str, revision: str | None, wait: bool, timeout: float, output: str
) -> int:
    """Put a manifest in force: fetch, verify, load, then switch, whole or not at all."""
    body = {**_manifest(file), "reason": reason}
    document = admin.send("POST", "/apply", body, revision=revision, timeout_s=APPLY_TIMEOUT_S)
    _show_plan(document, output)
    return _settle(admin, document, wait, timeout, output)


@click.command()
@click.argument("changes", nargs=-1, required=True, metavar="ROUTE VARIANT=PERCENT...")
@_REASON
@_REVISION
@_WAIT
@_TIMEOUT
@_OUTPUT
@click.pass_obj
def weights(
    admin: AdminClient,
    changes: tuple[str, ...],
    reason: str,
    revision: str | None,
    wait: bool,
    timeout: float,
    output: str,
) -> int:
    """Set a route's split, in per cent. The fallback takes what the others leave, unless named.

    Several routes, one after the other, change in one revision: digits canary=10 fraud canary=5
    """
    body = {"routes": _weights_by_route(changes), "reason": reason}
    document = admin.send("PATCH", "/weights", body, revision=revision)
    _show_outcome(document, output)
    return _settle(admin, document, wait, timeout, output)


@click.command()
@click.argument("routes", nargs=-1, required=True, metavar="ROUTE[=VERSION]...")
@click.option("--version", help="Deny this version of the one route; else what is new on it.")
@_REASON
@_WAIT
@_TIMEOUT
@_OUTPUT
@click.pass_obj
def rollback(
    admin: AdminClient,
    routes: tuple[str, ...],
    version: str | None,
    reason: str,
    wait: bool,
    timeout: float,
    output: str,
) -> int:
    """Deny what is new on a route: its traffic goes back to what served before, within milliseconds.

    Several routes go back in one revision, all of them or none; each with a version, where one is named.
    """
    body = {"routes": _versions_by_route(routes, version), "reason": reason}
    document = admin.send("POST", "/rollback", body)
    _show_outcome(document, output)

    def again() -> dict[str, Any]:
        repeated: dict[str, Any] = admin.send("POST", "/rollback", body)
        return repeated

    return _settle(admin, document, wait, timeout, output, rollback=again)


@click.command()
@click.argument("route")
@click.argument("version")
@_REASON
@_WAIT
@_TIMEOUT
@_OUTPUT
@click.pass_obj
def allow(
    admin: AdminClient, route: str, version: str, reason: str, wait: bool, timeout: float, output: str
) -> int:
    """Lift a deny: the version takes its declared share again."""
    path = f"/routes/{segment(route)}/denies/{segment(version)}"
    document = admin.send("DELETE", f"{path}?reason={segment(reason)}" if reason else path)
    _show_outcome(document, output)
    return _settle(admin, document, wait, timeout, output)


@click.command()
@click.option(
    "--force", is_flag=True, help="Also where another replica holds later changes: they are undone."
)
@_REASON
@_REVISION
@_WAIT
@_TIMEOUT
@_OUTPUT
@click.pass_obj
def restore(
    admin: AdminClient,
    force: bool,
    reason: str,
    revision: str | None,
    wait: bool,
    timeout: float,
    output: str,
) -> int:
    """Give the store what this replica holds, after the store lost it. Every replica takes it."""
    body = {"reason": reason, "force": force}
    document = admin.send("POST", "/restore", body, revision=revision)
    _show_outcome(document, output)
    return _settle(admin, document, wait, timeout, output)


@click.command()
@_REASON
@_REVISION
@_WAIT
@_TIMEOUT
@_OUTPUT
@click.pass_obj
def adopt(
    admin: AdminClient, reason: str, revision: str | None, wait: bool, timeout: float, output: str
) -> int:
    """Say that the store is right, where replicas hold something else. Every replica takes it."""
    document = admin.send("POST", "/adopt", {"reason": reason}, revision=revision, timeout_s=APPLY_TIMEOUT_S)
    _show_outcome(document, output)
    return _settle(admin, document, wait, timeout, output)


def _manifest(file: Path) -> dict[str, str]:
    # Read here as well: a manifest that is wrong is refused with its field, gateway or not.
    read_manifest(file)
    return {"manifest": file.read_text(encoding="utf-8"), "base": str(file.parent.absolute())}


def _weights_by_route(words: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """`digits canary=10 fraud canary=5` → {"digits": {"canary": 10.0}, "fraud": {"canary": 5.0}}"""
    routes: dict[str, dict[str, float]] = {}
    route = ""
    for word in words:
        if "=" not in word:
            route = word
            if route in routes:
                raise click.BadParameter(f"{route!r} is named twice")
            routes[route] = {}
        elif not routes:
            raise click.BadParameter(f"{word!r} comes before any route: write ROUTE VARIANT=PERCENT")
        else:
            name, percent = _weight(word)
            routes[route][name] = percent
    if without := [name for name, given in routes.items() if not given]:
        raise click.BadParameter(
            f"{without[0]!r} has no weights: write {without[0]} VARIANT=PERCENT, for example canary=10"
        )
    return routes


def _versions_by_route(words: tuple[str, ...], version: str | None) -> dict[str, str | None]:
    """`fraud digits=3` → {"fraud": None, "digits": "3"}"""
    routes: dict[str, str | None] = {}
    for word in words:
        name, equals, given = word.partition("=")
        if "," in name:  # which is how a signal names several, and no route's name has one
            raise click.BadParameter(f"{word!r}: separate routes with a space: {name.replace(',', ' ')}")
        if name in routes or not name or (equals and not given):
            problem = "is named twice" if name in routes else "is not ROUTE or ROUTE=VERSION"
            raise click.BadParameter(f"{word!r} {problem}")
        routes[name] = given or None
    if version is not None:
        if len(words) > 1 or "=" in words[0]:
            raise click.BadParameter("--version is for one route: of several write ROUTE=VERSION")
        routes[words[0]] = version
    return routes


def _weight(text: str) -> tuple[str, float]:
    name, equals, percent = text.partition("=")
    try:
        weight = float(percent.rstrip("%"))
        if not (equals and name and math.isfinite(weight)):
            raise ValueError
        return name, weight
    except ValueError:
        raise click.BadParameter(f"{text!r} is not VARIANT=PERCENT, for example canary=10") from None


def _show_plan(document: dict[str, Any], output: str) -> None:
    if output != "table":
        show(document, (), (), output)
        return
    for line in document["lines"]:
        say(f"  {line}")
    for note in document["notes"]:
        say(f"  note: {note}")
    count = len(document["changes"])
    say(
        f"{count} change{'' if count == 1 else 's'}, revision {document['revision']}"
        if count
        else "no changes"
    )


def _show_outcome(document: dict[str, Any], output: str) -> None:
    if output != "table":
        show(document, (), (), output)
        return
    say(f"{document['message'] or 'done'} (revision {document['revision']})")
    if document.get("durable") is False:
        say("it is in force, but not on the store's disk or replicas yet: a loss of the primary may undo it")


def _settle(
    admin: AdminClient,
    document: dict[str, Any],
    wait: bool,
    timeout_s: float,
    output: str,
    *,
    rollback: Callable[[], dict[str, Any]] | None = None,
) -> int:
    """With --wait: 0 when everybody has it, else 4 and the names of those who have not, or 1 where nobody has any more.

    `rollback` asks for it once more, if it was one: what is denied already is answered with its revision.
    """
    if not document.get("published", True):
        if wait:
            fail("only this replica has it: the store has not heard of it (turnout status says why)")
        return 4 if wait else 0
    if not wait:
        return 0
    deadline = time.monotonic() + timeout_s
    while True:
        revision = Revision.parse(document["revision"].partition("+")[0])
        try:
            behind = wait_for_all(admin, revision, deadline, denies_only=rollback is not None)
            break
        except ChangeLost as error:
            if rollback is None or time.monotonic() > deadline:
                fail(str(error))
                return 1
            document = rollback()
            if not document.get("published", True):
                time.sleep(_POLL_S)
    if behind:
        fail(f"not everywhere after {timeout_s:g} s: {'; '.join(behind)}")
        return 4
    if output == "table":
        say("every live worker of every live replica has it")
    return 0


class ChangeLost(Exception):
    """A loss of the store's primary has undone a change that was not durable."""


def wait_for_all(
    admin: AdminClient, revision: Revision, deadline: float, *, denies_only: bool = False
) -> list[str]:
    """Polls the acknowledgements; returns who has not applied the revision, empty when everybody has.

    Everybody is who was named at any time of the wait, and LOST is who froze or died in the ten minutes before
    it: silent, it may answer by what it had, so it is behind. `denies_only`: the revision is a rollback's, which
    may be in force ahead of its document. `deadline` is by the monotonic clock. Raises `ChangeLost`.
    """
    awaited: dict[str, dict[str, Any]] = {}
    while True:
        try:
            document = admin.get("/status")
            live = {member["replica"]: member for member in document["members"]}
            _see_that_it_is_not_lost(live.values(), revision)
            awaited |= live
            lacking = [member for member in awaited.values() if not _has(member, revision, denies_only)]
            behind = [_behind(member, live=member["replica"] in live) for member in lacking]
            if not document.get("complete", True):
                behind.append("the store cannot be reached, so nobody knows of other replicas")
            elif not awaited:
                behind = ["no replica has reported yet"]
        except AdminError as error:
            behind = [str(error)]
        if not behind or time.monotonic() > deadline:
            return behind
        time.sleep(_POLL_S)


def _has(member: dict[str, Any], revision: Revision, denies_only: bool) -> bool:
    """What a replica with another document says of revisions (a NACK), says nothing of this one."""
    ahead = member["denies_rev"] if denies_only else 0
    applied = (member["epoch"], max(member["rev"], ahead)) >= revision and not _lacks(member, revision)
    return bool(applied and member["status"] == "ACK" and member["workers_ok"] == member["workers_total"])


def _lacks(member: dict[str, Any], revision: Revision) -> bool:
    """Whether what it holds continues what was before the revision: a later one that does not have it."""
    base = Revision.parse(member.get("base") or "0.0")
    return bool(member["epoch"] > revision.epoch == base.epoch and base < revision)


def _see_that_it_is_not_lost(members: Iterable[dict[str, Any]], revision: Revision) -> None:
    for member in members:
        if _lacks(member, revision):
            raise ChangeLost(
                f"revision {revision} was lost with the store's primary: {member['replica']} is at "
                f"{member['revision']}, which continues {member['base']}. Make the change again"
            )


def _behind(member: dict[str, Any], *, live: bool) -> str:
    workers = f"{member['workers_ok']} of {member['workers_total']} workers"
    text = f"{member['replica']} is at {member['revision']}, {workers}"
    text += "" if live else ", and is gone"
    return f"{text} ({member['error']})" if member["error"] else text


COMMANDS = (plan, apply, weights, rollback, allow, restore, adopt)

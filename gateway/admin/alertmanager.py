"""What Alertmanager posts to a webhook, version 4: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from gateway.control.authors import author
from gateway.control.store import Author
from gateway.routing.change import ChangeRefused, named_routes

VERSION = "4"
_ROUTE = ("turnout_route", "route")
"""Labels, the first that is there: `route` is also what other software calls what it has alerts about."""
_VERSION = ("turnout_version", "version")
"""Labels, else annotations. The metrics of the gateway have a `version`, so their alerts name the one at fault."""
_SUMMARY = ("summary", "description")


class Alert(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One alert; what else is in it is not looked at."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    starts_at: str
    fingerprint: str


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """One notification, of a group of alerts."""

    version: str
    alerts: list[Alert]


def routes_of(alert: Alert) -> dict[str, str | None]:
    """The routes that it rolls back, each with a version or None. Raises `ChangeRefused`."""
    route = _first(_ROUTE, alert.labels)
    if not route:
        raise ChangeRefused(f"{_name(alert)} names no route: give it a label {' or '.join(_ROUTE)}")
    return named_routes(route, _first(_VERSION, alert.labels) or _first(_VERSION, alert.annotations))


def routes_first(alerts: Iterable[Alert]) -> list[Alert]:
    """For each route its first alert, then the second ones: a hundred instances of one keep no other waiting."""
    before: Counter[str] = Counter()
    ranked = []
    for alert in alerts:
        route = _first(_ROUTE, alert.labels)
        ranked.append((before[route], alert))
        before[route] += 1
    return [alert for _, alert in sorted(ranked, key=lambda pair: pair[0])]


def author_of(alert: Alert, actor: str) -> Author:
    """An alert that is sent again, by this Alertmanager or another one of its cluster, is the same signal."""
    same = hashlib.sha256(f"{alert.fingerprint}|{alert.starts_at}".encode("utf-8", "replace")).hexdigest()
    summary = _first(_SUMMARY, alert.annotations)
    return author(actor, f"{_name(alert)}: {summary}" if summary else _name(alert), f"alert-{same[:32]}")


def _name(alert: Alert) -> str:
    return f"alert {alert.labels.get('alertname', '')[:140]!r}"


def _first(names: tuple[str, ...], given: dict[str, str]) -> str:
    return next((given[name] for name in names if given.get(name)), "")

"""A real Alertmanager, with the configuration that is shipped, rolls back a real gateway with a guard's token."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.documentation.pages import ROOT
from tests.servers.alertmanager import Alertmanager
from tests.servers.gateway import Gateway, wait_for

TOKEN = "turnout_" + "5" * 64
ADMIN = "0123456789abcdef-releaser"
AUTHORISED = {"authorization": f"Bearer {ADMIN}"}
MANIFEST = """
registries:
  local: {{type: directory, path: {path}}}
routes:
  number:
    variants:
      stable: {{model: local/number@1, weight: 50}}
      canary: {{model: local/number@2, weight: 50}}
  letter:
    variants:
      stable: {{model: local/number@1, weight: 50}}
      canary: {{model: local/number@2, weight: 50}}
"""


@pytest.fixture
def gateway(gateways: Callable[..., Gateway], tmp_path: Path) -> Gateway:
    for version in "12":
        source = models.save(models.constant(float(version)), tmp_path / version / "model.onnx")
        publish(tmp_path / "models", "number", source, version=version)
    tokens = tmp_path / "tokens.yaml"
    sha256 = hashlib.sha256(TOKEN.encode()).hexdigest()
    tokens.write_text(f"pager: {{role: guard, sha256: {sha256}}}\n")
    made = gateways(
        MANIFEST.format(path=tmp_path / "models"),
        *("--workers", "1", "--tokens", str(tokens)),
        TURNOUT_ADMIN_TOKEN=ADMIN,
    )
    return made.start()


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    made = Alertmanager(tmp_path / "alertmanager")
    yield made
    made.kill()


def config(gateway: Gateway, token: Path) -> str:
    """The shipped one, for this gateway, and with an interval that a test can wait for."""
    shipped = (ROOT / "configs" / "alertmanager" / "alertmanager.yml").read_text()
    for old, new in (
        ("http://127.0.0.1:8082", gateway.admin),
        ("/etc/alertmanager/turnout-token", str(token)),
        ("group_interval: 1m", "group_interval: 1s"),
        ("repeat_interval: 12h", "repeat_interval: 1s"),
    ):
        assert old in shipped
        shipped = shipped.replace(old, new)
    return shipped


def lines(gateway: Gateway) -> list[tuple[str, str, str]]:
    records = gateway.api("GET", "/audit", headers=AUTHORISED).json()["records"]
    return [(record["type"], record["actor"], record["reason"]) for record in records][::-1]


def test_it_rolls_back_what_its_alerts_name(
    gateway: Gateway, alertmanager: Alertmanager, tmp_path: Path
) -> None:
    token = tmp_path / "turnout-token"
    token.write_text(TOKEN + "\n")
    alertmanager.start(config(gateway, token))
    alertmanager.fire(
        {
            "labels": {"alertname": "ErrorBudget", "turnout_route": "number"},
            "annotations": {"summary": "5 % of number's answers are errors"},
        },
        {"labels": {"alertname": "ErrorBudget", "turnout_route": "nobody"}, "annotations": {}},
        {"labels": {"alertname": "DiskFull", "instance": "db-1"}, "annotations": {}},
    )
    wait_for(lambda: len(lines(gateway)) >= 3, 30, lambda: gateway.log + alertmanager.log)
    found = lines(gateway)
    assert (
        "deny",
        "pager (alertmanager)",
        "alert 'ErrorBudget': 5 % of number's answers are errors",
    ) in found
    (refused,) = [reason for type_, _, reason in found if type_ == "reject"]
    assert "no route 'nobody'" in refused
    assert {(key["version"]) for key in route(gateway, "number")["denies"]} == {"2"}
    assert route(gateway, "letter")["denies"] == []
    # The refusal is a failed notification, for whoever watches Alertmanager, and not one that it repeats at once.
    failed = "alertmanager_notifications_failed_total"
    wait_for(lambda: alertmanager.count(failed) >= 1, 10, lambda: alertmanager.log)
    assert "no route 'nobody'" in alertmanager.log

    # It goes on firing, and is posted again and again; a person decides otherwise, and that holds.
    allowed = gateway.api("DELETE", "/routes/number/denies/2", headers=AUTHORISED)
    assert allowed.status_code == 200
    sent = "alertmanager_notifications_total"
    enough = alertmanager.count(sent) + 4
    wait_for(lambda: alertmanager.count(sent) >= enough, 30, lambda: alertmanager.log)
    assert route(gateway, "number")["denies"] == []
    assert [type_ for type_, _, _ in lines(gateway)].count("deny") == 1
    # Of the alert that was refused one more: the state has changed, and it was tried again.
    assert [type_ for type_, _, _ in lines(gateway)].count("reject") == 2
    assert len(lines(gateway)) == 5


def test_a_token_that_may_only_look_is_refused_and_alertmanager_says_so(
    gateway: Gateway, alertmanager: Alertmanager, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(tokens.read_text().replace("guard", "viewer"))
    token = tmp_path / "turnout-token"
    token.write_text(TOKEN)

    def told() -> int:
        headers = {"authorization": f"Bearer {TOKEN}"}
        return httpx.post(f"{gateway.admin}/api/v1/rollback", headers=headers, timeout=10).status_code

    wait_for(lambda: told() == 403, 20, lambda: gateway.log)
    alertmanager.start(config(gateway, token))
    alertmanager.fire({"labels": {"alertname": "A", "turnout_route": "number"}, "annotations": {}})
    wait_for(lambda: "takes the role guard" in alertmanager.log, 30, lambda: alertmanager.log)
    assert route(gateway, "number")["denies"] == []


def route(gateway: Gateway, name: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = gateway.api("GET", f"/routes/{name}", headers=AUTHORISED).json()
    return found

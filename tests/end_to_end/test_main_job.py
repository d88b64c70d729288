"""The main job on the embedded store: an alias, an answer, a split, a rollback, a restart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway

MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  number:
    variants:
      stable: {model: local/number@champion, weight: 90}
      canary: {model: local/number@challenger, weight: 10}
    overrides: true
"""
REQUEST = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.0, 0.0, 0.0]}]}


@pytest.fixture
def gateway(gateways: Callable[..., Gateway]) -> Gateway:
    made = gateways(MANIFEST, "--workers", "2")
    root = made.directory / "models"
    for version, aliases in (("1", ["champion"]), ("2", ["challenger"]), ("3", [])):
        source = models.save(models.constant(float(version)), made.directory / f"{version}" / "model.onnx")
        publish(root, "number", source, version=version, aliases=aliases)
    return made.start()


def ask(gateway: Gateway, key: str | None = None, path: str = "number", **headers: str) -> httpx.Response:
    if key is not None:
        headers["turnout-key"] = key
    return httpx.post(f"{gateway.data}/v2/models/{path}/infer", json=REQUEST, headers=headers, timeout=10)


def split(gateway: Gateway, client: httpx.Client, keys: int) -> dict[str, str]:
    """Key → the version that answered."""
    url = f"{gateway.data}/v2/models/number/infer"
    answers = {}
    for number in range(keys):
        response = client.post(url, json=REQUEST, headers={"turnout-key": f"user-{number}"})
        assert response.status_code == 200, response.text
        answers[f"user-{number}"] = response.headers["turnout-version"]
    return answers


def test_answers_carry_the_version_that_computed_them(gateway: Gateway) -> None:
    for key in ("a", "b", "c", "d", "e", "f"):
        response = ask(gateway, key)
        value = response.json()["outputs"][0]["data"][0]
        assert response.headers["turnout-version"] == f"{value:g}"
        assert response.headers["turnout-variant"] == {1.0: "stable", 2.0: "canary"}[value]
        assert response.headers["turnout-revision"] == "1.1"


def test_split_rollback_and_restart(gateway: Gateway) -> None:
    with httpx.Client() as client:
        before = split(gateway, client, 1000)
        counts = Counter(before.values())
        assert 60 <= counts["2"] <= 140
        assert gateway.turnout("weights", "number", "canary=20", "--wait").returncode == 0
        wider = split(gateway, client, 1000)
        moved = {key for key in before if before[key] != wider[key]}
        assert {(before[key], wider[key]) for key in moved} == {("1", "2")}

        done = gateway.turnout("rollback", "number", "--reason", "wrong digits", "--wait")
        assert done.returncode == 0, done.stderr
        assert set(split(gateway, client, 300).values()) == {"1"}

    assert gateway.stop() == 0
    gateway.start()
    with httpx.Client() as client:
        assert set(split(gateway, client, 300).values()) == {"1"}
        assert gateway.turnout("allow", "number", "2").returncode == 0
        assert split(gateway, client, 300) == {key: wider[key] for key in list(wider)[:300]}
    kinds = [record["type"] for record in gateway.api("GET", "/audit").json()["records"]]
    assert kinds == ["undeny", "deny", "put", "put"]


def test_explicit_versions_are_fetched_when_first_asked_for(gateway: Gateway) -> None:
    response = ask(gateway, path="number/versions/3")
    assert response.json()["outputs"][0]["data"] == [3.0]
    assert response.headers["turnout-variant"] == "pinned"
    unknown = ask(gateway, path="number/versions/99")
    assert unknown.status_code == 404
    assert unknown.json() == {"error": "'number' version 99 is not found"}
    assert ask(gateway, path="number/versions/champion").status_code == 404


def test_a_denied_version_is_not_served_by_its_number_either(gateway: Gateway) -> None:
    assert ask(gateway, path="number/versions/2").status_code == 200
    assert gateway.turnout("rollback", "number", "--wait").returncode == 0
    assert ask(gateway, path="number/versions/2").status_code == 403
    # An override leads to the fallback: its client gets an answer, and sees whose it is.
    response = ask(gateway, **{"turnout-variant": "canary"})
    assert (response.status_code, response.headers["turnout-version"]) == (200, "1")


def test_overrides_reach_a_variant(gateway: Gateway) -> None:
    assert ask(gateway, **{"turnout-variant": "canary"}).headers["turnout-version"] == "2"
    unknown = ask(gateway, **{"turnout-variant": "nobody"})
    assert unknown.status_code == 404
    assert "nobody" in unknown.json()["error"]


def test_all_weights_zero_is_503_and_comes_back(gateway: Gateway) -> None:
    assert gateway.turnout("weights", "number", "stable=0", "canary=0", "--wait").returncode == 0
    response = ask(gateway, "a")
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert gateway.turnout("weights", "number", "stable=100", "canary=0", "--wait").returncode == 0
    with httpx.Client() as client:
        assert set(split(gateway, client, 200).values()) == {"1"}


def test_an_alias_that_moved_is_planned_applied_and_rolled_back(gateway: Gateway, tmp_path: Path) -> None:
    root = gateway.directory / "models"
    gateway.turnout("weights", "number", "stable=100", "canary=0", "--wait")
    source = models.save(models.constant(4.0), tmp_path / "four" / "model.onnx")
    publish(root, "number", source, version="4", aliases=["champion"])
    manifest = str(gateway.manifest)
    gateway.manifest.write_text(MANIFEST.replace("90", "100").replace("10}", "0}"))
    plan = gateway.turnout("plan", "-f", manifest)
    assert plan.returncode == 2, plan.stderr
    assert "routes.number.variants.stable.version: 1" in plan.stdout
    assert gateway.turnout("apply", "-f", manifest, "--wait").returncode == 0
    assert ask(gateway, "a").headers["turnout-version"] == "4"
    assert gateway.turnout("plan", "-f", manifest).returncode == 0

    assert gateway.turnout("rollback", "number", "--wait").returncode == 0
    assert ask(gateway, "a").headers["turnout-version"] == "1"
    again = gateway.turnout("plan", "-f", manifest)
    assert again.returncode == 0
    assert "version 4 is denied" in again.stdout
    # A signal that comes twice must not walk further back.
    repeated = gateway.turnout("rollback", "number")
    assert "rolled back already" in repeated.stdout
    assert ask(gateway, "a").headers["turnout-version"] == "1"
    assert gateway.turnout("allow", "number", "4").returncode == 0
    assert ask(gateway, "a").headers["turnout-version"] == "4"


def test_metrics_tell_the_versions_apart(gateway: Gateway) -> None:
    for number in range(20):
        ask(gateway, f"user-{number}")
    assert ask(gateway, path="nobody").status_code == 404
    text = httpx.get(f"{gateway.admin}/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    answered = sum(
        float(v) for k, v in samples.items() if k.startswith("turnout_requests_total") and 'code="200"' in k
    )
    assert answered == 20
    assert samples['turnout_requests_total{code="404",route="_unknown",variant="",version=""}'] == "1.0"
    assert samples['turnout_route_weight{route="number",variant="canary",version="2"}'] == "0.1"
    assert samples['turnout_rollback_ready{route="number"}'] == "1.0"
    assert samples['turnout_state_revision{epoch="1"}'] == "1.0"


def test_what_a_denied_version_did_is_still_told(gateway: Gateway) -> None:
    for _ in range(5):
        assert ask(gateway, **{"turnout-variant": "canary"}).status_code == 200
    assert gateway.turnout("rollback", "number", "--wait").returncode == 0
    answered = 'turnout_requests_total{code="200",route="number",variant="canary",version="2"}'
    assert gateway.metrics()[answered] == 5
    canary = gateway.api("GET", "/routes/number").json()["variants"]["canary"]
    assert (canary["denied"], canary["requests"]) == ("2", 5)
    assert gateway.turnout("allow", "number", "2").returncode == 0
    assert gateway.metrics()[answered] == 5


def test_a_second_gateway_on_the_same_state_is_refused(
    gateway: Gateway, gateways: Callable[..., Gateway]
) -> None:
    second = gateways(MANIFEST)
    second.directory = gateway.directory
    log = gateway.log
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(20) == 1
    assert "give this one its own --state-dir" in second.log
    (gateway.directory / "log").write_text(log)

"""The admin API of a real gateway: what it accepts, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for

MANIFEST = """
registries:
  local: {type: directory, path: ./models}
routes:
  number:
    variants:
      stable: {model: local/number@champion, weight: 90}
      canary: {model: local/number@challenger, weight: 10}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("admin"), MANIFEST, "--workers", "1")
    for version, alias in (("1", "champion"), ("2", "challenger")):
        source = models.save(models.constant(float(version)), made.directory / version / "model.onnx")
        publish(made.directory / "models", "number", source, version=version, aliases=[alias])
    yield made.start()
    made.kill()


@pytest.fixture(autouse=True)
def nothing_changes(gateway: Gateway) -> Iterator[None]:
    before = serving(gateway)
    yield
    assert serving(gateway) == before


def serving(gateway: Gateway) -> Any:
    (route,) = gateway.api("GET", "/routes").json()["routes"]
    return {name: (variant["version"], variant["share"]) for name, variant in route["variants"].items()}


def problem(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in response.text
    return str(response.json()["detail"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"weights": {"canary": -1}}, "routes.number.variants.canary.weight"),
        ({"weights": {"canary": 101}}, "from 0 to 100"),
        ({"weights": {"canary": 0.001}}, "finer than 0.01 %"),
        ({"weights": {"canary": "ten"}}, "weights.canary must be per cent"),
        ({"weights": {"canary": True}}, "weights.canary must be per cent"),
        ({"weights": {"stable": 50, "canary": 10}}, "add up to 60 %"),
        ({"weights": {"nobody": 10}}, "has no variant 'nobody'"),
        ({"weight": {"canary": 10}}, "unknown field"),
        ({"weights": {}}, "weights is empty"),
        ({}, "weights"),
        ([], "object"),
    ],
)
def test_bad_weights(gateway: Gateway, body: Any, says: str) -> None:
    response = gateway.api("PATCH", "/routes/number/weights", json=body)
    assert response.status_code in (404, 422)
    assert says in problem(response)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 10_000, b'{"weights": {"canary": NaN}}'])
def test_bodies_that_are_no_json(gateway: Gateway, content: bytes) -> None:
    response = gateway.api("PATCH", "/routes/number/weights", content=content)
    assert response.status_code == 422
    assert "not valid" in problem(response)


def test_a_body_that_is_too_large(gateway: Gateway) -> None:
    response = gateway.api("POST", "/plan", content=b" " * (9 * 1024 * 1024))
    assert response.status_code == 413


def test_a_stale_revision_is_a_conflict_that_names_the_present_one(gateway: Gateway) -> None:
    current = gateway.api("GET", "/routes/number").headers["etag"]
    stale = gateway.api(
        "PATCH", "/routes/number/weights", json={"weights": {"canary": 20}}, headers={"if-match": '"1.0"'}
    )
    assert stale.status_code == 409
    assert f'"{stale.json()["current"]}"' == current
    nonsense = gateway.api(
        "PATCH", "/routes/number/weights", json={"weights": {"canary": 20}}, headers={"if-match": "yesterday"}
    )
    assert nonsense.status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/routes/nobody", 404),
        ("POST", "/routes/nobody/rollback", 404),
        ("DELETE", "/routes/number/denies/9", 404),
        ("GET", "/resolve?reference=number", 422),
        ("GET", "/resolve?reference=local/number@nobody", 404),
        ("GET", "/resolve?reference=elsewhere/number@1", 422),
        ("GET", "/versions?model=local/nobody", 404),
        ("GET", "/audit?limit=0", 422),
        ("GET", "/audit?limit=ten", 422),
        ("GET", "/nothing", 404),
        ("DELETE", "/routes", 405),
    ],
)
def test_refusals(gateway: Gateway, method: str, path: str, status: int) -> None:
    response = gateway.api(method, path, **({"json": {}} if method == "POST" else {}))
    assert response.status_code == status, response.text
    problem(response)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("weight: 10", "weight: -1", "routes.number.variants.canary.weight"),
        ("weight: 10", "weight: ten", "routes.number.variants.canary.weight"),
        ("weight: 10", "wait: 10", "routes.number.variants.canary"),
        ("variants:", "fallback: nobody\n    variants:", "routes.number.fallback"),
        ("local/number@challenger", "prod/number@challenger", "routes.number.variants.canary.model"),
    ],
)
def test_a_manifest_is_refused_whole_with_its_field(gateway: Gateway, old: str, new: str, field: str) -> None:
    for path in ("/plan", "/apply"):
        body = {"manifest": MANIFEST.replace(old, new), "base": str(gateway.directory)}
        response = gateway.api("POST", path, json=body)
        assert response.status_code == 422, response.text
        assert problem(response).startswith(field)
        assert response.json()["field"].startswith(field)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no model at all", "no readable ONNX model"),
        (b"\x80\x04\x95pickled", "no readable ONNX model"),
        (b"", "empty"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_the_reason(
    gateway: Gateway, content: bytes, says: str
) -> None:
    name = f"bad{len(content)}"
    directory = gateway.directory / "models" / name / "1"
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(content)
    manifest = MANIFEST.replace("local/number@challenger", f"local/{name}@1")
    response = gateway.api("POST", "/apply", json={"manifest": manifest, "base": str(gateway.directory)})
    assert response.status_code == 422, response.text
    assert says in problem(response)
    assert str(gateway.directory) not in response.text


def test_a_pickle_beside_the_model_is_refused_by_name(gateway: Gateway) -> None:
    directory = gateway.directory / "models" / "pickled" / "1"
    models.save(models.constant(1.0), directory / "model.onnx")
    (directory / "scaler.pkl").write_bytes(b"\x80\x04N.")
    manifest = MANIFEST.replace("local/number@challenger", "local/pickled@1")
    response = gateway.api("POST", "/apply", json={"manifest": manifest, "base": str(gateway.directory)})
    assert response.status_code == 422
    assert "scaler.pkl" in problem(response)


def test_events_and_probes(gateway: Gateway) -> None:
    with httpx.stream("GET", f"{gateway.admin}/api/v1/events", timeout=10) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines).startswith(": turnout events")
    ready = httpx.get(f"{gateway.admin}/readyz")
    assert ready.json()["ready"] is True
    assert wait_for(lambda: httpx.get(f"{gateway.admin}/readyz").json()["degraded"] == [], 10)
    assert httpx.get(f"{gateway.admin}/livez").json() == {"live": True}


def test_the_metrics_are_openmetrics_where_asked_for(gateway: Gateway) -> None:
    response = httpx.get(f"{gateway.admin}/metrics", headers={"accept": "application/openmetrics-text"})
    assert "openmetrics" in response.headers["content-type"]
    assert response.text.endswith("# EOF\n")


def test_the_state_directory_is_private(gateway: Gateway) -> None:
    state: Path = gateway.directory / "state" / "state.json"
    assert state.stat().st_mode & 0o077 == 0

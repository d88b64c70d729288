"""The gateway that the tests of other servers' protocols share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from registry_client.adapters.directory import publish
from tests import models
from tests.servers.gateway import Gateway, wait_for

BODY_LIMIT = 1024 * 1024
ECHOES = {
    f"{datatype.lower()}-{rank}": models.identity(datatype, [f"d{axis}" for axis in range(rank)])
    for datatype in ("BOOL", "UINT8", "INT64", "FP32", "FP64", "BYTES")
    for rank in (1, 2, 3)
}
MODELS = {
    ("number", "1"): models.constant(1.0),
    ("number", "2"): models.constant(2.0),
    ("number", "3"): models.constant(3.0),
    ("wide", "1"): models.identity("FP32", ["batch", 16]),
    ("sum", "1"): models.two_inputs(),
    ("state", "1"): models.scalar_and_state(),
    ("classes", "1"): models.two_outputs(),
    ("mean", "1"): models.mean(),
    ("log", "1"): models.not_a_number(),
    ("columns", "1"): models.named_columns(),
    ("half", "1"): models.identity("FP16"),
    ("raw", "1"): models.identity("BYTES", ["n"], output="raw_bytes"),
    **{(name, "1"): model for name, model in ECHOES.items()},
}
_NUMBER = "stable: {model: local/number@1}, canary: {model: local/number@2, weight: 0}"
MANIFEST = "\n".join(
    [
        "registries:",
        "  local: {type: directory, path: ./models}",
        "routes:",
        f"  number: {{variants: {{{_NUMBER}}}, fallback: stable, overrides: true}}",
        f"  strict: {{variants: {{{_NUMBER}}}, fallback: stable, explicit_versions: 'off'}}",
        "  halves:",
        "    variants: {stable: {model: local/number@1, weight: 50}, canary: {model: local/number@2, weight: 50}}",
        "    fallback: stable",
        "    sticky: parameter:user",
        "  idle: {variants: {stable: {model: local/number@1, weight: 0}}}",
        *(
            f"  {name}: {{variants: {{stable: {{model: local/{name}@1}}}}}}"
            for name, _ in MODELS
            if name != "number"
        ),
    ]
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("neighbours"), MANIFEST, "--workers", "1", "--body-limit", "1M")
    for (name, version), model in MODELS.items():
        source = models.save(model, made.directory / "sources" / name / version / "model.onnx")
        publish(made.directory / "models", name, source, version=version)
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture(autouse=True)
def goes_on_serving(gateway: Gateway) -> Iterator[None]:
    """Whatever a test sent: the next request is answered by the same process, which logged no traceback."""
    pids = gateway.worker_pids()
    yield
    assert predictions(gateway, "number", {"instances": [[0.0] * 4]}) == [[1.0]]
    assert gateway.worker_pids() == pids
    assert "Traceback" not in gateway.log


def predict(gateway: Gateway, target: str, document: Any, **headers: str) -> httpx.Response:
    """`target` is a route, maybe with a version or a label behind it."""
    url = f"{gateway.data}/v1/models/{target}:predict"
    return httpx.post(url, json=document, headers=headers, timeout=20)


def predictions(gateway: Gateway, target: str, document: Any, **headers: str) -> Any:
    response = predict(gateway, target, document, **headers)
    assert response.status_code == 200, response.text
    (value,) = response.json().values()
    return value


def invoke(gateway: Gateway, route: str, document: Any, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{gateway.data}/invocations", json=document, headers={"turnout-route": route} | headers, timeout=20
    )


def counted(gateway: Gateway, **labels: str) -> float:
    """What the metrics count of requests with these labels."""
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return sum(
        value
        for name, value in gateway.metrics().items()
        if name.startswith("turnout_requests_total") and all(label in name for label in wanted)
    )


def wait_counted(gateway: Gateway, count: float, **labels: str) -> None:
    """Counts are written behind the answer's last byte."""
    wait_for(
        lambda: counted(gateway, **labels) >= count, 10, lambda: f"{labels}: {counted(gateway, **labels)}"
    )

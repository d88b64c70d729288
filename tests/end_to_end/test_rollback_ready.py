"""`turnout_rollback_ready` says what a rollback would find: engines that break and workers that freeze are seen."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
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
    variants: {stable: {model: local/number@1, weight: 90}, canary: {model: local/number@2, weight: 10}}
    fallback: stable
  other: {variants: {stable: {model: local/other@1}}}
  even:
    variants: {stable: {model: local/even@1, weight: 90}, canary: {model: local/number@2, weight: 10}}
    fallback: stable
"""
BROKEN = Path(__file__).parents[1] / "servers" / "broken"
A_FEW_PERIODS_S = 40.0
"""Of 5 s, on a machine that may be busy."""


@pytest.fixture
def gateway(gateways: Callable[..., Gateway], tmp_path: Path) -> Gateway:
    broken = tmp_path / "broken"
    broken.mkdir()
    made = gateways(
        MANIFEST, "--workers", "2",
        PYTHONPATH=os.pathsep.join([str(BROKEN), os.environ.get("PYTHONPATH", "")]),
        TURNOUT_TEST_BROKEN=str(broken),
    )  # fmt: skip
    published = {
        ("number", "1"): models.constant(1.0),
        ("number", "2"): models.constant(2.0),
        ("other", "1"): models.constant(3.0),
        ("even", "1"): models.needs_even_rows(),
    }
    for (name, version), model in published.items():
        source = models.save(model, made.directory / name / version / "model.onnx")
        publish(made.directory / "models", name, source, version=version)
    made.start()
    wait_for(lambda: made.ready_workers() == 2, 30, lambda: made.log)
    return made


def ready(gateway: Gateway) -> dict[str, float]:
    found = gateway.metrics()
    return {name: found[f'turnout_rollback_ready{{route="{name}"}}'] for name in ("number", "other", "even")}


def described(gateway: Gateway, route: str = "number") -> Any:
    return gateway.api("GET", f"/routes/{route}").json()["rollback"]


def degraded(gateway: Gateway) -> str:
    return "; ".join(httpx.get(f"{gateway.admin}/readyz", timeout=10).json()["degraded"])


def wait_ready(gateway: Gateway, number: float) -> None:
    wait_for(
        lambda: ready(gateway)["number"] == number,
        A_FEW_PERIODS_S,
        lambda: f"{described(gateway)} {gateway.log}",
        every_s=0.2,
    )


def test_a_route_is_ready_from_its_first_answer_and_one_without_a_past_is_not(gateway: Gateway) -> None:
    assert ready(gateway) == {"number": 1.0, "other": 0.0, "even": 1.0}
    assert degraded(gateway) == ""
    assert described(gateway) == {"version": "1", "ready": True, "trouble": "", "leaves_open": ""}
    assert described(gateway, "other")["trouble"] == "there is no earlier version to return to"
    # Its one row of zeros is no legal input: so much cannot be proved, and it is said.
    even = described(gateway, "even")
    assert (even["ready"], even["version"]) == (True, "1")
    assert "the warm-up run failed on zeros" in even["leaves_open"]
    shown = gateway.turnout("describe", "number").stdout
    assert "rollback    to version 1, which every worker has proved to answer" in shown
    assert "runs but takes no zeros" in gateway.turnout("describe", "even").stdout


def test_a_frozen_worker_makes_no_route_ready(gateway: Gateway) -> None:
    frozen = gateway.worker_pids()[0]
    os.kill(frozen, signal.SIGSTOP)
    try:
        wait_ready(gateway, 0.0)
        assert ready(gateway) == {"number": 0.0, "other": 0.0, "even": 0.0}
        text = degraded(gateway)
        assert "route number is not ready for a rollback to version 1: worker " in text
        assert "has not been heard of for" in text
        assert "to version 1 is not ready: worker " in gateway.turnout("describe", "number").stdout
        assert httpx.get(f"{gateway.admin}/readyz", timeout=10).status_code == 200
    finally:
        os.kill(frozen, signal.SIGCONT)
    wait_ready(gateway, 1.0)
    assert degraded(gateway) == ""


@pytest.mark.parametrize(
    ("how", "why"),
    [("raise", "it is broken on purpose"), ("hang", "a run of zeros has not ended for")],
)
def test_an_engine_that_breaks_makes_its_routes_unready(gateway: Gateway, how: str, why: str) -> None:
    digest = gateway.api("GET", "/routes/number").json()["variants"]["stable"]["digest"]
    note = Path(gateway.environment["TURNOUT_TEST_BROKEN"]) / digest
    note.write_text(how)
    wait_ready(gateway, 0.0)
    # The other routes' versions are as they were, and what serves goes on.
    assert ready(gateway)["even"] == 1.0
    assert why in described(gateway)["trouble"]
    assert "route number is not ready for a rollback to version 1: worker" in degraded(gateway)
    note.unlink()
    wait_ready(gateway, 1.0)
    assert degraded(gateway) == ""
    # One line of each worker's when it begins, and one when it is over.
    told = gateway.log.count(f"version {digest[:12]} is not ready: ")
    assert 1 <= told <= 2
    assert gateway.log.count(f"version {digest[:12]} answers again") == told

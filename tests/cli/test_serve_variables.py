"""Every option of `turnout serve` is a `TURNOUT_…` variable, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from gateway import settings
from gateway.cli.serve import serve

CONTAINER = {
    "TURNOUT_CONFIG": "turnout.yaml",
    "TURNOUT_HOST": "0.0.0.0",
    "TURNOUT_PORT": "9000",
    "TURNOUT_WORKERS": "3",
    "TURNOUT_REDIS": "redis://cache:6379/0",
    "TURNOUT_STATE_DIR": "/state",
    "TURNOUT_CACHE_DIR": "/cache",
    "TURNOUT_CACHE_LIMIT": "2G",
    "TURNOUT_VERBOSE": "1",
}


def parsed(*arguments: str) -> dict[str, Any]:
    return serve.make_context("serve", list(arguments)).params


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CONTAINER.items():
        monkeypatch.setenv(name, value)
    found = parsed()
    assert (found["host"], found["port"], found["workers"]) == ("0.0.0.0", 9000, 3)
    assert (found["redis"], found["config"]) == ("redis://cache:6379/0", Path("turnout.yaml"))
    assert (found["state_dir"], found["cache_dir"]) == (Path("/state"), Path("/cache"))
    assert (found["cache_limit"], found["verbose"]) == (2 * 1024**3, True)


def test_an_option_beats_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_PORT", "9000")
    assert parsed("--port", "9001")["port"] == 9001


DEFAULTS = {
    "port": settings.DEFAULT_PORT,
    "grpc_port": settings.DEFAULT_GRPC_PORT,
    "admin_port": settings.DEFAULT_ADMIN_PORT,
}


@pytest.mark.parametrize("option", DEFAULTS)
def test_the_variable_of_a_kubernetes_service_is_no_port(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv(f"TURNOUT_{option.upper()}", "tcp://10.96.0.17:80")
    assert parsed()[option] == DEFAULTS[option]


@pytest.mark.parametrize(
    ("text", "port"), [("0", 0), ("9001", 9001), ("off", None), ("Off", None), ("none", None)]
)
def test_the_port_of_grpc_may_be_off(monkeypatch: pytest.MonkeyPatch, text: str, port: int | None) -> None:
    monkeypatch.setenv("TURNOUT_GRPC_PORT", text)
    assert parsed()["grpc_port"] == port


@pytest.mark.parametrize("text", ["70000", "-1", "on", "8081/tcp"])
def test_what_is_no_port_of_grpc(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no port from 0 to 65535, or off"):
        parsed("--grpc-port", text)

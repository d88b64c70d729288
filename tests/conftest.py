"""Fixtures live in modules under tests/servers, one a kind of server."""

import os

import pytest

# Some tests import ONNX Runtime before the gateway does, which switches its reports off.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
pytest.register_assert_rewrite("tests.contracts")
pytest_plugins = [
    "tests.servers.control",
    "tests.servers.gateway",
    "tests.servers.mlflow",
    "tests.servers.redis",
    "tests.servers.sentinel",
    "tests.servers.weights",
]

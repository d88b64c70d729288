"""Fixtures live in modules under tests/servers, one a kind of server."""

import pytest

pytest.register_assert_rewrite("tests.contracts")
pytest_plugins = [
    "tests.servers.control",
    "tests.servers.gateway",
    "tests.servers.redis",
    "tests.servers.weights",
]

"""What lies under configs/ works as it is."""

from __future__ import annotations

from pathlib import Path

import redis

from gateway.control.manifest_file import read_manifest
from gateway.control.redis_store import RedisStore
from registry_client import open_registry
from tests.control.test_redis_acl import SIGNAL, SUPERVISOR
from tests.documentation.pages import ROOT
from tests.servers.redis import RedisServer

USERS = ROOT / "configs" / "redis" / "users.acl"


def rules(user: str) -> set[str]:
    (line,) = [line for line in USERS.read_text().splitlines() if line.startswith(f"user {user} ")]
    return {word for word in line.split()[2:] if not word.startswith(">")}


def test_the_users_are_those_whose_rights_are_tested() -> None:
    for user, tested in (("turnout", SUPERVISOR), ("signal", SIGNAL)):
        words = tested.replace("{turnout:ns}", "{turnout:default}").split()
        assert rules(user) == {word for word in words if not word.startswith(">")}, user


async def test_both_servers_take_the_file(own_redis: RedisServer, tmp_path: Path) -> None:
    copy = tmp_path / "users.acl"
    copy.write_text(USERS.read_text())
    own_redis.restart("--aclfile", str(copy))
    store = RedisStore(f"redis://turnout:change-me-turnout@127.0.0.1:{own_redis.port}", "default", "one")
    assert await store.read() is None
    await store.aclose()
    with redis.Redis(port=own_redis.port, username="signal", password="change-me-signal") as outside:
        assert outside.xadd("{turnout:default}:signals", {"action": "rollback", "route": "digits"})


async def test_the_mlflow_manifest_opens_its_registry() -> None:
    for name, declared in read_manifest(ROOT / "configs" / "mlflow" / "turnout.yaml").registries.items():
        client = open_registry(name, declared.type, declared.options)
        assert client.kind == "mlflow"
        await client.aclose()

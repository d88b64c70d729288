"""The commands against a real gateway: exit codes, outputs, and errors of one line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gateway.admin.roles import Role
from gateway.admin.tokens import parse_tokens
from gateway.cli.audit import changes_cell
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
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("cli"), MANIFEST, "--workers", "2")
    for version, alias in (("1", "champion"), ("2", "challenger")):
        source = models.save(models.constant(float(version)), made.directory / version / "model.onnx")
        publish(made.directory / "models", "number", source, version=version, aliases=[alias])
    yield made.start()
    made.kill()


def test_a_command_does_not_import_the_libraries_of_the_others() -> None:
    heavy = ("numpy", "onnxruntime", "uvicorn", "httpx")
    code = f"import sys, gateway.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("get", "routes"), "routes"),
        (("get", "registries"), "registries"),
        (("get", "versions", "local/number"), "versions"),
        (("describe", "number"), "variants"),
        (("history",), "records"),
        (("status",), "members"),
        (("cache", "list"), "versions"),
        (("resolve", "local/number@champion"), "digest"),
    ],
)
def test_every_view_is_a_table_json_and_yaml(gateway: Gateway, arguments: tuple[str, ...], key: str) -> None:
    table = gateway.turnout(*arguments)
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.strip()
    assert json.loads(gateway.turnout(*arguments, "-o", "json").stdout)[key]
    assert yaml.safe_load(gateway.turnout(*arguments, "-o", "yaml").stdout)[key]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("describe", "nobody"), 1, "there is no route 'nobody' (there are: number)"),
        (("weights", "number", "canary=ten"), 1, "VARIANT=PERCENT"),
        (("weights", "number", "canary=-1"), 1, "routes.number.variants.canary.weight"),
        (("weights", "number", "canary=nan"), 1, "canary"),
        (("weights", "number", "canary=20", "--revision", "9.9"), 3, "read it again"),
        (("weights", "canary=20"), 1, "'canary=20' comes before any route"),
        (("weights", "number", "canary=20", "letter"), 1, "'letter' has no weights"),
        (("weights", "number", "canary=20", "number", "canary=5"), 1, "'number' is named twice"),
        (("weights", "number", "canary=20", "nobody", "canary=5"), 1, "no route 'nobody'"),
        (("rollback", "number", "--version", "9"), 1, "has no version '9'"),
        (("rollback", "number=9"), 1, "has no version '9'"),
        (("rollback", "number", "nobody"), 1, "no route 'nobody'"),
        (("rollback", "number", "letter", "--version", "2"), 1, "--version is for one route"),
        (("rollback", "number=2", "--version", "2"), 1, "--version is for one route"),
        (("rollback", "number", "number=2"), 1, "'number=2' is named twice"),
        (("rollback", "number="), 1, "is not ROUTE or ROUTE=VERSION"),
        (("rollback", "number,letter"), 1, "separate routes with a space: number letter"),
        (("rollback",), 1, "Missing argument"),
        (
            ("rollback", "number", "--wait", "--timeout", "-1"),
            1,
            "-1 is no number of seconds: write 0 or more",
        ),
        (("apply", "-f", "/nowhere.yaml", "--timeout", "nan"), 1, "nan is no number of seconds"),
        (("token", "a b", "--role", "guard"), 1, "a name is letters"),
        (("token", "pager"), 1, "--role"),
        (("token", "pager", "--role", "god"), 1, "'god' is not one of"),
        (("allow", "number", "9"), 1, "is not denied"),
        (("resolve", "number"), 1, "has no revision"),
        (("resolve", "local/number@nobody"), 1, "nobody"),
        (("resolve", "prod/number@1"), 1, "not declared"),
        (("plan", "-f", "/nowhere.yaml"), 1, "/nowhere.yaml cannot be read"),
        (("config", "check", "/nowhere.yaml"), 1, "/nowhere.yaml cannot be read"),
        (("nonsense",), 1, "No such command"),
    ],
)
def test_errors_are_said_in_words(gateway: Gateway, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = gateway.turnout(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_token_is_shown_once_and_its_line_is_for_the_file() -> None:
    command = [sys.executable, "-m", "gateway", "token", "pager", "--role", "guard"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (holder,) = parse_tokens(done.stderr)
    assert (holder.name, holder.role) == ("pager", Role.GUARD)
    assert hashlib.sha256(done.stdout.strip().encode()).digest() == holder.sha256
    shown = json.loads(subprocess.check_output([*command, "-o", "json"]))
    assert hashlib.sha256(shown["token"].encode()).hexdigest() == shown["sha256"]
    assert (shown["name"], shown["role"]) == ("pager", "guard")


def test_no_gateway_at_all() -> None:
    arguments = [sys.executable, "-m", "gateway", "--admin", "http://127.0.0.1:9", "get", "routes"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("turnout: no gateway at http://127.0.0.1:9")
    assert "turnout serve" in done.stderr


def test_push_resolve_plan_and_apply(gateway: Gateway, tmp_path: Path) -> None:
    source = models.save(models.constant(3.0), tmp_path / "model.onnx")
    metadata = tmp_path / "metadata.json"
    metadata.write_text('{"description": "three", "lineage": {"metrics": {"accuracy": 0.5}}}')
    pushed = gateway.turnout(
        "push", "local/number", str(source), "--alias", "next", "--metadata", str(metadata)
    )
    assert pushed.stdout.startswith("local/number version 3, @next: digest ")
    manifest = str(gateway.manifest)
    offline = gateway.turnout("resolve", "local/number@next", "-f", manifest)
    assert offline.stdout == gateway.turnout("resolve", "local/number@next").stdout
    assert "accuracy" in offline.stdout
    assert gateway.turnout("plan", "-f", manifest).returncode == 0
    gateway.manifest.write_text(MANIFEST.replace("@challenger", "@next"))
    assert gateway.turnout("config", "check", manifest).returncode == 0
    planned = gateway.turnout("plan", "-f", manifest)
    assert (planned.returncode, "routes.number.variants.canary.version: 2" in planned.stdout) == (2, True)
    assert gateway.turnout("apply", "-f", manifest, "--reason", "three", "--wait").returncode == 0
    assert "three" in gateway.turnout("history", "number").stdout
    gateway.manifest.write_text(MANIFEST)
    assert gateway.turnout("apply", "-f", manifest, "--wait").returncode == 0
    assert gateway.turnout("cache", "prune").returncode == 0


def test_wait_says_who_has_not_applied_it(gateway: Gateway) -> None:
    frozen = gateway.worker_pids()[0]
    os.kill(frozen, signal.SIGSTOP)
    try:
        done = gateway.turnout("weights", "number", "canary=20", "--wait", "--timeout", "1")
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "not everywhere after 1 s" in done.stderr
    assert "1 of 2 workers" in done.stderr
    assert gateway.turnout("weights", "number", "canary=10", "--wait").returncode == 0


def test_a_narrow_terminal_loses_nothing(gateway: Gateway) -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 40))
    command = [sys.executable, "-m", "gateway", "--admin", gateway.admin, "history", "--limit", "3"]
    done = subprocess.run(
        command, stdout=theirs, env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"}, timeout=30, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0
    for heading in ("REVISION", "WHEN", "WHAT", "WHO", "CHANGE", "WHY"):
        assert heading in shown
    assert "number: " in shown


def test_a_history_of_many_routes_stays_readable() -> None:
    change = {"before": None, "after": None}
    shown = changes_cell([{"route": f"r{number}", **change} for number in range(200)])
    assert shown.startswith("r0: nothing -> nothing; r1: ") and len(shown) < 120
    assert shown.endswith("and 197 routes more (-o json)")


@pytest.mark.parametrize("mix", ["A", 7, {"stable": "A"}, {"stable": {"share": "much", "version": "1"}}])
def test_a_history_that_was_written_by_hand_is_no_traceback(mix: object) -> None:
    assert changes_cell([{"route": "r", "after": mix}]) == "r: nothing -> unreadable"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--grpc-port", "abc"), "'abc' is no port from 0 to 65535, or off (see "),
        (("--workers", "0"), "'0' is not a number of at least 1, or auto (see "),
        (("--redis", "http://cache"), "--redis: the Redis URL "),
        (("--host", "name.invalid"), "choose another --host"),
        (("--tokens", "/nowhere/tokens.yaml"), "--tokens: the tokens in /nowhere/tokens.yaml cannot be read"),
        (("--tokens", __file__), "are refused"),
        (("--admin-host", "192.0.2.1"), "choose another --admin-host"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(
    tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    (tmp_path / "turnout.yaml").write_text(MANIFEST)
    any_port = ("--port", "0", "--grpc-port", "0", "--admin-port", "0")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(tmp_path / "turnout.yaml"), *any_port,
         "--state-dir", str(tmp_path / "state"), "--cache-dir", str(tmp_path / "cache"), *options],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "TURNOUT_ADMIN_TOKEN": "0123456789abcdef"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("turnout: ") and done.stderr.count("\n") == 1
    assert says in done.stderr

"""`turnout history --at` and `turnout audit verify`, against a real gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.cli.moments import microseconds
from registry_client.adapters.directory import publish
from tests import models
from tests.cli.test_commands import MANIFEST
from tests.servers.gateway import Gateway

NOW = datetime(2026, 11, 23, 14, 30, 0, 500_000, tzinfo=UTC)


@pytest.fixture
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("15:03", "2026-11-23T14:03Z"),  # of this machine's zone
        ("9:03", "2026-11-23T08:03Z"),
        ("15:03:30.25", "2026-11-23T14:03:30.25Z"),
        ("15:31", "2026-11-22T14:31Z"),  # it is not that late yet: yesterday's
        ("14:03Z", "2026-11-23T14:03Z"),
        ("23:50+09:00", "2026-11-22T14:50Z"),
        ("23:20+09:00", "2026-11-23T14:20Z"),
        ("2026-11-22T14:03", "2026-11-22T13:03Z"),
        ("2026-11-22 14:03:01", "2026-11-22T13:03:01Z"),
        ("2026-07-01T14:03", "2026-07-01T12:03Z"),  # summer time was another zone
        ("2026-11-22T14:03Z", "2026-11-22T14:03Z"),
        ("2026-11-22T14:03-05:00", "2026-11-22T19:03Z"),
        ("-90s", "2026-11-23T14:28:30.5Z"),
        ("-10m", "2026-11-23T14:20:00.5Z"),
        ("-2h", "2026-11-23T12:30:00.5Z"),
        ("-3d", "2026-11-20T14:30:00.5Z"),
    ],
)
@pytest.mark.usefixtures("_in_berlin")
def test_a_time_as_people_write_it(text: str, moment: str) -> None:
    expected = round(datetime.fromisoformat(moment).timestamp() * 1e6)
    for zone in (UTC, timezone(timedelta(hours=1))):
        assert microseconds(text, NOW.astimezone(zone)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-11-22", "25:00", "14:60", "10m", "-10", "-10w", "-999999999d", "--at", "1-2:3"],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time: write 14:03"):
        microseconds(text, NOW)


def test_a_time_to_come() -> None:
    with pytest.raises(ValueError, match="lies in the future"):
        microseconds("2026-11-23T14:31Z", NOW)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("audit"), MANIFEST, "--workers", "1")
    for version, alias in (("1", "champion"), ("2", "challenger")):
        source = models.save(models.constant(float(version)), made.directory / version / "model.onnx")
        publish(made.directory / "models", "number", source, version=version, aliases=[alias])
    yield made.start()
    made.kill()


def test_what_served_then(gateway: Gateway) -> None:
    assert gateway.turnout("weights", "number", "canary=30", "--reason", "more").returncode == 0
    (newest, *_, first) = json.loads(gateway.turnout("history", "number", "-o", "json").stdout)["records"]
    then = datetime.fromtimestamp(first["us"] / 1e6, UTC) + timedelta(milliseconds=1)
    shown = gateway.turnout("history", "number", "--at", then.isoformat())
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "revision 1.1" in shown.stdout and "stable 1 90%, canary 2 10%" in shown.stdout
    assert f"{newest['revision']} " in shown.stdout
    document = json.loads(gateway.turnout("history", "--at", "-0s", "-o", "json").stdout)
    assert document["routes"]["number"]["serving"]["canary"]["share"] == 30


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("number", "--at", "soon"), "'soon' is no time"),
        (("number", "--at", "-9d"), "the history begins with revision 1.1"),
        (("nobody", "--at", "-0s"), "there is no route 'nobody'"),
    ],
)
def test_what_it_cannot_tell(gateway: Gateway, arguments: tuple[str, ...], says: str) -> None:
    done = gateway.turnout("history", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr and "Traceback" not in done.stderr


def test_a_history_that_was_tampered_with(gateway: Gateway) -> None:
    whole = gateway.turnout("audit", "verify")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "every line is as it was written" in whole.stdout
    head = json.loads(gateway.turnout("audit", "verify", "-o", "json").stdout)["head"]
    assert f"head        {head}" in whole.stdout
    assert gateway.turnout("audit", "verify", "--head", head).returncode == 0
    other = gateway.turnout("audit", "verify", "--head", head, "--head", "b" * 64)
    assert other.returncode == 1 and "b" * 64 in other.stderr

    (history,) = gateway.directory.rglob("history.jsonl")
    raw = history.read_bytes()
    try:
        history.write_bytes(raw.replace(b'"put"', b'"deny"', 1))
        broken = gateway.turnout("audit", "verify")
        assert broken.returncode == 1
        assert broken.stderr.startswith("turnout: the history is not whole: line 1 (revision 1.1, deny by ")
        document = json.loads((verdict := gateway.turnout("audit", "verify", "-o", "json")).stdout)
        assert verdict.returncode == 1 and "line 1" in document["broken"]
    finally:
        history.write_bytes(raw)

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from gateway.node.identity import replica_name


def test_every_life_has_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = replica_name(tmp_path / "state")
    assert name.startswith(f"{socket.gethostname()}-")
    assert replica_name(tmp_path / "state") == name
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    moved = replica_name(tmp_path / "state")
    assert moved.startswith("elsewhere-") and replica_name(tmp_path / "state") == moved


def test_a_copy_of_a_directory_is_another_replica(tmp_path: Path) -> None:
    name = replica_name(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert replica_name(tmp_path / "two") != name == replica_name(tmp_path / "one")


@pytest.mark.parametrize("raw", [b"", b"\xff", b"../../x\n", b"a\nb\nc", b"x" * 100_000])
def test_what_is_unreadable_is_made_anew(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "replica").write_bytes(raw)
    name = replica_name(tmp_path)
    assert name.startswith(f"{socket.gethostname()}-") and replica_name(tmp_path) == name


def test_what_cannot_be_kept_serves_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "replica").mkdir()
    assert replica_name(tmp_path).startswith(f"{socket.gethostname()}-")
    assert "cannot be kept" in caplog.text

"""What the command line says of a gateway's address and token, and what it never shows of them."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest

from gateway.cli.admin_client import AdminClient
from gateway.cli.errors import AdminError

SECRET = "s3cret"


def status(url: str, token: str) -> subprocess.CompletedProcess[str]:
    """By a port at which nobody listens."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "--admin", url, "status"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TURNOUT_ADMIN_TOKEN": token},
    )


@pytest.mark.parametrize("between", ["\n", "\r", "\r\n", " ", "\t", "é", "\x7f", "\u2028"])
def test_a_token_that_is_none_is_said_and_not_shown(between: str) -> None:
    done = status("http://127.0.0.1:9", f"{SECRET}{between}{SECRET}")
    assert done.returncode == 1
    assert done.stderr.startswith("turnout: TURNOUT_ADMIN_TOKEN is no token: ")
    assert done.stderr.count("\n") == 1 and SECRET not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "url",
    [
        f"http://ann:{SECRET}@127.0.0.1:9",
        f"http://{SECRET}@127.0.0.1:9",
        f"http://ann:{SECRET}@{SECRET}@127.0.0.1:9",
        f"http://ann:{SECRET}@127.0.0.1:no-port",
        f"http://ann:{SECRET}/x@127.0.0.1:9",
        f"ann:{SECRET}@127.0.0.1:9",
        f"http://ann:{SECRET}://@127.0.0.1:9",
        f"http://ann:{SECRET}\x01@127.0.0.1:9",
    ],
)
def test_no_password_of_the_address_is_shown(url: str) -> None:
    done = status(url, "")
    assert done.returncode == 1
    assert done.stderr.startswith("turnout: ") and done.stderr.count("\n") == 1, done.stderr
    assert "127.0.0.1" in done.stderr and SECRET not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("token", "sent"), [(f"{SECRET}\r\n", f"Bearer {SECRET}"), (" \n", None), ("", None)]
)
def test_the_end_of_a_files_line_is_no_part_of_the_token(token: str, sent: str | None) -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json={})

    AdminClient("http://here", token, httpx.MockTransport(answer)).get("/status")
    assert seen == [sent]


def test_an_address_without_a_password_is_shown_whole() -> None:
    with pytest.raises(AdminError, match=r"no gateway at http://127\.0\.0\.1:9: "):
        AdminClient("http://127.0.0.1:9", "").get("/status")

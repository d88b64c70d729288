"""Default deny: who reaches the admin listener, with a token and without one."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gateway.admin.auth import AdminGuard
from gateway.settings import Settings, SettingsError, check_settings

TOKEN = "canary-secret-0123456789abcdef"


PATHS = ("/livez", "/readyz", "/metrics", "/api/v1/status")


async def ask(method: str, path: str, headers: dict[str, str], token: str = "") -> httpx.Response:
    async def fine(_: Request) -> PlainTextResponse:
        return PlainTextResponse("fine")

    routes = [
        Route(path, fine, methods=["GET", "POST"])
        for path in ("/livez", "/readyz", "/metrics", "/api/v1/status")
    ]
    app = Starlette(routes=routes, middleware=[Middleware(AdminGuard, token=token)])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8082") as client:
        return await client.request(method, path, headers=headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": TOKEN}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer {TOKEN}"}, 200),
        ({"authorization": f"Bearer {TOKEN}", "host": "gateway.example"}, 200),
    ],
)
async def test_with_a_token_only_the_token_opens(headers: dict[str, str], status: int) -> None:
    for path in ("/api/v1/status", "/metrics"):
        response = await ask("GET", path, headers, TOKEN)
        assert response.status_code == status
        assert TOKEN not in response.text
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["content-type"] == "application/problem+json"


async def test_probes_need_no_token() -> None:
    assert (await ask("GET", "/livez", {}, TOKEN)).status_code == 200
    assert (await ask("GET", "/readyz", {}, TOKEN)).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8082", 200),
        ("localhost", 200),
        ("[::1]:8082", 200),
        ("gateway.example", 403),
        ("127.0.0.1.gateway.example", 403),
        ("10.0.0.1:8082", 403),
        ("", 403),
    ],
)
async def test_without_a_token_the_host_must_be_loopback(host: str, status: int) -> None:
    assert (await ask("GET", "/api/v1/status", {"host": host})).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:8082", 200),
        ("http://gateway.example", 403),
        ("http://127.0.0.1:9999", 403),
        ("null", 403),
    ],
)
async def test_a_page_from_elsewhere_changes_nothing(origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"origin": origin}
    assert (await ask("POST", "/api/v1/status", headers)).status_code == status
    assert (await ask("GET", "/api/v1/status", headers)).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "gateway.example"])
def test_off_the_loopback_a_token_is_demanded(host: str) -> None:
    with pytest.raises(SettingsError, match="TURNOUT_ADMIN_TOKEN"):
        check_settings(Settings(admin_host=host))
    check_settings(Settings(admin_host=host, admin_token=TOKEN))
    with pytest.raises(SettingsError, match="shorter than 16"):
        check_settings(Settings(admin_host=host, admin_token="short"))
    assert TOKEN not in repr(Settings(admin_token=TOKEN))

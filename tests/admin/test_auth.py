from __future__ import annotations

import hmac

import pytest

from gateway.admin import auth
from gateway.admin.auth import AdminGuard
from tests.admin.conftest import AUTHORISED, TOKEN, Caller

READ, WRITE = ("GET", "/api/v1/routes"), ("POST", "/api/v1/routes/number/rollback")
PATHS = (
    "/metrics",
    "/api/v1/routes",
    "/api/v1/events",
    "/api/v1/nothing",
    "/",
    "/livez/",
    "/livez/../api/v1/routes",
    "//livez",
)


class TestOnTheLoopback:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1:8082", "localhost:8082", "localhost", "[::1]:8082", "127.8.9.1", "127.0.0.1"]
    )
    async def test_this_machine_is_served(self, callers: Caller, host: str) -> None:
        assert (await callers(host).request(*READ)).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example", "evil.example:8082", "10.0.0.5:8082", "127.0.0.1.evil.example", "localhost.evil.example",
            "localhostx", "[::2]:8082", "0.0.0.0:8082", "2130706433",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("path", ["/api/v1/routes", "/livez", "/metrics"])
    async def test_a_name_that_leads_here_from_elsewhere_is_not(
        self, callers: Caller, host: str, path: str
    ) -> None:
        refused = await callers(host).get(path)
        assert refused.status_code == 403
        assert refused.headers["content-type"] == "application/problem+json"
        assert "not loopback" in refused.json()["detail"]

    async def test_a_request_without_a_host_is_not(self, callers: Caller) -> None:
        assert (await callers().get("/api/v1/routes", headers={"host": ""})).status_code == 403

    @pytest.mark.parametrize(
        ("origin", "status"),
        [
            (None, 422),
            ("http://127.0.0.1:8082", 422),
            ("http://evil.example", 403),
            ("http://127.0.0.1:9999", 403),
            ("http://127.0.0.1:8082.evil.example", 403),
            ("null", 403),
            ("", 403),
            ("file://", 403),
        ],
    )
    async def test_a_page_from_elsewhere_changes_nothing(
        self, callers: Caller, origin: str | None, status: int
    ) -> None:
        headers = {} if origin is None else {"origin": origin}
        answer = await callers().request(*WRITE, headers=headers, content=b'{"no": "such"}')
        assert answer.status_code == status
        # It may look: the browser does not show it the answer.
        assert (await callers().request(*READ, headers=headers)).status_code == 200

    @pytest.mark.parametrize("method", ["PATCH", "DELETE", "PUT", "POST", "BREW"])
    async def test_every_method_that_is_not_safe_is_a_write(self, callers: Caller, method: str) -> None:
        answer = await callers().request(method, READ[1], headers={"origin": "http://evil.example"})
        assert answer.status_code == 403


class TestWithAToken:
    @pytest.mark.parametrize(
        "given",
        [
            None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN,
            f"Bearer {TOKEN.upper()}", "Bearer ü", f"Token {TOKEN}",
        ],
    )  # fmt: skip
    async def test_without_it_nothing(self, callers: Caller, given: str | None) -> None:
        caller = callers("admin.example", token=TOKEN)
        headers = {} if given is None else {"authorization": given.encode()}
        for path in PATHS:
            refused = await caller.get(path, headers=headers)  # type: ignore[arg-type]
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["content-type"] == "application/problem+json"
            assert TOKEN not in refused.text

    @pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER"])
    async def test_with_it_from_anywhere(self, callers: Caller, kind: str) -> None:
        caller = callers("admin.example", token=TOKEN)
        headers = {"authorization": f"{kind} {TOKEN}", "origin": "https://elsewhere.example"}
        assert (await caller.request(*READ, headers=headers)).status_code == 200
        assert (await caller.request(*WRITE, headers=headers, content=b"{")).status_code == 422

    async def test_the_probes_are_open_and_tell_only_yes_or_no(self, callers: Caller) -> None:
        caller = callers("10.1.2.3:8082", token=TOKEN)
        assert (await caller.get("/livez")).json() == {"live": True}
        assert (await caller.get("/readyz")).json() == {"ready": False}
        known = (await caller.get("/readyz", headers=AUTHORISED)).json()
        assert known == {"ready": False, "revision": "0.0", "degraded": ["the disk is full at /srv/secret"]}

    async def test_tokens_are_compared_in_constant_time(
        self, callers: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compared: list[tuple[bytes, bytes]] = []

        class Watched:
            @staticmethod
            def compare_digest(one: bytes, other: bytes) -> bool:
                compared.append((one, other))
                return hmac.compare_digest(one, other)

        monkeypatch.setattr(auth, "hmac", Watched)
        await callers(token=TOKEN).get("/metrics", headers={"authorization": "Bearer x"})
        ((one, other),) = compared
        assert len(one) == len(other) == 32, "digests, so that not even the length shows"


async def test_only_lifespan_passes_beside_http() -> None:
    reached = []

    async def app(scope: object, receive: object, send: object) -> None:
        reached.append(scope)

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    guard = AdminGuard(app, TOKEN)
    await guard({"type": "lifespan"}, None, send)  # type: ignore[arg-type]
    assert len(reached) == 1
    socket = {"type": "websocket", "path": "/api/v1/events", "headers": []}
    await guard(socket, None, send)  # type: ignore[arg-type]
    assert len(reached) == 1 and sent[0]["status"] == 401

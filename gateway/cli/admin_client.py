"""The command line's way to a gateway: its admin API, over HTTP."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from gateway.cli.errors import AdminError

TIMEOUT_S = 30.0
APPLY_TIMEOUT_S = 3600.0
"""An apply returns when all weights are fetched and loaded."""


class AdminClient:
    """Calls one gateway. Every method raises only `AdminError`."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        self._shown = _without_userinfo(url)
        headers = {"turnout-actor": f"{_user()}@{socket.gethostname()}"}
        if token := token.strip():
            headers["authorization"] = f"Bearer {_checked(token)}"
        try:
            self._http = httpx.Client(
                base_url=f"{url}/api/v1",
                headers=headers,
                timeout=TIMEOUT_S,
                transport=transport,
                trust_env=False,
            )
        except (httpx.InvalidURL, ValueError):
            # Without the library's words: they may cite what stands where a password does.
            raise AdminError(f"--admin: {self._shown} is no URL: write http://HOST:PORT") from None

    def get(self, path: str, **params: Any) -> Any:
        return self._call("GET", path, params=params)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        revision: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        """`revision` becomes If-Match: the change is refused where the state has moved on."""
        headers = {"if-match": f'"{revision}"'} if revision else {}
        return self._call(method, path, json=body, headers=headers, timeout=timeout_s)

    @contextmanager
    def events(self) -> Iterator[Iterator[dict[str, Any]]]:
        """The event stream, for progress."""
        try:
            with self._http.stream("GET", "/events", timeout=None) as response:
                yield (
                    msgspec.json.decode(line[6:])
                    for line in response.iter_lines()
                    if line.startswith("data: ")
                )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_success:
            return response.json() if response.content else None
        raise AdminError(_detail(response), exit_code=3 if response.status_code in (409, 412) else 1)

    def _unreachable(self, error: httpx.HTTPError) -> AdminError:
        reason = "it did not answer in time" if isinstance(error, httpx.TimeoutException) else str(error)
        return AdminError(
            f"no gateway at {self._shown}: {reason}. Start one with: turnout serve, "
            "or name it with --admin or TURNOUT_ADMIN"
        )


def _checked(token: str) -> str:
    """The token, which goes into a header. Raises `AdminError`, which does not cite it."""
    if all("!" <= sign <= "~" for sign in token):
        return token
    raise AdminError(
        "TURNOUT_ADMIN_TOKEN is no token: it has a space, a line's end or another sign in it that is not printable "
        "ASCII. Make one with: turnout token NAME --role ROLE"
    )


def _without_userinfo(url: str) -> str:
    """As it may be shown: whoever writes a password into a URL does not want it in a terminal's log."""
    before, at, rest = url.rpartition("@")
    scheme = before.partition("://")[0] + "://" if "://" in before else ""
    return scheme + rest if at else url


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered {response.status_code}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"

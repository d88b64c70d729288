"""The one HTTP client behind every registry that speaks HTTP.

It retries what may be repeated, follows redirects by hand, and sends credentials to one origin only.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import TypeVar
from urllib.request import getproxies

import httpx
import msgspec

from registry_client.addresses import Resolver, check_target, origin, resolve_by_system, shown
from registry_client.bulk import BulkTransport
from registry_client.client import ByteStream
from registry_client.errors import InvalidConfiguration, ProtocolError, RegistryError, Unavailable
from registry_client.http_errors import FOREIGN, error_for, error_for_status
from registry_client.parts import RANGE_HEADERS, WHOLE, Part, Sent, sent_part, strong_validator

T = TypeVar("T")

JSON_LIMIT_BYTES = 16 * 1024 * 1024
ERROR_LIMIT_BYTES = 64 * 1024
REDIRECT_LIMIT = 3

# 503 and 429 are asked for again, and so is what a proxy says when the server behind it restarts.
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff]*")
# The same bytes as stored: a compressed body has another length and cannot be resumed.
_PLAIN = {"Accept-Encoding": "identity", "User-Agent": "turnout"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """Seconds. `total_s` covers a JSON call with all its retries; bodies of files have no total."""

    connect_s: float = 5.0
    read_s: float = 30.0
    total_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Full jitter: before attempt n+1 a uniform wait in [0, min(cap, base · 2ⁿ)] seconds, or what the server
    asked for by Retry-After. https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/"""

    attempts: int = 4
    base_s: float = 0.25
    cap_s: float = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What the transport takes from the world: clock, chance, names, and the network itself."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform
    now_s: Callable[[], float] = time.time
    resolve: Resolver = resolve_by_system
    network: httpx.AsyncBaseTransport | None = None


Explain = Callable[[int, bytes], RegistryError | None]
"""(status, start of the body) → what this registry means by it, or None for the general meaning."""


@dataclass(slots=True, kw_only=True)
class _Call:
    """One request as it is being tried."""

    client: httpx.AsyncClient
    method: str
    url: httpx.URL
    headers: Mapping[str, str]
    body: bytes | None = None
    repeatable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTransport:
    """Requests below `base`; `headers` go to its origin and nowhere else.

    Raises only `RegistryError`s; their texts hold neither headers nor queries.
    """

    base: httpx.URL
    client: httpx.AsyncClient = field(repr=False)
    bulk: httpx.AsyncClient = field(repr=False)
    """For the bodies of files."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    limits: TimeLimits = TimeLimits()
    retries: Retries = Retries()
    outside: Outside = Outside()
    explain: Explain = lambda status, body: None

    async def get(self, path: str, answer: type[T], params: Mapping[str, str] | None = None) -> T:
        """GET, decoded as JSON into `answer`. `path` is below the base and percent-encoded already."""
        return await self._json(self._call("GET", path, params), answer)

    async def post(self, path: str, answer: type[T], body: object, *, repeatable: bool = False) -> T:
        """POST of JSON, decoded as `answer`. `repeatable` says that it only asks, so it may be retried."""
        call = self._call("POST", path, None)
        call.body = msgspec.json.encode(body)
        call.headers = {"Content-Type": "application/json"}
        call.repeatable = repeatable
        return await self._json(call, answer)

    @asynccontextmanager
    async def stream(
        self, url: str, part: Part = WHOLE, *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[ByteStream]:
        """The body of a GET, as it comes. `url` is below the base, or absolute; `headers` go to its origin.

        It is the part only if the server proves so by 206 and Content-Range, else the whole file from 0. A
        body that ends early raises `Unavailable`.
        """
        call = self._call("GET", url, None)
        call.client = self.bulk
        await check_target(call.url, base=self.base, resolve=self.outside.resolve, came_from=shown(self.base))
        call.headers = {**dict(headers or {}), **part.headers}
        async with self._opened(call, part) as (response, sent):
            yield ByteStream(
                offset=sent.start,
                total_bytes=sent.total_bytes,
                chunks=_chunks(response, shown(response.url)),
                end=sent.end if part.end is not None else None,
                validator=strong_validator(response),
            )

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.bulk.aclose()

    def _call(self, method: str, url: str, params: Mapping[str, str] | None) -> _Call:
        text = url if "://" in url else f"{str(self.base).rstrip('/')}/{url.lstrip('/')}"
        try:
            target = httpx.URL(text, params=params) if params else httpx.URL(text)
        except httpx.InvalidURL as error:
            raise error_for(error, shown(self.base)) from None
        return _Call(client=self.client, method=method, url=target, headers={})

    async def _json(self, call: _Call, answer: type[T]) -> T:
        where = shown(call.url)
        try:
            async with asyncio.timeout(self.limits.total_s):
                data = await self._with_retries(call, lambda: self._json_once(call))
        except TimeoutError as error:
            raise Unavailable(f"{where} did not answer within {self.limits.total_s:g} s") from error
        return _decoded(data, answer, where)

    async def _json_once(self, call: _Call) -> bytes:
        response = await self._send_checked(call)
        try:
            return await _body(response, JSON_LIMIT_BYTES, shown(call.url))
        finally:
            await response.aclose()

    @asynccontextmanager
    async def _opened(self, call: _Call, part: Part) -> AsyncIterator[tuple[httpx.Response, Sent]]:
        accepted = frozenset({416}) if part.headers else frozenset[int]()
        response = await self._with_retries(call, lambda: self._send_checked(call, accepted))
        try:
            sent = sent_part(response, part)
            if sent is None and not (part.start and part.end):
                # It cannot begin where we asked (the file may have changed): from the start, then. Not for
                # one of many parts: each of them would fetch it all.
                await response.aclose()
                call.headers = {k: v for k, v in call.headers.items() if k not in part.headers}
                response = await self._with_retries(call, lambda: self._send_checked(call))
                sent = sent_part(response, WHOLE)
            if sent is None or response.headers.get("content-encoding", "identity") != "identity":
                raise ProtocolError(
                    f"{shown(response.url)} sent another part than was asked for, or compressed"
                )
            yield response, sent
        finally:
            await response.aclose()

    async def _with_retries(self, call: _Call, attempt: Callable[[], Awaitable[T]]) -> T:
        attempts = self.retries.attempts if call.repeatable else 1
        for number in range(1, attempts):
            try:
                return await attempt()
            except Unavailable as error:
                wait_s = self._wait_s(number, error)
                if wait_s > self.limits.total_s:
                    raise
            await self.outside.sleep(wait_s)
        return await attempt()

    async def _send_checked(self, call: _Call, accepted: frozenset[int] = frozenset()) -> httpx.Response:
        response = await self._send_following_redirects(call)
        if response.is_success or response.status_code in accepted:
            return response
        raise await self._refusal(response)

    def _wait_s(self, attempt: int, error: Unavailable) -> float:
        if error.retry_after_s is not None:
            return error.retry_after_s
        return self.outside.uniform(0, min(self.retries.cap_s, self.retries.base_s * 2.0**attempt))

    async def _refusal(self, response: httpx.Response) -> RegistryError:
        where, status = shown(response.url), response.status_code
        body = b""
        try:
            async with asyncio.timeout(self.limits.read_s):
                body = await _start_of_body(response, ERROR_LIMIT_BYTES)
        except TimeoutError:
            pass  # as below: the status has said enough
        finally:
            await response.aclose()
        retry_after_s = retry_after(response.headers.get("retry-after"), self.outside.now_s())
        special = self.explain(status, body) if origin(response.url) == origin(self.base) else None
        if special is not None and status not in _RETRIED:
            return special
        return error_for_status(status, where, retry_after_s=retry_after_s)

    async def _send_following_redirects(self, call: _Call) -> httpx.Response:
        url, headers = call.url, call.headers
        for _ in range(REDIRECT_LIMIT + 1):
            response = await self._send_once(call, url, headers)
            if response.status_code not in _REDIRECTS:
                return response
            await response.aclose()
            came_from = shown(url)
            if call.method != "GET":
                raise ProtocolError(
                    f"{came_from} redirects a {call.method}: use the address that it leads to"
                )
            target = _location(response, url)
            await check_target(target, base=self.base, resolve=self.outside.resolve, came_from=came_from)
            if origin(target) != origin(url):
                headers = {k: v for k, v in headers.items() if k in RANGE_HEADERS}
            url = target
        raise ProtocolError(f"{shown(call.url)} redirects more than {REDIRECT_LIMIT} times")

    async def _send_once(self, call: _Call, url: httpx.URL, headers: Mapping[str, str]) -> httpx.Response:
        own = self.headers if origin(url) == origin(self.base) else {}
        request = call.client.build_request(
            call.method, url, headers={**_PLAIN, **own, **headers}, content=call.body
        )
        try:
            return await call.client.send(request, stream=True, follow_redirects=False)
        except FOREIGN as error:
            # Not `from error`: a traceback would show the headers that httpx puts into some of its texts.
            raise error_for(error, shown(url)) from None


def open_transport(
    base: httpx.URL,
    *,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | bool = True,
    limits: TimeLimits | None = None,
    retries: Retries | None = None,
    outside: Outside | None = None,
    explain: Explain | None = None,
) -> HttpTransport:
    """A transport to `base`. Raises `InvalidConfiguration` for a header that HTTP cannot carry."""
    for name, value in (headers or {}).items():
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidConfiguration(f"the value of {name} for {shown(base)} has control characters in it")
    chosen = limits or TimeLimits()
    outer = outside or Outside()
    context = tls if isinstance(tls, ssl.SSLContext) else httpx.create_ssl_context(verify=tls)

    def client(network: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
        timeout = httpx.Timeout(chosen.read_s, connect=chosen.connect_s)
        made = httpx.AsyncClient(verify=context, timeout=timeout, transport=network)
        # No cookie is kept: they are credentials too, and no registry needs them.
        made.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        return made

    # Only httpx knows what the environment says of proxies: with one, its own way is taken for files too.
    direct = outer.network is None and not getproxies()
    return HttpTransport(
        base=base,
        client=client(outer.network),
        bulk=client(BulkTransport(context) if direct else outer.network),
        headers=dict(headers or {}),
        limits=chosen,
        retries=retries or Retries(),
        outside=outer,
        explain=explain or (lambda status, body: None),
    )


def retry_after(value: str | None, now_s: float) -> float | None:
    """Seconds to wait by a Retry-After header: a number of seconds or an HTTP date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now_s)


def _location(response: httpx.Response, url: httpx.URL) -> httpx.URL:
    try:
        return url.join(response.headers["location"])
    except (KeyError, httpx.InvalidURL, ValueError):
        raise ProtocolError(f"{shown(url)} redirects to no usable address") from None


async def _chunks(response: httpx.Response, where: str) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    except FOREIGN as error:
        raise error_for(error, where) from None


async def _body(response: httpx.Response, limit_bytes: int, where: str) -> bytes:
    data = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > limit_bytes:
                raise ProtocolError(f"{where} answered with more than {limit_bytes} bytes of JSON")
    except FOREIGN as error:
        raise error_for(error, where) from None
    return bytes(data)


async def _start_of_body(response: httpx.Response, limit_bytes: int) -> bytes:
    data = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) >= limit_bytes:
                break
    except FOREIGN:
        # The status has said enough; what was to explain it is only a help.
        pass
    return bytes(data[:limit_bytes])


def _decoded(data: bytes, answer: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(data, type=answer)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{where} did not answer in the JSON that was expected: {error}") from error

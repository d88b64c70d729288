"""What httpx raises and what servers answer, in this package's words: one table each.

Texts name the address without its query and user, and never repeat a header: httpx puts header values into
some of its own messages, so those are not passed on.
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from registry_client.errors import (
    InvalidConfiguration,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RegistryError,
    Unavailable,
    Unsupported,
)

EXCEPTIONS: Mapping[type[Exception], tuple[type[RegistryError], str]] = {
    httpx.ConnectTimeout: (Unavailable, "did not accept a connection in time"),
    httpx.ReadTimeout: (Unavailable, "sent nothing for too long"),
    httpx.WriteTimeout: (Unavailable, "took our request too slowly"),
    httpx.PoolTimeout: (Unavailable, "has all our connections in use"),
    httpx.TimeoutException: (Unavailable, "took too long"),
    httpx.ConnectError: (Unavailable, "cannot be connected to"),
    httpx.ReadError: (Unavailable, "broke the connection while answering"),
    httpx.WriteError: (Unavailable, "broke the connection while we were asking"),
    httpx.CloseError: (Unavailable, "broke the connection"),
    httpx.NetworkError: (Unavailable, "broke the connection"),
    httpx.ProxyError: (Unavailable, "is behind a proxy that failed"),
    httpx.RemoteProtocolError: (Unavailable, "ended its answer early, or it was not HTTP"),
    httpx.LocalProtocolError: (InvalidConfiguration, "cannot be asked with these headers"),
    httpx.ProtocolError: (ProtocolError, "does not speak HTTP as expected"),
    httpx.UnsupportedProtocol: (InvalidConfiguration, "has a scheme other than http and https"),
    httpx.TransportError: (Unavailable, "failed on the way"),
    httpx.DecodingError: (ProtocolError, "sent an answer that does not decompress"),
    httpx.TooManyRedirects: (ProtocolError, "redirects too often"),
    httpx.RequestError: (Unavailable, "could not be asked"),
    httpx.HTTPStatusError: (ProtocolError, "answered with an error"),
    httpx.HTTPError: (Unavailable, "failed"),
    httpx.InvalidURL: (ProtocolError, "led to an address that is no URL"),
    httpx.CookieConflict: (ProtocolError, "sent cookies that contradict each other"),
    # These four are mistakes of ours in reading a response; mapped so that the table is whole.
    httpx.StreamConsumed: (ProtocolError, "had its answer read twice"),
    httpx.StreamClosed: (Unavailable, "had its answer read after the end"),
    httpx.ResponseNotRead: (ProtocolError, "had its answer used before it was read"),
    httpx.RequestNotRead: (ProtocolError, "had its request used before it was read"),
    httpx.StreamError: (ProtocolError, "had its answer read in a wrong way"),
}

FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError)
"""The roots of everything that httpx raises on purpose."""

_STATUSES: Mapping[int, tuple[type[RegistryError], str]] = {
    401: (PermissionDenied, "asks for credentials, or does not accept ours"),
    403: (PermissionDenied, "refuses us access"),
    404: (NotFound, "does not exist"),
    407: (PermissionDenied, "is behind a proxy that asks for credentials"),
    408: (Unavailable, "gave up waiting for us"),
    410: (NotFound, "is gone"),
    425: (Unavailable, "is not ready to answer yet"),
    429: (Unavailable, "limits our rate"),
    501: (Unsupported, "has no such function"),
}


def error_for(error: Exception, where: str) -> RegistryError:
    """The registry error for something that httpx raised."""
    for kind in type(error).__mro__:
        if kind in EXCEPTIONS:
            mapped, phrase = EXCEPTIONS[kind]
            return mapped(f"{where} {phrase}{_reason(error)}")
    raise error


def error_for_status(status: int, where: str, *, retry_after_s: float | None = None) -> RegistryError:
    """The registry error for any status that is no success."""
    mapped, phrase = _STATUSES.get(status, (None, ""))
    if mapped is None:
        mapped = Unavailable if status >= 500 else ProtocolError
        phrase = "is failing" if status >= 500 else "answered what no rule of HTTP foresees here"
    text = f"{where} {phrase} (HTTP {status})"
    return Unavailable(text, retry_after_s=retry_after_s) if mapped is Unavailable else mapped(text)


def _reason(error: Exception) -> str:
    # Of all of httpx's texts, only this one is known to come from the operating system or from TLS.
    return f": {error}" if isinstance(error, httpx.ConnectError) and str(error) else ""

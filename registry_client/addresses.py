"""Where a registry may send us: schemes, origins, and addresses that no redirect may reach."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

import httpx

from registry_client.errors import InvalidConfiguration, ProtocolError

SCHEMES = frozenset({"http", "https"})

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) → its IP addresses; empty where the name is not known here."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        # Behind a proxy only the proxy may know the name; connecting will tell.
        return []
    return [str(each[4][0]) for each in found]


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are bound to."""
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def shown(url: httpx.URL) -> str:
    """The URL for people: without user, query and fragment, which hold secrets."""
    port = f":{url.port}" if url.port else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}{port}{url.path}"


def configured_url(text: str, *, registry: str) -> httpx.URL:
    """The base URL that a person configured. Raises `InvalidConfiguration`, without repeating a password."""
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL as error:
        raise InvalidConfiguration(f"registry {registry!r}: its url is not a URL") from error
    if url.userinfo:
        raise InvalidConfiguration(
            f"registry {registry!r}: the url {shown(url)} has a user in it; "
            "credentials belong into the environment"
        )
    if url.scheme not in SCHEMES or not url.host:
        raise InvalidConfiguration(
            f"registry {registry!r}: the url must be http:// or https:// and have a host"
        )
    if url.query or url.fragment:
        raise InvalidConfiguration(f"registry {registry!r}: the url {shown(url)} may have no ? and no #")
    return url


async def check_target(target: httpx.URL, *, base: httpx.URL, resolve: Resolver, came_from: str) -> None:
    """Refuses a URL that a registry supplied, if its scheme or address is one that it must not send us to.

    Link-local addresses hold the metadata services of clouds; loopback is allowed only to a registry that
    is on loopback itself. Raises `ProtocolError`.
    """
    if target.scheme not in SCHEMES or not target.host or target.userinfo:
        raise ProtocolError(
            f"{came_from} leads to a {target.scheme[:20]!r} address or one with a user in it: not followed"
        )
    if base.scheme == "https" and target.scheme == "http":
        raise ProtocolError(f"{came_from} leads from https to http, to {shown(target)}: not followed")
    if origin(target) == origin(base):
        return
    port = origin(target)[2]
    addresses = [ipaddress.ip_address(each.partition("%")[0]) for each in await resolve(target.host, port)]
    if not any(map(_is_forbidden, addresses)) and not any(each.is_loopback for each in addresses):
        return
    near = [ipaddress.ip_address(e.partition("%")[0]) for e in await resolve(base.host, origin(base)[2])]
    if any(map(_is_forbidden, addresses)) or not any(each.is_loopback for each in near):
        raise ProtocolError(f"{came_from} leads to {shown(target)}, an internal address: not followed")


def _is_forbidden(address: Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    return address.is_link_local or address.is_multicast or address.is_unspecified

"""What `turnout serve` was told, by options or `TURNOUT_…` variables."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
DEFAULT_GRPC_PORT = 8081
DEFAULT_ADMIN_PORT = 8082
DEFAULT_STATE_DIR = Path(".turnout/state")
DEFAULT_CACHE_DIR = Path(".turnout/cache")
DEFAULT_CACHE_BYTES = 20 * 1024**3
DEFAULT_BODY_BYTES = 64 * 1024**2
DEFAULT_DRAIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One replica's own settings; everything that replicas share is in the state."""

    config: Path | None = None
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    grpc_port: int | None = DEFAULT_GRPC_PORT
    """None: no gRPC."""
    admin_host: str = DEFAULT_HOST
    admin_port: int = DEFAULT_ADMIN_PORT
    workers: int = 1
    redis: str = field(default="", repr=False)
    namespace: str = "default"
    state_dir: Path = DEFAULT_STATE_DIR
    cache_dir: Path = DEFAULT_CACHE_DIR
    cache_bytes: int = DEFAULT_CACHE_BYTES
    body_bytes: int = DEFAULT_BODY_BYTES
    drain_s: float = DEFAULT_DRAIN_S
    admin_token: str = field(default="", repr=False)
    tokens: Path | None = None
    """The file of tokens with roles."""
    example: Path | None = None


class SettingsError(ValueError):
    """The settings contradict each other or cannot be used; the text says which and what to do."""


def check_settings(settings: Settings) -> None:
    """Raises `SettingsError`."""
    if not is_loopback(settings.admin_host) and not settings.admin_token and settings.tokens is None:
        raise SettingsError(
            f"--admin-host {settings.admin_host} is reachable from elsewhere: set TURNOUT_ADMIN_TOKEN, "
            "or --tokens, or leave the admin listener on 127.0.0.1"
        )
    if settings.admin_token and len(settings.admin_token) < 16:
        raise SettingsError(
            "TURNOUT_ADMIN_TOKEN is shorter than 16 characters: make one with `openssl rand -hex 32`"
        )
    if settings.workers < 1:
        raise SettingsError(f"--workers {settings.workers}: at least 1, or auto")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address; a name that is no address counts as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"

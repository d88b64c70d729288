"""`turnout serve` and `turnout config check`."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from pathlib import Path

import click

from gateway import settings as defaults
from gateway.cli.output import say
from gateway.control.manifest_file import read_manifest
from gateway.settings import Settings, SettingsError

_SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)


class _Bytes(click.ParamType[int]):
    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if not match:
            self.fail(f"{value!r} is no size: write 64M or 20G", param, ctx)
        return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def _workers(_: click.Context, __: click.Parameter, value: str) -> int:
    if value == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is not a number of at least 1, or auto")
    return int(value)


class _Port(click.Option):
    """Kubernetes sets TURNOUT_PORT=tcp://… in every pod beside a service named turnout: that is not for us."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        return None if value is not None and "://" in value else value


_LAST_PORT = 65535
_PORT = click.IntRange(0, _LAST_PORT)


def _port_or_off(_: click.Context, __: click.Parameter, value: str) -> int | None:
    if value.lower() in ("off", "none"):
        return None
    if not value.isascii() or not value.isdigit() or int(value) > _LAST_PORT:
        raise click.BadParameter(f"{value!r} is no port from 0 to {_LAST_PORT}, or off")
    return int(value)


# Not TURNOUT_SERVE_PORT, as click would have it: whoever sets it sees no subcommand.
@click.command(context_settings={"auto_envvar_prefix": "TURNOUT"})
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="The manifest to start with.")
@click.option(
    "--host", default=defaults.DEFAULT_HOST, show_default=True, help="Address of the data listener."
)
@click.option("--port", cls=_Port, type=_PORT, default=defaults.DEFAULT_PORT, show_default=True)
@click.option("--grpc-port", cls=_Port, default=str(defaults.DEFAULT_GRPC_PORT), show_default=True, metavar="PORT",
              callback=_port_or_off, help="Of the data listener for gRPC, or off.")  # fmt: skip
@click.option("--admin-host", default=defaults.DEFAULT_HOST, show_default=True,
              help="Address of the admin listener; off the loopback it demands a token.")  # fmt: skip
@click.option("--admin-port", cls=_Port, type=_PORT, default=defaults.DEFAULT_ADMIN_PORT, show_default=True)
@click.option("--tokens", type=click.Path(path_type=Path, dir_okay=False),
              help="File of tokens with roles: turnout token makes them.")  # fmt: skip
@click.option(
    "--workers", default="auto", show_default=True, callback=_workers, help="Processes, or auto: one a core."
)
@click.option(
    "--redis", default="", help="redis:// of the shared store; without it the state is a local file."
)
@click.option("--namespace", default="default", show_default=True, help="Of the keys in Redis.")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), default=defaults.DEFAULT_STATE_DIR,
              show_default=True)  # fmt: skip
@click.option("--cache-dir", type=click.Path(path_type=Path, file_okay=False), default=defaults.DEFAULT_CACHE_DIR,
              show_default=True)  # fmt: skip
@click.option(
    "--cache-limit",
    type=_Bytes(),
    default=defaults.DEFAULT_CACHE_BYTES,
    help="Weights cache; 20G unless told.",
)
@click.option(
    "--body-limit",
    type=_Bytes(),
    default=defaults.DEFAULT_BODY_BYTES,
    help="Of one request; 64M unless told.",
)
@click.option("--drain", type=float, default=defaults.DEFAULT_DRAIN_S, show_default=True,
              help="Seconds between unready and the last accepted connection.")  # fmt: skip
@click.option(
    "--example", type=click.Path(path_type=Path, exists=True), help="A request to show a curl for when ready."
)
@click.option("--verbose", is_flag=True, help="Log what happens, not only what is wrong.")
def serve(
    config: Path | None,
    host: str,
    port: int,
    grpc_port: int | None,
    admin_host: str,
    admin_port: int,
    tokens: Path | None,
    workers: int,
    redis: str,
    namespace: str,
    state_dir: Path,
    cache_dir: Path,
    cache_limit: int,
    body_limit: int,
    drain: float,
    example: Path | None,
    verbose: bool,
) -> int:
    """Serve models: a supervisor with its workers. One line says when it is ready.

    Every option is a variable, too: --state-dir is TURNOUT_STATE_DIR.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    settings = Settings(
        config=config,
        host=host,
        port=port,
        grpc_port=grpc_port,
        admin_host=admin_host,
        admin_port=admin_port,
        workers=workers,
        redis=redis,
        namespace=namespace,
        state_dir=state_dir.absolute(),
        cache_dir=cache_dir.absolute(),
        cache_bytes=cache_limit,
        body_bytes=body_limit,
        drain_s=drain,
        admin_token=os.environ.get("TURNOUT_ADMIN_TOKEN", ""),
        tokens=tokens,
        example=example,
    )
    _check_config(settings)
    return asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    from gateway.node.supervisor import Supervisor

    return await Supervisor(settings).run()


def _check_config(settings: Settings) -> None:
    """A first start with an unusable manifest has nothing to serve: it ends at once and says why."""
    first = not (settings.state_dir / "state.json").exists()
    if settings.config is not None and first:
        read_manifest(settings.config)
    elif settings.config is None and first and not settings.redis:
        raise SettingsError(
            "there is nothing to serve: name a manifest with --config FILE, or a store with --redis URL"
        )


@click.group()
def config() -> None:
    """Look at a manifest without a gateway."""


@config.command("check")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def check(file: Path) -> None:
    """Check a manifest, whole; says which field is wrong."""
    manifest = read_manifest(file)
    say(f"{file} is valid: {len(manifest.routes)} routes, {len(manifest.registries)} registries")


COMMANDS = (serve, config)

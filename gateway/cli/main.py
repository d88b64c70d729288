"""The command, its options and its exit codes: 0 done, 1 error, 2 changes, 3 conflict, 4 not everywhere."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from gateway.cli.errors import AdminError
from gateway.routing.change import ChangeRefused
from gateway.routing.manifest_values import ManifestError
from gateway.settings import DEFAULT_ADMIN_PORT, SettingsError
from registry_client.errors import RegistryError

_ONLY_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""A group that was called without a command; before click 8.2 it shows its help itself."""
EXIT_ERROR, EXIT_CHANGES, EXIT_CONFLICT, EXIT_PARTIAL = 1, 2, 3, 4


_MODULES = {
    **dict.fromkeys(("serve", "config"), "gateway.cli.serve"),
    **dict.fromkeys(
        ("plan", "apply", "weights", "rollback", "allow", "restore", "adopt"), "gateway.cli.changes"
    ),
    **dict.fromkeys(("get", "describe", "status", "cache"), "gateway.cli.views"),
    **dict.fromkeys(("history", "audit"), "gateway.cli.audit"),
    "renew": "gateway.cli.leases",
    **dict.fromkeys(("resolve", "push"), "gateway.cli.registries"),
    "token": "gateway.cli.tokens",
}


class _Commands(click.Group):
    """Imports a command when it is called: a rollback must not wait for the libraries of all the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        commands: tuple[click.Command, ...] = import_module(_MODULES[cmd_name]).COMMANDS
        return next(command for command in commands if command.name == cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--admin",
    envvar="TURNOUT_ADMIN",
    default=f"http://127.0.0.1:{DEFAULT_ADMIN_PORT}",
    show_default=True,
    show_envvar=True,
    help="The gateway's admin listener.",
)
@click.version_option(package_name="turnout")
@click.pass_context
def turnout(context: click.Context, admin: str) -> None:
    """The gateway between applications and their models' versions."""
    context.obj = _Lazily(admin)


class _Lazily:
    """The client, made when a command first needs one: its library takes a third of a second to import."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._client is None:
            from gateway.cli.admin_client import AdminClient

            self._client = AdminClient(self._url.rstrip("/"), os.environ.get("TURNOUT_ADMIN_TOKEN", ""))
        return getattr(self._client, name)


def main() -> None:
    """Runs the command. Whatever goes wrong on purpose is one line on stderr and an exit code."""
    try:
        code = turnout.main(standalone_mode=False)
    except click.ClickException as error:
        _refuse(error)
        sys.exit(EXIT_ERROR)
    except click.Abort:
        sys.exit(130)
    except AdminError as error:
        _fail(error)
        sys.exit(error.exit_code)
    except (ManifestError, ChangeRefused, RegistryError, SettingsError) as error:
        _fail(error)
        sys.exit(EXIT_ERROR)
    except BrokenPipeError:
        # `turnout history | head`: whoever read has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(error: click.ClickException) -> None:
    if isinstance(error, _ONLY_HELP):
        error.show()
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    see = f" (see {context.command_path} --help)" if context is not None else ""
    click.echo(f"turnout: {error.format_message()}{see}", err=True)


def _fail(error: Exception) -> None:
    click.echo(f"turnout: {error}", err=True)

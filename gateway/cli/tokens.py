"""Tokens with roles, for the file that `turnout serve --tokens` reads."""

from __future__ import annotations

import click

from gateway.admin.roles import Role
from gateway.admin.tokens import make_token
from gateway.cli.output import say, show
from gateway.routing.names import NAME


@click.command()
@click.argument("name")
@click.option("--role", type=click.Choice([str(role) for role in Role]), required=True)
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
def token(name: str, role: str, output: str) -> None:
    """Make a token. It is shown once; the line for the file of tokens holds only its SHA-256."""
    if not NAME.fullmatch(name):
        raise click.BadParameter(f"{name[:140]!r}: a name is letters, digits and ._-, 128 at most")
    made, sha256 = make_token()
    if output != "table":
        show({"name": name, "role": role, "token": made, "sha256": sha256}, (), (), output)
        return
    say(made)
    # Beside the token's own line: `turnout token … > secret` keeps the token, and the line is seen.
    click.echo(f'{name}: {{role: {role}, sha256: "{sha256}"}}', err=True)


COMMANDS = (token,)

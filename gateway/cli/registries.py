"""The commands about registries: `resolve` and `push`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.admin.documents import version_document
from gateway.cli.admin_client import AdminClient
from gateway.cli.output import say, show, size, table
from gateway.control.manifest_file import read_manifest
from registry_client import ModelRef, ModelVersion, open_registry, split_model
from registry_client.adapters.directory import publish
from registry_client.errors import InvalidConfiguration

_OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
_FILE = click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take the registries from this manifest instead of a running gateway.",
)


@click.command()
@click.argument("reference")
@_FILE
@click.option(
    "--fetch", is_flag=True, help="Have the gateway fetch the files, where only that tells the digest."
)
@_OUTPUT
@click.pass_obj
def resolve(admin: AdminClient, reference: str, file: Path | None, fetch: bool, output: str) -> None:
    """Show the pin behind REFERENCE (registry/model@revision), its files and its lineage."""
    parsed = ModelRef.parse(reference)
    if file is None:
        document = admin.get("/resolve", reference=reference, fetch="true" if fetch else "false")
    else:
        version = asyncio.run(_resolve(file, parsed))
        document = {"reference": reference, **version_document(version, version.digest)}
    if output != "table":
        show(document, (), (), output)
        return
    _show_version(document)


@click.command()
@click.argument("model", metavar="REGISTRY/MODEL")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--version", help="The version to publish; else the next number.")
@click.option("--alias", "aliases", multiple=True, help="Point this alias at it; may be repeated.")
@click.option("--metadata", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="JSON with description and lineage.")  # fmt: skip
@_FILE
@_OUTPUT
@click.pass_obj
def push(
    admin: AdminClient,
    model: str,
    path: Path,
    version: str | None,
    aliases: tuple[str, ...],
    metadata: Path | None,
    file: Path | None,
    output: str,
) -> None:
    """Publish PATH, a file or a folder, as a version of a model in a directory registry."""
    registry, name = split_model(model)
    root = _directory_root(registry, file, admin)
    described = _metadata(metadata) if metadata is not None else None
    published = publish(root, name, path, version=version, aliases=aliases, metadata=described)
    document = {
        "registry": registry,
        **version_document(published, published.digest),
        "registry_path": str(root),
    }
    document["registry"] = registry
    if output != "table":
        show(document, (), (), output)
        return
    pointed = f", {', '.join(f'@{alias}' for alias in aliases)}" if aliases else ""
    say(f"{registry}/{name} version {published.version}{pointed}: digest {published.digest}")


async def _resolve(file: Path, reference: ModelRef) -> ModelVersion:
    declared = read_manifest(file).registries
    registry = declared.get(reference.registry)
    if registry is None:
        known = ", ".join(declared) or "none"
        raise InvalidConfiguration(
            f"registry {reference.registry!r} is not declared in {file} (declared: {known})"
        )
    client = open_registry(reference.registry, registry.type, registry.options)
    try:
        return await client.resolve(reference.model, reference.revision)
    finally:
        await client.aclose()


def _directory_root(registry: str, file: Path | None, admin: AdminClient) -> Path:
    declared: list[dict[str, Any]]
    if file is not None:
        declared = [
            {"name": name, "type": entry.type, "options": entry.options}
            for name, entry in read_manifest(file).registries.items()
        ]
    else:
        declared = admin.get("/registries")["registries"]
    for entry in declared:
        if entry["name"] == registry:
            if entry["type"] != "directory":
                raise InvalidConfiguration(
                    f"registry {registry!r} is of type {entry['type']}: turnout pushes to directories; "
                    "publish there with the registry's own tools"
                )
            return Path(entry["options"]["path"])
    known = ", ".join(entry["name"] for entry in declared) or "none"
    raise InvalidConfiguration(f"registry {registry!r} is not declared (declared: {known})")


def _metadata(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InvalidConfiguration(f"{path} is no JSON object: {error}") from error


def _show_version(document: dict[str, Any]) -> None:
    aliases = f" ({', '.join('@' + alias for alias in document['aliases'])})" if document["aliases"] else ""
    say(f"reference   {document['reference']}")
    say(f"version     {document['version']}{aliases}")
    say(f"digest      {document['digest'] or 'known once it is fetched: add --fetch'}")
    say(f"identity    {document['identity']}")
    if document["description"]:
        say(f"about       {document['description']}")
    say("")
    rows = [(entry["path"], size(entry["size_bytes"]), entry["digest"] or "") for entry in document["files"]]
    table(("file", "size", "digest"), rows)
    lineage = {key: value for key, value in document["lineage"].items() if value}
    if lineage:
        say("")
        rows = [
            (kind, name, value)
            for kind, values in lineage.items()
            for name, value in (values.items() if isinstance(values, dict) else [("", values)])
        ]
        table(("lineage", "name", "value"), rows)


COMMANDS = (resolve, push)

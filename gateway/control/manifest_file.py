"""Reads a manifest from a file: what is relative in it is relative to the file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.routing.manifest import Manifest, parse_manifest
from gateway.routing.manifest_values import ManifestError


def read_manifest(path: Path) -> Manifest:
    """Raises `ManifestError`, also where the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError("", f"{path} cannot be read: {error}") from error
    return based(parse_manifest(text), path.parent.absolute())


def based(manifest: Manifest, base: Path) -> Manifest:
    """The manifest with the relative paths of its directory registries made absolute."""
    registries = {
        name: msgspec.structs.replace(
            declared, options={**declared.options, "path": str(base / declared.options["path"])}
        )
        if declared.type == "directory" and isinstance(declared.options.get("path"), str)
        else declared
        for name, declared in manifest.registries.items()
    }
    return msgspec.structs.replace(manifest, registries=registries)

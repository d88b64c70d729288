"""One async client for every model registry; usable without the gateway."""

from registry_client.client import ByteStream, RegistryClient, open_registry, registry_types
from registry_client.errors import RegistryError
from registry_client.models import (
    Capabilities,
    Digest,
    Lineage,
    ModelFile,
    ModelRef,
    ModelVersion,
    Scope,
    split_model,
    version_digest,
)

__all__ = [
    "ByteStream",
    "Capabilities",
    "Digest",
    "Lineage",
    "ModelFile",
    "ModelRef",
    "ModelVersion",
    "RegistryClient",
    "RegistryError",
    "Scope",
    "open_registry",
    "registry_types",
    "split_model",
    "version_digest",
]

"""The registries that the state declares, opened when they are first asked."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.routing.state import RegistryDeclaration
from registry_client import ModelRef, ModelVersion, RegistryClient, open_registry
from registry_client.errors import InvalidConfiguration


class Registries:
    """Clients by name. A declaration that changed gets a new client; the old one is closed."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[RegistryDeclaration, RegistryClient]] = {}

    def client(self, name: str, declared: Mapping[str, RegistryDeclaration]) -> RegistryClient:
        """Raises `InvalidConfiguration` for a name that is not declared, or options that are wrong."""
        declaration = declared.get(name)
        if declaration is None:
            raise InvalidConfiguration(
                f"registry {name!r} is not declared (declared: {', '.join(declared) or 'none'})"
            )
        known = self._open.get(name)
        if known is not None and known[0] == declaration:
            return known[1]
        client = open_registry(name, declaration.type, declaration.options)
        # The old client is left to those who are using it; it holds idle connections at most.
        self._open[name] = declaration, client
        return client

    async def resolve(self, reference: ModelRef, declared: Mapping[str, RegistryDeclaration]) -> ModelVersion:
        return await self.client(reference.registry, declared).resolve(reference.model, reference.revision)

    async def aclose(self) -> None:
        for _, client in self._open.values():
            await client.aclose()
        self._open.clear()

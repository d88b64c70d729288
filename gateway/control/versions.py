"""From references to pins, and from pins to verified files in the weights cache."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import msgspec

from gateway.control.registries import Registries
from gateway.control.weights import CachedVersion, WeightsCache, model_path
from gateway.routing.manifest import Manifest
from gateway.routing.state import Pin, RegistryDeclaration
from registry_client import ModelRef, ModelVersion
from registry_client.errors import IntegrityError, NotFound

Declared = Mapping[str, RegistryDeclaration]
LOOK_UPS_AT_ONCE = 8


class Versions:
    """Asks the registries and the cache, so that nobody else needs to know both."""

    def __init__(self, registries: Registries, weights: WeightsCache) -> None:
        self.registries = registries
        self.weights = weights

    async def look_up(self, reference: ModelRef, declared: Declared) -> tuple[Pin, ModelVersion]:
        """The pin behind a reference at this moment; its digest is "" where only a fetch can tell it."""
        version = await self.registries.resolve(reference, declared)
        digest = version.digest or self.weights.known_digest(version) or ""
        pin = Pin(
            registry=version.registry,
            model=version.model,
            version=version.version,
            identity=version.identity,
            digest=digest,
        )
        return pin, version

    async def look_up_all(self, manifest: Manifest) -> dict[str, Pin]:
        """Every reference of a manifest, as it is written → its pin. The first `RegistryError` is raised."""
        references = {str(reference): reference for _, _, reference in manifest.references()}
        limit = asyncio.Semaphore(LOOK_UPS_AT_ONCE)

        async def one(reference: ModelRef) -> Pin:
            async with limit:
                return (await self.look_up(reference, manifest.registries))[0]

        pins = await asyncio.gather(*(one(reference) for reference in references.values()))
        return dict(zip(references, pins, strict=True))

    async def fetch(self, pin: Pin, declared: Declared) -> tuple[Pin, CachedVersion]:
        """The version's files, verified, and the pin with its digest. One fetch, however many ask.

        What is in the cache needs no registry. Raises `RegistryError`s.
        """
        cached = self.weights.get(pin.digest) if pin.digest else None
        if cached is None:
            cached = await self._download(pin, declared)
        return msgspec.structs.replace(pin, digest=cached.digest), cached

    def paths(self, pins: Iterable[Pin]) -> dict[str, str]:
        """Digest → model file, of the pins that are in the cache."""
        found = {pin.digest: self.weights.get(pin.digest) for pin in pins}
        return {digest: str(model_path(cached)) for digest, cached in found.items() if cached is not None}

    async def _download(self, pin: Pin, declared: Declared) -> CachedVersion:
        client = self.registries.client(pin.registry, declared)
        version = await client.resolve(pin.model, pin.version)
        if version.version != pin.version:
            raise NotFound(f"{pin.registry}/{pin.model} has no version {pin.version} any more")
        if pin.identity and version.identity != pin.identity:
            raise IntegrityError(
                f"version {pin.version} of {pin.registry}/{pin.model} is not the release that was pinned: it was "
                "deleted and made again, or its files were replaced; publish a new version instead"
            )
        return await self.weights.ensure(client, version, pin.digest or None)

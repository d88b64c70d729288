"""The files of a version, through MLflow's artifact proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote, unquote, urlsplit

import httpx

from registry_client.adapters.mlflow.answers import Artifact, Listing, Presigned
from registry_client.client import ByteStream
from registry_client.errors import NotFound, ProtocolError, Unsupported
from registry_client.models import ModelFile
from registry_client.parts import Part
from registry_client.paths import checked_path
from registry_client.transport import HttpTransport

PROXY = "api/2.0/mlflow-artifacts/artifacts"
PRESIGNED = "api/2.0/mlflow-artifacts/presigned"
FILES_LIMIT = 10_000
FOLDERS_LIMIT = 1_000
DEPTH_LIMIT = 32


class ArtifactProxy:
    """`mlflow-artifacts:` as the server offers it: one level a listing, sizes, no checksums."""

    def __init__(self, transport: HttpTransport, *, registry: str) -> None:
        self._transport = transport
        self._registry = registry
        self._presigns = True

    async def files(self, artifact_uri: str) -> tuple[ModelFile, ...]:
        """All files below the URI. Raises `Unsupported` for what lies outside of the proxy, `ProtocolError`
        for unsafe paths and past the limits, `NotFound` where there is nothing."""
        root = proxied_path(artifact_uri, self._transport.base, registry=self._registry)
        found = [each async for each in self._walk(root)] or await self._single(root)
        if not found:
            raise NotFound(f"registry {self._registry!r}: there are no files at {artifact_uri}")
        return tuple(sorted(found, key=lambda each: each.path))

    @asynccontextmanager
    async def open(self, file: ModelFile, part: Part) -> AsyncIterator[ByteStream]:
        """From the store itself where the server signs URLs for it, else through the server."""
        async with AsyncExitStack() as stack:
            signed = await self._signed(file.locator)
            if signed is None:
                opening = self._transport.stream(f"{PROXY}/{_encoded(file.locator)}", part)
            else:
                opening = self._transport.stream(signed.url, part, headers=signed.headers)
            yield await stack.enter_async_context(opening)

    async def _signed(self, path: str) -> Presigned | None:
        # Signed anew at each opening: such URLs expire within minutes.
        if not self._presigns:
            return None
        try:
            return await self._transport.get(f"{PRESIGNED}/{_encoded(path)}", Presigned)
        except NotFound:
            return None
        except (Unsupported, ProtocolError):
            # 501 for a store that cannot sign, 4xx from a server older than 3.12: not asked again.
            self._presigns = False
            return None

    async def _walk(self, root: str) -> AsyncIterator[ModelFile]:
        pending = [""]
        files = folders = 0
        while pending:
            folder = pending.pop()
            folders += 1
            for entry in await self._list(_joined(root, folder)):
                path = _joined(folder, self._checked(entry.path, root))
                if entry.is_dir:
                    pending.append(path)
                    continue
                files += 1
                yield _file(path, _joined(root, path), entry)
            if (
                files > FILES_LIMIT
                or folders + len(pending) > FOLDERS_LIMIT
                or folder.count("/") > DEPTH_LIMIT
            ):
                raise ProtocolError(
                    f"registry {self._registry!r} lists more than {FILES_LIMIT} files, "
                    f"{FOLDERS_LIMIT} folders or {DEPTH_LIMIT} levels at {root}"
                )

    async def _single(self, root: str) -> list[ModelFile]:
        # A version may be registered from one file; listing a file gives nothing.
        parent, _, name = root.rpartition("/")
        entries = await self._list(parent)
        return [_file(name, root, each) for each in entries if each.path == name and not each.is_dir]

    async def _list(self, path: str) -> list[Artifact]:
        return (await self._transport.get(PROXY, Listing, {"path": path})).files

    def _checked(self, path: str, root: str) -> str:
        return checked_path(path, listed_by=f"registry {self._registry!r} at {root}")


def proxied_path(artifact_uri: str, base: httpx.URL, *, registry: str) -> str:
    """The path below the artifact proxy that a URI of this server stands for.

    Raises `Unsupported` for any other place, `ProtocolError` for a path that leaves the proxy's root.
    """
    parts = urlsplit(artifact_uri)
    prefix = f"{base.path.rstrip('/')}/{PROXY}/"
    own_host = parts.netloc in ("", base.netloc.decode())
    if parts.scheme == "mlflow-artifacts" and own_host:
        path = parts.path
    elif parts.scheme == base.scheme and own_host and parts.netloc and parts.path.startswith(prefix):
        path = unquote(parts.path.removeprefix(prefix))
    else:
        raise Unsupported(
            f"registry {registry!r} keeps this version's files at {parts.scheme or 'a local path'}:… , "
            "outside of its artifact proxy: start MLflow with --serve-artifacts and --artifacts-destination, "
            "and register the version again"
        )
    return checked_path(path.strip("/"), listed_by=f"registry {registry!r}")


def _file(path: str, locator: str, entry: Artifact) -> ModelFile:
    size = entry.file_size
    if isinstance(size, str):
        size = int(size) if size.isdecimal() else None
    return ModelFile(path=path, size_bytes=size, locator=locator)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _encoded(path: str) -> str:
    checked_path(path, listed_by="the caller")
    return "/".join(quote(part, safe="") for part in path.split("/"))

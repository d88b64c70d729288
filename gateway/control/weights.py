"""The local cache of versions: each fetched once, verified, and named by its digest."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from gateway.control.admission import Limits, admit_content, admit_names
from gateway.control.cache_directory import FILES, CacheDirectory, release_key, tree_bytes
from gateway.control.cached_version import (
    CachedFile,
    CachedVersion,
    CacheEntry,
    VersionManifest,
    model_path,
)
from gateway.control.fetch_progress import FetchProgress, FetchState, FetchTrack, OnProgress
from gateway.control.file_threads import FileThreads
from gateway.control.version_fetch import VersionFetch
from gateway.control.weights_errors import CacheFull, CacheUnusable, WeightsError, WeightsRefused
from registry_client.client import RegistryClient
from registry_client.errors import IntegrityError
from registry_client.models import ModelVersion, version_digest

log = logging.getLogger(__name__)

LOCK_RETRY_S = 0.05
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_Attempt = asyncio.Future[CachedVersion | None]


class WeightsCache:
    """One directory, for the supervisor. Several processes may share it; each version is fetched once.

    `max_bytes` is kept after each fetch, by evicting what was used least recently and is not among
    `in_use()`. Every method may raise `CacheUnusable`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int | None = None,
        limits: Limits | None = None,
        in_use: Callable[[], Collection[str]] = frozenset,
        on_progress: OnProgress = lambda _: None,
    ) -> None:
        self._directory = CacheDirectory(directory)
        self._max_bytes = max_bytes
        self._limits = limits or Limits()
        self._in_use = in_use
        self._on_progress = on_progress
        self._threads = FileThreads()
        self._attempts: dict[tuple[str, str | None], _Attempt] = {}
        self._tracks: set[FetchTrack] = set()
        # Digests whose bytes this process has verified: what it has not, may have changed on the disk.
        self._verified: set[str] = set()

    async def ensure(
        self, client: RegistryClient, version: ModelVersion, expect_digest: str | None = None
    ) -> CachedVersion:
        """The version, from the cache or else from its registry; one fetch however many ask.

        What broke off before is resumed. Raises `WeightsRefused`, `CacheFull`, `IntegrityError` (also where
        the digest is not `expect_digest`), and what the registry raises.
        """
        model = admit_names(version, self._limits)
        while True:
            found = await self._find(version, expect_digest)
            if found is None:
                found = await self._share(client, version, model, expect_digest)
            if found is None:  # the one who fetched was cancelled
                continue
            if expect_digest is not None and found.digest != expect_digest:
                raise _differs(version, found.digest, expect_digest)
            return found

    async def get(self, digest: str) -> CachedVersion | None:
        """A version that is in the cache, whatever its registry does; None if it is not, or is damaged.

        Its bytes are hashed when this process first meets it.
        """
        with self._mapped():
            cached = await self._threads.run(lambda: self._directory.find(digest))
            if cached is None:
                return None
            if digest not in self._verified:
                try:
                    return await self.verify(digest)
                except IntegrityError as error:
                    log.warning("a cached version is damaged and will be fetched again: %s", error)
                    return None
            await self._threads.run(lambda: self._directory.touch(digest))
            return cached

    async def verify(self, digest: str) -> CachedVersion:
        """Hashes every file anew. Raises `IntegrityError`; a version that was tampered with is quarantined,
        and the next `ensure` fetches it again."""
        with self._mapped():
            return await self._threads.run(lambda: self._verify(digest))

    async def known_digest(self, version: ModelVersion) -> str | None:
        """The digest of this very release: as its registry tells it, or as it was found when fetched."""
        if version.digest is not None:
            return version.digest
        if not version.identity:  # nothing says that it is the same release
            return None
        with self._mapped():
            return await self._threads.run(lambda: self._directory.recall(version))

    async def prune(self, limit_bytes: int, in_use: Collection[str]) -> Sequence[str]:
        """Evicts until the cache has at most `limit_bytes`, leftovers first, then by last use.

        Never what is in use or being fetched, so it may stay above the limit. Returns evicted digests.
        """
        with self._mapped():
            evicted = await self._threads.run(lambda: self._prune(limit_bytes, frozenset(in_use)))
        self._verified.difference_update(evicted)
        return evicted

    async def list(self) -> list[CacheEntry]:
        """The complete versions, the least recently used first."""
        with self._mapped():
            return await self._threads.run(self._directory.entries)

    def progress(self) -> tuple[FetchProgress, ...]:
        """The fetches under way."""
        return tuple(track.now for track in self._tracks)

    async def aclose(self) -> None:
        """Lets the threads go. Fetches under way must have been cancelled before."""
        self._threads.close()

    async def _find(self, version: ModelVersion, expect_digest: str | None) -> CachedVersion | None:
        digest = expect_digest or await self.known_digest(version)
        return await self.get(digest) if digest else None

    async def _share(
        self, client: RegistryClient, version: ModelVersion, model: str, expect_digest: str | None
    ) -> CachedVersion | None:
        """The first one fetches, the others get its result or its error; None if it was cancelled."""
        key = release_key(version)
        # Who expects other bytes must not be told of this one's disappointment.
        shared = (key, expect_digest)
        running = self._attempts.get(shared)
        if running is not None:
            return await asyncio.shield(running)
        attempt: _Attempt = asyncio.get_running_loop().create_future()
        self._attempts[shared] = attempt
        try:
            found = await self._fetch_locked(client, version, key, model, expect_digest)
        except Exception as error:
            attempt.set_exception(error)
            attempt.exception()  # that nobody else waited for it is no fault
            raise
        except BaseException:
            attempt.set_result(None)
            raise
        else:
            attempt.set_result(found)
            return found
        finally:
            del self._attempts[shared]

    async def _fetch_locked(
        self, client: RegistryClient, version: ModelVersion, key: str, model: str, expect_digest: str | None
    ) -> CachedVersion:
        track = FetchTrack(version, self._on_progress)
        self._tracks.add(track)
        try:
            with self._mapped():
                await self._threads.run(self._directory.prepare)
                async with self._locked(key):
                    # Another process may have fetched it while we waited.
                    found = await self._find(version, expect_digest)
                    if found is None:
                        found = await self._fetch(client, version, key, model, expect_digest, track)
            if self._max_bytes is not None:
                await self.prune(self._max_bytes, {found.digest, *self._in_use()})
            track.enter(FetchState.DONE)
        except BaseException:
            track.enter(FetchState.FAILED)
            raise
        else:
            return found
        finally:
            self._tracks.discard(track)

    async def _fetch(
        self,
        client: RegistryClient,
        version: ModelVersion,
        key: str,
        model: str,
        expect_digest: str | None,
        track: FetchTrack,
    ) -> CachedVersion:
        partial = self._directory.partial(key)
        try:
            if not version.identity:  # what is there may be of another release
                await self._threads.run(lambda: self._directory.remove(partial))
            await self._threads.run(lambda: self._make_room(partial, track))
            fetch = VersionFetch(
                client,
                version,
                partial / FILES,
                limits=self._limits,
                threads=self._threads,
                track=track,
            )
            files = await fetch.run()
            return await self._threads.run(lambda: self._publish(version, key, model, files, expect_digest))
        except IntegrityError:
            await self._threads.run(lambda: self._directory.quarantine(partial))
            raise
        except WeightsRefused:
            await self._threads.run(lambda: self._directory.remove(partial))
            raise
        except OSError as error:
            if error.errno in FULL:
                # Its bytes would only keep the disk full, for everybody else too.
                await self._threads.run(lambda: self._directory.remove(partial))
                raise self._full(track, str(error.strerror)) from error
            raise

    def _publish(
        self,
        version: ModelVersion,
        key: str,
        model: str,
        files: Sequence[CachedFile],
        expect_digest: str | None,
    ) -> CachedVersion:
        digest = version_digest((file.path, file.size_bytes, file.sha256) for file in files)
        for promised in (expect_digest, version.digest):
            if promised is not None and digest != promised:
                raise _differs(version, digest, promised)
        root = self._directory.partial(key) / FILES
        admit_content(root, model, [file.path for file in files])
        manifest = VersionManifest(
            digest=digest,
            model=model,
            files=list(files),
            registry=version.registry,
            model_name=version.model,
            version=version.version,
        )
        self._directory.remember(version, digest)
        self._directory.publish(key, manifest)
        self._verified.add(digest)
        cached = self._directory.find(digest)
        if cached is None:
            raise CacheUnusable(f"{root.parent} was removed while it was published")
        return cached

    def _verify(self, digest: str) -> CachedVersion:
        cached = self._directory.find(digest)
        if cached is None:
            raise IntegrityError(f"version {digest} is not in the cache {self._directory.root}")
        try:
            self._directory.check(cached)
        except IntegrityError:
            self._verified.discard(digest)
            self._directory.quarantine(cached.path.parent)
            raise
        self._verified.add(digest)
        self._directory.touch(digest)
        return cached

    def _make_room(self, partial: Path, track: FetchTrack) -> None:
        """Refuses before the first byte what cannot fit."""
        total = track.now.total_bytes
        if total is None:
            return
        if self._max_bytes is not None and total > self._max_bytes:
            raise self._full(track, f"the cache is limited to {self._max_bytes} bytes")
        free = shutil.disk_usage(self._directory.root).free
        if total - tree_bytes(partial) > free:
            raise self._full(track, f"{free} bytes are free")

    def _full(self, track: FetchTrack, why: str) -> CacheFull:
        now = track.now
        needed = f"{now.total_bytes} bytes" if now.total_bytes is not None else "an unknown number of bytes"
        return CacheFull(
            f"no room in {self._directory.root} for {now.registry}/{now.model} version {now.version}, "
            f"{needed}: {why}. Choose another --cache-dir, or run `turnout cache prune`"
        )

    def _prune(self, limit_bytes: int, in_use: frozenset[str]) -> Sequence[str]:
        entries = self._directory.entries()
        leftovers = [(path, tree_bytes(path)) for path in self._directory.leftovers()]
        total = sum(entry.size_bytes for entry in entries) + sum(size for _, size in leftovers)
        for path, size_bytes in leftovers:
            if total <= limit_bytes:
                return []
            with self._directory.try_lock(path.name) as ours:
                if ours:
                    self._directory.remove(path)
                    total -= size_bytes
        evicted = []
        for entry in entries:
            if total <= limit_bytes:
                break
            if entry.digest not in in_use:
                self._directory.remove(self._directory.version(entry.digest))
                evicted.append(entry.digest)
                total -= entry.size_bytes
        return evicted

    @asynccontextmanager
    async def _locked(self, key: str) -> AsyncIterator[None]:
        while True:  # nobody but the kernel knows when another process lets go
            handle = await self._threads.run(lambda: self._directory.lock(key), undo=_unlock)
            if handle is not None:
                break
            await asyncio.sleep(LOCK_RETRY_S)
        try:
            yield
        finally:
            _unlock(handle)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheUnusable(
                f"the cache {self._directory.root} cannot be used: {error.strerror or error}"
            ) from error


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _differs(version: ModelVersion, digest: str, expected: str) -> IntegrityError:
    return IntegrityError(
        f"{version.registry}/{version.model} version {version.version} has the digest {digest}, "
        f"not {expected}: its files are not those that were pinned"
    )


__all__ = [
    "CacheFull",
    "CacheUnusable",
    "CachedVersion",
    "FetchProgress",
    "FetchState",
    "WeightsCache",
    "WeightsError",
    "WeightsRefused",
    "model_path",
]

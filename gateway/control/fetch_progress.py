"""How far the fetches under way have come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from registry_client.models import ModelVersion

EVERY_S = 0.25
"""At most this often a fetch tells of bytes; a change of its state it tells of at once."""


class FetchState(StrEnum):
    """WAITING → FETCHING ⇄ VERIFYING → DONE; FAILED from each."""

    WAITING = "waiting"
    """For another process that fetches the same version."""
    FETCHING = "fetching"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """One fetch at one moment; the bytes are those of the whole version."""

    registry: str
    model: str
    version: str
    file: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    """None where the registry does not know."""
    state: FetchState = FetchState.WAITING


OnProgress = Callable[[FetchProgress], None]


class FetchTrack:
    """One fetch's way through its states, told to `tell`."""

    def __init__(
        self, version: ModelVersion, tell: OnProgress, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        sizes = [file.size_bytes for file in version.files]
        known = [size for size in sizes if size is not None]
        self.now = FetchProgress(
            registry=version.registry,
            model=version.model,
            version=version.version,
            total_bytes=sum(known) if len(known) == len(sizes) else None,
        )
        self._tell = tell
        self._clock_s = clock_s
        self._told_s = float("-inf")

    def enter(self, state: FetchState, file: str = "") -> None:
        if (state, file) != (self.now.state, self.now.file):
            changed = state is not self.now.state
            self.now = replace(self.now, state=state, file=file)
            self._maybe_tell(at_once=changed)

    def advance(self, done_bytes: int) -> None:
        self.now = replace(self.now, done_bytes=done_bytes)
        self._maybe_tell(at_once=False)

    def _maybe_tell(self, *, at_once: bool) -> None:
        now_s = self._clock_s()
        if at_once or now_s - self._told_s >= EVERY_S:
            self._told_s = now_s
            self._tell(self.now)

"""What came from the registries, and what the weights cache holds: two sums for the metrics."""

from __future__ import annotations

from gateway.control.weights import FetchProgress


class Fetched:
    """Counts fetches by version, each of which counts up from 0, or from where it broke off."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[str, str, str], int] = {}
        self.cache_bytes = 0

    def note(self, progress: FetchProgress) -> None:
        self._bytes[progress.registry, progress.model, progress.version] = progress.done_bytes

    @property
    def total_bytes(self) -> int:
        return sum(self._bytes.values())

"""What one worker has proved of late: which of its versions answer."""

from __future__ import annotations

import time
from collections.abc import Callable

SILENT_S = 3.0
"""A worker tells every second, if only that its loop turns; one that does not is frozen, or held up."""


class Proofs:
    """Of one life of one worker. What a worker that has died had proved is nobody's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = clock()
        self._proved: dict[str, tuple[float, str]] = {}
        """Version → until when its proof holds, and what it leaves open."""
        self._failed: dict[str, str] = {}

    async def note(self, proved: dict[str, str], failed: dict[str, str], good_for_s: float) -> None:
        """What the worker tells: see `gateway.serving.heartbeat.Tell`."""
        now = self._heard = self._clock()
        for version, leaves_open in proved.items():
            self._failed.pop(version, None)
            self._proved[version] = now + good_for_s, leaves_open
        self._failed |= failed
        # What has run out goes, and with it versions that were unloaded. A worker that is silent has none at all.
        self._proved = {
            version: proof
            for version, proof in self._proved.items()
            if proof[0] > now and version not in failed
        }

    def lacking(self, version: str) -> str:
        """Why it is not sure that the worker would answer by this version; "" where it is."""
        silent_s = self._clock() - self._heard
        if silent_s > SILENT_S:
            return f"has not been heard of for {silent_s:.0f} s"
        if version in self._failed:
            return self._failed[version]
        return "" if version in self._proved else "has not proved of late that it answers"

    def leaves_open(self, version: str) -> str:
        """What the proof does not show, "" where it is whole."""
        return self._proved.get(version, (0.0, ""))[1]

"""An event loop that a test turns by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ManualLoop:
    """Keeps what is to be called; a tick calls what was there when it began, as asyncio's do."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self._soon.append(lambda: callback(*args))

    def tick(self) -> bool:
        """Whether there was anything to call."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()
        return bool(soon)

    def run(self) -> None:
        """Ticks until nothing is left."""
        while self.tick():
            pass

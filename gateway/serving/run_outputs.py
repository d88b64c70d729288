"""What one run of an engine gave, for all requests that shared it."""

from __future__ import annotations

from typing import Any

from gateway.serving.engine import Array


class RunOutputs:
    """The arrays of a run, of which each request takes its own rows when its answer is written.

    Slices and lists are made as they are asked for: for the most common answers one `tolist` serves a batch.
    """

    __slots__ = ("_lists", "arrays", "shared")

    def __init__(self, arrays: list[Array], *, shared: bool) -> None:
        """`shared`: several requests have their rows in it, else all of it is one request's."""
        self.arrays = arrays
        self.shared = shared
        self._lists: list[Any] | None = None

    def rows(self, start: int, count: int) -> list[Array]:
        """Views of the rows of one request, one array for each output."""
        if not self.shared:
            return self.arrays
        return [array[start : start + count] for array in self.arrays]

    def first_lists(self) -> list[Any]:
        """The first output as nested lists, all rows."""
        if self._lists is None:
            self._lists = self.arrays[0].tolist()
        return self._lists

"""Control planes over a real store, without processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.control.file_store import FileStore
from gateway.control.store import Store
from tests.control.replica import ControlPlane


@pytest.fixture
async def planes(tmp_path: Path) -> AsyncIterator[Callable[..., ControlPlane]]:
    """`planes(store)` → a control plane that nothing runs yet; without a store, one over a file of its own."""
    made: list[ControlPlane] = []

    def make(store: Store | None = None) -> ControlPlane:
        directory = tmp_path / f"replica{len(made)}"
        made.append(ControlPlane(directory, store or FileStore(directory / "store")))
        return made[-1]

    yield make
    for plane in made:
        await plane.aclose()
        await plane.store.aclose()


@pytest.fixture
def plane(planes: Callable[..., ControlPlane]) -> ControlPlane:
    """Versions 1 to 3 of a model `number`, aliases champion 1 and challenger 2."""
    made = planes()
    made.publish("1", "champion")
    made.publish("2", "challenger")
    made.publish("3")
    return made

"""Workers that die, answers that are lost, counts that begin anew: never more than the limit."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from gateway.control.exposure_store import Ask
from gateway.control.file_exposure import FileExposure
from gateway.routing.state import DenyKey, Exposure
from gateway.serving.exposure import Allowed, Quota, Wanted
from gateway.serving.tensors import InferenceError

KEY = DenyKey("digits", "2" * 64)


class Fleet:
    """Workers over one store. Chance decides who is asked, who dies and which answer is lost."""

    def __init__(self, directory: Path, chance: random.Random, limit: int) -> None:
        self.store = FileExposure(directory, "one")
        self.chance = chance
        self.limit = limit
        self.exhausted = False
        self.workers = [self.worker() for _ in range(4)]
        self.exposed = 0

    def worker(self) -> Quota:
        return Quota(KEY, Exposure(requests=self.limit), self.ask, lambda: 0.0)

    async def ask(self, wanted: Wanted) -> Allowed:
        asked = Ask(limit=self.limit, requests=wanted.requests, ahead=not wanted.spent)
        found = (await self.store.ask({KEY: asked}))[KEY]
        if self.chance.random() < 0.05:
            raise InferenceError(503, "the answer is lost")
        self.exhausted |= wanted.spent and not found.requests
        return Allowed(requests=found.requests)

    async def step(self) -> None:
        index = self.chance.randrange(len(self.workers))
        if self.chance.random() < 0.01:
            self.workers[index].retire()
            self.workers[index] = self.worker()
        for _ in range(self.chance.choice((1, 1, 1, 20))):
            self.exposed += self.workers[index].spend()
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(6))
async def test_never_more_than_the_limit(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.serving.exposure.PAUSE_S", 0.0)
    chance = random.Random(seed)
    fleet = Fleet(tmp_path, chance, limit=chance.choice((1, 7, 100, 500)))
    async with asyncio.timeout(20):
        while not fleet.exhausted:
            await fleet.step()
    assert fleet.exposed <= fleet.limit
    before, fleet.exposed, fleet.exhausted = fleet.exposed, 0, False
    for quota in fleet.workers:
        quota.retire()  # denied
    await fleet.store.restart({KEY: 1})
    fleet.workers = [fleet.worker() for _ in range(4)]
    async with asyncio.timeout(20):
        while not fleet.exhausted:
            await fleet.step()
    assert fleet.exposed <= fleet.limit and before <= fleet.limit

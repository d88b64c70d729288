"""The version of a request, decided from its headers alone, and held to."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from gateway.routing.state import Revision
from gateway.serving.inference import Answer
from gateway.serving.tensors import InferenceError, InferRequest, InputTensor
from tests.serving.test_inference import DRAW_CANARY, DRAW_STABLE, SOON_S, ZERO, Desk, failure, value
from tests.states import in_force, route

KEY, OVERRIDE = b"turnout-key", b"turnout-variant"
SPLIT = {"stable 1": 90, "canary 2": 10}


@pytest.mark.parametrize(
    ("made", "headers", "version", "every"),
    [
        # One arm has all the weight: every request is its own, whatever its key.
        (route({"stable 1": 100}), {}, "1", True),
        (route({"stable 1": 100}), {KEY: b"user-0"}, "1", True),
        (route({"stable 1": 100}, sticky="none"), {}, "1", True),
        # A key sticks; without one the next request may be another's.
        (route(SPLIT), {KEY: b"user-0"}, "2", True),
        (route(SPLIT), {KEY: b"user-1"}, "1", True),
        (route(SPLIT), {}, "1", False),
        (route(SPLIT, sticky="none"), {KEY: b"user-0"}, "1", False),
        (route(SPLIT, sticky="header:X-User"), {KEY: b"user-0"}, "1", False),
        (route(SPLIT, sticky="header:X-User"), {b"x-user": b"user-0"}, "2", True),
        # The headers do not tell.
        (route(SPLIT, sticky="parameter:user"), {}, None, True),
        (route({"stable 1": 100}, overrides=True), {OVERRIDE: b"stable"}, None, True),
        (route({"stable 1": 100}), {OVERRIDE: b""}, None, True),
        # None may answer.
        (ZERO, {}, None, True),
    ],
)
async def test_foreseen(made: Any, headers: dict[bytes, bytes], version: str | None, every: bool) -> None:
    desk = Desk(made)
    served, every_such = desk.inference.foresee("digits", headers.get)
    assert (None if served is None else served.pin.version, every_such) == (version, every)


async def test_nobody_and_nothing_loaded() -> None:
    assert Desk().inference.foresee("nobody", {}.get) == (None, True)
    assert Desk(versions="3").inference.foresee("digits", {}.get) == (None, True)


async def test_the_fallback_stands_in() -> None:
    desk = Desk(versions="1")
    desk.draws = DRAW_CANARY
    served, every = desk.inference.foresee("digits", {}.get)
    assert served is not None
    assert (served.pin.version, every) == ("1", False)


class Decided:
    """A request for which the canary was drawn."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.desk.draws = DRAW_CANARY
        served, _ = self.desk.inference.foresee("digits", {}.get)
        assert served is not None
        self.served = served
        self.decided = self.desk.inference.snapshot, served
        self.desk.draws = DRAW_STABLE

    async def ask(self) -> Answer:
        request = InferRequest(
            inputs=[InputTensor(name="x", datatype="FP32", array=np.array([[1.0]], np.float32))]
        )
        arrived = asyncio.Event()
        answer = self.desk.inference.start(
            "digits", None, request, {}.get, lambda _: arrived.set(), time.perf_counter_ns(), self.decided
        )
        await asyncio.wait_for(arrived.wait(), SOON_S)
        return answer


async def test_what_was_decided_holds() -> None:
    case = Decided()
    answer = await case.ask()
    assert value(answer) == 201
    answer.finish(200)
    assert not case.served.busy


async def test_at_its_snapshot_only() -> None:
    case = Decided()
    case.desk.live.swap(in_force(route(SPLIT), denied=["2"], revision=Revision(2, 2)))
    answer = await case.ask()
    assert (value(answer), answer.revision) == (101, "2.2")


async def test_a_failure_is_the_decided_versions() -> None:
    """Though a swap has denied it meanwhile; its acknowledgement waits for the last byte."""
    case, done = Decided(), []
    error = InferenceError(504, "late")
    answer = case.desk.inference.fail(case.decided, error, done.append, time.perf_counter_ns())
    assert done == [answer]
    assert failure(answer) == (504, "late")
    (leaving,) = case.desk.live.swap(in_force(route(SPLIT), denied=["2"], revision=Revision(2, 2)))
    assert leaving is case.served and leaving.busy
    answer.finish(504)
    assert not leaving.busy and answer.revision == "1.1"
    assert case.desk.counted("digits", "canary", "2") == {504: 1}

"""Requests of one tick that are answered as one: each as if it had come alone, whatever becomes of the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.serving.engine import Array, EngineError
from gateway.telemetry import observations as obs
from gateway.wire import lane as lane_module
from tests import states
from tests.serving.fake_engine import requests
from tests.serving.test_inference import DRAW_CANARY, DRAW_STABLE
from tests.wire.lane import ask, served_lane
from tests.wire.ticks import PLAIN, SECOND, TOO_BIG, Ticks, body, clients_of, rows


def without_date(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if not line.startswith(b"date")]


async def test_a_tick_is_one_piece_of_work() -> None:
    async with served_lane(signature=rows()) as served:
        ticks = await clients_of(served, 5)
        ticks.send(*[body([number, 1]) for number in range(5)])
        for number, client in enumerate(ticks.clients):
            status, _, got = await client.answer()
            assert (status, json.loads(got)["outputs"][0]["data"]) == (200, [101.0 + number])
        assert ticks.queued == [("Bundle", 5)]
        assert served.engine.runs == [(5, 2)]
        assert ticks.counted == {200: 5}
        assert served.state.total_requests == 10
        assert not served.arm.busy
        assert served.arm.observations.read()[obs.IN_FLIGHT] == 0


BODIES = {
    "plain": PLAIN,
    "an id": body([1, 2], id="a"),
    "outputs": body([1, 2], outputs=[{"name": "sum"}]),
    "binary outputs": body([1, 2], parameters={"binary_data_output": True}),
    "a timeout": body([1, 2], parameters={"timeout": 5_000_000}),
    "parameters of the input": body([1, 2], tensor={"parameters": {}}),
    "nothing asked for": body([1, 2], id=None, outputs=[], parameters={}),
    "two rows": body([1, 2, 3, 4], tensor={"shape": [2, 2]}),
    "no rows": body([], tensor={"shape": [0, 2]}),
    "nested": body([[1, 2]]),
    "another name": body([1, 2], tensor={"name": "y"}),
    "another datatype": body([1, 2], datatype="FP64"),
    "another shape": body([1, 2], tensor={"shape": [1, 1, 2]}),
    "too few": body([1]),
    "too many": body([1, 2, 3]),
    "out of range": body([1e39, 0]),
    "longer than any float": b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1%s,0]}]}'
    % (b"0" * 400),
    "bools": body([True, False]),
    "strings": body(["1", "2"]),
    "no data": body(None),
    "NaN": body([float("nan"), 1]),
    "infinite when summed": body(TOO_BIG),
    "two inputs": json.dumps({"inputs": json.loads(PLAIN)["inputs"] * 2}).encode(),
    "no JSON": b"{",
    "empty": b"",
    "no UTF-8": b'{"inputs":[{"name":"\xff"}]}',
    "deep": b"[" * 100_000,
}


async def test_each_is_answered_as_if_it_came_alone() -> None:
    async with served_lane(signature=rows()) as served:
        ticks = await clients_of(served, len(BODIES))
        ticks.send(*BODIES.values(), query="?")
        alone = [await client.answer() for client in ticks.clients]
        before = served.counted
        ticks.send(*BODIES.values())
        for name, client, (status, head, expected) in zip(BODIES, ticks.clients, alone, strict=True):
            got = await client.answer()
            assert (got[0], without_date(got[1]), got[2]) == (status, without_date(head), expected), name
        # Two are plain and give numbers, and one is and does not.
        assert [work for work in ticks.queued if work[0] == "Bundle"] == [("Bundle", 3)]
        first = {code: count - (len(BODIES) if code == 200 else 0) for code, count in before.items()}
        assert {code: 2 * count for code, count in first.items()} == ticks.counted
        assert not served.arm.busy


DATATYPES = {
    "FP64": ([0.1, 1e300], [1e309, 0]),
    "FP32": ([0.1, 1e38], [-1e39, 0]),
    "INT64": ([2**62, -(2**62)], [2**63, 0]),
    "UINT64": ([2**64 - 1, 0], [2**64, 0]),
    "UINT8": ([255, 0], [256, 0]),
    "INT8": ([-128, 127], [1.0, 2.0]),
}


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_values_and_those_out_of_range(datatype: str) -> None:
    fits, over = (body(data, datatype=datatype) for data in DATATYPES[datatype])
    async with served_lane(signature=rows(datatype)) as served:
        sent = [await served.client(ask(body=fits)) for _ in range(2)]
        assert [await client.status() for client in sent] == [200, 200]
        ticks = Ticks(served, sent)
        ticks.send(fits, over, query="?")
        alone = [await client.answer() for client in ticks.clients]
        ticks.queued.clear()
        ticks.send(fits, over)
        together = [await client.answer() for client in ticks.clients]
        assert [(status, data) for status, _, data in together] == [
            (status, data) for status, _, data in alone
        ]
        assert [status for status, _, _ in together] == [200, 400 if over != fits else 200]
        assert ("Bundle", 1) in ticks.queued


@pytest.mark.parametrize("shape", [(-1,), (-1, 0), (-1, 3, 2), (-1, -1), (-1, 257)])
async def test_rows_of_any_shape(shape: tuple[int, ...]) -> None:
    """Of one number, of none, of a matrix; of a length that is not fixed or too long there is no bundle."""
    row = [1 if size == -1 else size for size in shape]
    tensor = {"shape": row, "data": [1.0] * int(np.prod(row))}
    signature = rows(shape=shape)

    def summed(inputs: Mapping[str, Array], _: Any) -> list[Array]:
        x = inputs["x"]
        return [x.reshape(len(x), -1).sum(axis=1, keepdims=True)]

    async with served_lane(signature=signature) as served:
        served.engine.run = summed
        sent = [await served.client(ask(body=body(None, tensor=tensor))) for _ in range(3)]
        assert [await client.status() for client in sent] == [200] * 3
        ticks = Ticks(served, sent)
        ticks.send(*[body(None, tensor=tensor)] * 3)
        assert await ticks.statuses() == [200] * 3
        assert ticks.queued == ([("Bundle", 3)] if shape in ((-1,), (-1, 3, 2)) else [("Answer", 1)] * 3)


@pytest.mark.parametrize(
    ("options", "queued"),
    [
        ({"max_batch_size": 1}, [("Bundle", 1)] * 5),
        ({"max_batch_size": 2}, [("Bundle", 2), ("Bundle", 2), ("Bundle", 1)]),
        ({"batching": False}, [("Answer", 1)] * 5),
    ],
)
async def test_the_batch_size_holds(options: dict[str, Any], queued: list[tuple[str, int]]) -> None:
    async with served_lane(signature=rows(), **options) as served:
        ticks = await clients_of(served, 5)
        ticks.send(*[PLAIN] * 5)
        assert await ticks.statuses() == [200] * 5
        assert ticks.queued == queued
        assert [run[0] for run in served.engine.runs] == [count for _, count in queued]


class TestChoosing:
    async def test_each_request_without_a_key_is_drawn(self) -> None:
        async with served_lane(signature=rows()) as served:
            ticks = await clients_of(served, 10)
            draws = iter([DRAW_STABLE] * 4 + [DRAW_CANARY] + [DRAW_STABLE] * 5)
            served.desk.inference._draw = lambda: next(draws)
            ticks.send(*[PLAIN] * 10)
            got = [json.loads((await client.answer())[2])["outputs"][0]["data"] for client in ticks.clients]
            assert got == [[103.0]] * 4 + [[203.0]] + [[103.0]] * 5
            assert sorted(ticks.queued) == [("Bundle", 1), ("Bundle", 9)]
            assert next(draws, None) is None

    async def test_a_key_is_not_drawn(self) -> None:
        async with served_lane(signature=rows()) as served:
            ticks = await clients_of(served, 2)
            for key, version in (("user-0", "2"), ("user-1", "1")):
                ticks.send(PLAIN, PLAIN, lines=(f"Turnout-Key: {key}",))
                for client in ticks.clients:
                    assert json.loads((await client.answer())[2])["model_version"] == version
            assert ticks.queued == [("Bundle", 2)] * 2

    async def test_parameters_versions_and_overrides_are_no_bundles(self) -> None:
        by_parameter = states.route({"stable 1": 90, "canary 2": 10}, sticky="parameter:user", overrides=True)
        async with served_lane(by_parameter, signature=rows()) as served:
            ticks = await clients_of(served, 2)
            ticks.send(PLAIN, PLAIN)
            assert await ticks.statuses() == [200, 200]
            ticks.send(PLAIN, PLAIN, lines=("Turnout-Variant: canary",))
            for client in ticks.clients:
                assert json.loads((await client.answer())[2])["model_version"] == "2"
            for client in ticks.clients:
                client.writer.write(ask(body=PLAIN).replace(b"digits", b"digits/versions/1"))
            assert await ticks.statuses() == [200, 200]
            assert {kind for kind, _ in ticks.queued} == {"Answer"}

    @pytest.mark.parametrize("wrong", ["raises", "infinite"])
    async def test_what_fails_is_not_drawn_again(self, wrong: str) -> None:
        """Else nine in ten of a broken canary's requests would be another version's, and it would look well."""
        async with served_lane(signature=rows()) as served:
            ticks = await clients_of(served, 3)
            served.desk.draws = DRAW_CANARY

            def broken(_: Any) -> None:
                served.desk.draws = DRAW_STABLE
                if wrong == "raises":
                    raise EngineError("no")

            served.desk.engines["2"].fail = broken
            ticks.send(*[body(TOO_BIG)] * 3)
            assert await ticks.statuses() == [500] * 3
            assert ticks.queued[0] == ("Bundle", 3)
            assert served.engine.runs == []
            assert requests(served.desk.writer, "digits", "canary", "2") == {500: 3}

    async def test_heads_are_remembered_up_to_a_number_and_for_one_snapshot(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lane_module, "_REMEMBERED", 3)
        async with served_lane(states.route({"stable 1": 100}), signature=rows()) as served:
            ticks = await clients_of(served, 1)
            for number in range(10):
                ticks.send(PLAIN, lines=(f"X-Request: {number}",))
                await ticks.statuses()
                assert 0 < len(served.lane._known) <= 3
            served.desk.live.swap(states.in_force(states.route({"stable 2": 100}), revision=SECOND))
            ticks.send(PLAIN)
            _, head, _ = await ticks.clients[0].answer()
            assert b"turnout-version: 2\r\n" in head
            assert len(served.lane._known) == 1
            (arm,) = served.lane._collectors
            assert arm.pin.version == "2"

    @pytest.mark.parametrize("version", ["null", "1\r\nx-evil: 1\r\n\r\n\x00\x7fü", '"]}'])
    async def test_any_name_of_a_version(self, version: str) -> None:
        named = states.route({"stable 1": 100})
        stable = replace(named.variants["stable"], pin=states.pin("1", version=version))
        async with served_lane(replace(named, variants={"stable": stable}), signature=rows()) as served:
            ticks = await clients_of(served, 2)
            ticks.send(PLAIN, PLAIN)
            for client in ticks.clients:
                status, head, got = await client.answer()
                assert (status, b"\r\nx-evil" in head) == (200, False)
                assert json.loads(got)["model_version"] == version
            assert ticks.queued == [("Bundle", 2)]


async def test_one_bad_row_is_one_error() -> None:
    async with served_lane(signature=rows()) as served:
        ticks = await clients_of(served, 4)

        def no_sevens(inputs: Mapping[str, Array]) -> None:
            if (inputs["x"] == 7).any():
                raise EngineError("a seven")

        served.engine.fail = no_sevens
        ticks.send(PLAIN, body([7, 0]), PLAIN, body(TOO_BIG))
        assert await ticks.statuses() == [200, 500, 200, 500]
        assert ticks.counted == {200: 2, 500: 2}
        assert not served.arm.busy


async def test_a_row_that_cannot_be_written_at_all() -> None:
    """Those before it have been answered, and are counted."""
    async with served_lane(signature=rows()) as served:
        ticks = await clients_of(served, 3)

        def run(inputs: Mapping[str, Array], _: Any) -> list[Array]:
            return [np.array([[object() if row[0] == 7 else 1.0] for row in inputs["x"]], dtype=object)]

        served.engine.run = run
        ticks.send(PLAIN, body([7, 0]), PLAIN)
        assert await ticks.statuses() == [200, 500, 200]
        assert ticks.counted == {200: 2, 500: 1}
        assert not served.arm.busy


LIES: dict[str, Callable[[Array], list[Array]]] = {
    "too few rows": lambda x: [x[:1, :1]],
    "too many rows": lambda x: [np.concatenate([x, x])[:, :1]],
    "wider": lambda x: [x],
    "flat": lambda x: [x[:, 0]],
    "a number": lambda x: [np.float32(1)[...]],
    "none": lambda x: [],
    "two": lambda x: [x[:, :1], x[:, :1]],
    "objects": lambda x: [np.array([[object()]] * len(x))],
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_engine_that_lies(lie: str) -> None:
    """The general way answers, alone, what can be answered at all; every lease is given back."""
    async with served_lane(signature=rows()) as served:
        ticks = await clients_of(served, 3)
        served.engine.run = lambda inputs, outputs: LIES[lie](inputs["x"])
        ticks.send(*[PLAIN] * 3)
        code = 500 if lie in ("none", "two", "objects") else 200
        assert await ticks.statuses() == [code] * 3
        assert ticks.counted == {code: 3}
        assert not served.arm.busy

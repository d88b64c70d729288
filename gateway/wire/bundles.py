"""Plain requests of one tick as one piece of work: what is alike is done once for all of them.

A request here is one row of numbers in JSON for a model with one input and one output, without an id or anything
asked for: what most are. Its connection hands its body over, and at the end of the tick all of one version's are
decoded, queued as one, and answered in one loop. Whatever is not as expected, and whatever fails, goes the way
of all others instead, one by one, and comes to its own answer or error there.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gateway.serving.batching import Work
from gateway.serving.engine import Signature
from gateway.serving.live import ServedArm, Snapshot
from gateway.serving.run_outputs import RunOutputs
from gateway.serving.tensors import InferenceError
from gateway.wire.oip_arrays import PLAIN
from gateway.wire.oip_json import decode_numbers

if TYPE_CHECKING:
    from gateway.wire.fast_lane import FastLane
    from gateway.wire.lane import Lane

log = logging.getLogger(__name__)

LARGEST_ROW = 256
"""Numbers in a row, in or out: larger requests gain little, and their JSON may be for a thread."""
_encode = msgspec.json.Encoder().encode
_REFUSALS = (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError, struct.error)


Request = tuple["FastLane", bytes]
"""A connection, and the body that it received."""


class RowForm:
    """How a request for one row of a version looks, and how its answer does."""

    __slots__ = ("before", "datatype", "dtype", "name", "output", "outputs", "pack", "row", "shape")

    def __init__(self, route: str, version: str, signature: Signature, pack: Callable[..., bytes]) -> None:
        (spec,), (output,) = signature.inputs, signature.outputs
        self.name = spec.name
        self.datatype = spec.datatype
        self.dtype = PLAIN[spec.datatype][1]
        self.row = spec.shape[1:]
        self.shape = [1, *self.row]
        self.pack = pack
        self.outputs = (output.name,)
        self.output = {"name": output.name, "datatype": output.datatype, "shape": (1, output.shape[1])}
        document = {"model_name": route, "model_version": version, "outputs": [{**self.output, "data": 0}]}
        self.before = _encode(document).removesuffix(b"0}]}")

    def read(self, body: bytes) -> bytes | None:
        """The row as the bytes of an array; None where the request is another one, or none."""
        try:
            request = decode_numbers(body)
            (tensor,) = request.inputs
            if (
                tensor.name != self.name
                or tensor.datatype != self.datatype
                or tensor.shape != self.shape
                or tensor.parameters is not None
                or request.parameters
                or request.outputs
                or request.id
            ):
                return None
            return self.pack(*tensor.data)  # type: ignore[misc]  # None is a TypeError
        except _REFUSALS:
            return None


def row_form(served: ServedArm) -> RowForm | None:
    """None where the version's requests or answers are no single rows of numbers."""
    loaded, signature = served.loaded, served.loaded.engine.signature
    if not loaded.batcher.batchable or len(signature.inputs) != 1 or len(signature.outputs) != 1:
        return None
    (spec,), (output,) = signature.inputs, signature.outputs
    plain = PLAIN.get(spec.datatype)
    if plain is None or output.datatype not in PLAIN or -1 in spec.shape[1:]:
        return None
    if len(output.shape) != 2 or not 0 < output.shape[1] <= LARGEST_ROW:
        return None
    count = int(np.prod(spec.shape[1:], dtype=np.int64))
    if count > LARGEST_ROW:
        return None
    pack = struct.Struct(f"<{count}{plain[0]}").pack
    return RowForm(served.labels.route, served.pin.version, signature, pack)


class Collector:
    """Takes the plain requests of one tick that one arm answers at one snapshot."""

    def __init__(self, lane: Lane, snapshot: Snapshot, served: ServedArm, form: RowForm) -> None:
        self._lane = lane
        self._snapshot = snapshot
        self._served = served
        self._form = form
        self._waiting: list[Request] = []
        self._group = (served.observations, form.outputs, form.row)
        self._timeout_ns = snapshot.routes[served.labels.route].timeout_ns

    def add(self, connection: FastLane, body: bytes) -> None:
        """The connection is answered later, and says `lost` if it goes before."""
        if not self._waiting:
            self._served.loaded.batcher.turns.before(self._submit)
        self._waiting.append((connection, body))

    def lost(self, duration_ns: int) -> None:
        """Its client went before its answer."""
        self._served.observations.answered(499, duration_ns)

    def _submit(self) -> None:
        waiting, self._waiting = self._waiting, []
        waiting = [each for each in waiting if each[0].collector is self]
        if self._lane.inference.snapshot is not self._snapshot:
            # A change came in the same tick: what was decided does not hold any more.
            _ask_again(self, waiting)
            return
        most = self._served.loaded.batcher.max_batch_size
        for start in range(0, len(waiting), most):
            self._queue(waiting[start : start + most])

    def _queue(self, requests: list[Request]) -> None:
        read = self._form.read
        taken, rows, others = [], [], []
        for request in requests:
            row = read(request[1])
            if row is None:
                others.append(request)
            else:
                taken.append(request)
                rows.append(row)
        _ask_again(self, others)
        if not taken:
            return
        form = self._form
        array = np.frombuffer(b"".join(rows), form.dtype).reshape(len(rows), *form.row)
        bundle = Bundle(self, taken, {form.name: array}, self._group)
        self._served.enter(len(taken))
        try:
            self._served.loaded.batcher.submit(bundle)
        except InferenceError as full:
            bundle.deliver(full)

    def answer(self, requests: list[Request], run: RunOutputs, start: int) -> None:
        """Writes the answers of requests whose rows begin at `start`."""
        lists = run.first_lists()
        defaults = requests[0][0].server_state.default_headers
        lines, before = self._lane.lines(self._served, self._snapshot.label, defaults), self._form.before
        now_ns, now = time.perf_counter_ns(), self._lane.loop.time()
        durations = []
        for index, (connection, body) in enumerate(requests, start):
            if connection.collector is not self:
                continue  # it went, and was counted
            data = _encode(lists[index])
            if b"null" in data:
                connection.start_again(body)  # not finite: JSON cannot carry it, and its error can
                continue
            durations.append(now_ns - connection.started_ns)
            try:
                connection.answer_row(lines, b"%s%s}]}" % (before, data), now)
            except Exception:
                log.exception("an answer could not be delivered")
        self._served.observations.answered_many(durations)
        requests[0][0].server_state.total_requests += len(durations)

    def leave(self, requests: int) -> None:
        self._served.leave(requests)

    def observe(self) -> None:
        self._served.observe()

    @property
    def observations(self) -> Any:
        return self._served.observations

    def deadline_ns(self, started_ns: int) -> int:
        return started_ns + self._timeout_ns


class Bundle(Work):
    """Requests of one collector that are queued, run and answered as one."""

    __slots__ = ("_collector", "_requests")

    def __init__(
        self, collector: Collector, requests: list[Request], inputs: dict[str, Any], group: Any
    ) -> None:
        self._collector = collector
        self._requests = requests
        self.inputs = inputs
        self.outputs = group[1]
        self.deadline_ns = collector.deadline_ns(requests[0][0].started_ns)
        self.observations = collector.observations
        self.done = _ignore
        self.queued_ns = 0
        self.rows = self.requests = len(requests)
        self.group = group

    def deliver(self, outcome: RunOutputs | InferenceError, start: int = 0) -> None:
        """See `Work.deliver`. Where there is no outcome each request is asked again alone."""
        if self.done is None:
            return
        self.done = None
        collector, requests = self._collector, self._requests
        if isinstance(outcome, RunOutputs) and len(outcome.arrays) == 1 and outcome.arrays[0].ndim == 2:
            collector.answer(requests, outcome, start)
        else:
            _ask_again(collector, requests)
        collector.leave(len(requests))

    def begins(self) -> None:
        """See `Work.begins`."""
        self._collector.observe()


def _ask_again(collector: Collector, requests: list[Request]) -> None:
    """Each by itself, as if there were no collector."""
    for connection, body in requests:
        if connection.collector is collector:
            try:
                connection.start_again(body)
            except Exception:
                log.exception("a request could not be asked again")


def _ignore(_: object) -> None:
    """Says that the bundle still waits."""

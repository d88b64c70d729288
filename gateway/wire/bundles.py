"""Plain requests of one tick as one piece of work: what is alike is done once for all of them.

A request here is one row of numbers in JSON for a model with one input and one output, without an id or anything
asked for: what most are. Its connection hands its body over, and at the end of the tick all of one version's are
decoded, queued as one, and answered in one loop. Whatever is not as expected, and whatever fails, goes the way
of all others instead, one by one, and comes to its own answer or error there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import struct
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import numpy as np
from uvicorn.server import ServerState

from gateway.serving.batching import Work
from gateway.serving.engine import Signature
from gateway.serving.exposure import Quota
from gateway.serving.inference import Decided, Inference
from gateway.serving.live import ServedArm
from gateway.serving.run_outputs import RunOutputs
from gateway.serving.tensors import InferenceError
from gateway.wire.answers import SMALL_ELEMENTS
from gateway.wire.codec import Headers
from gateway.wire.oip_arrays import PLAIN
from gateway.wire.oip_json import decode_numbers

log = logging.getLogger(__name__)

LARGEST_ROW = 256
"""Numbers in a row: larger requests gain little, and their JSON may be for a thread."""
_encode = msgspec.json.Encoder().encode
_REFUSALS = (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError, struct.error)


class Asker(Protocol):
    """A connection whose request is a collector's until it is answered."""

    collector: Collector | None
    """Who has its request; another one, or none, where its client went or it asks again."""
    started_ns: int
    server_state: ServerState

    def answer_row(self, lines: bytes, body: bytes, now: float) -> None:
        """Writes an answer of status 200, behind the lines of its head up to its length."""

    def start_again(self, body: bytes, decided: Decided) -> None:
        """Asks by itself, and the same version while that may answer."""

    def fail(self, decided: Decided, error: InferenceError) -> None:
        """Answers that there is none."""

    def give_up(self) -> None:
        """Closes, since no answer can be written."""


class Shared(Protocol):
    """What the connections of a worker share."""

    inference: Inference
    loop: asyncio.AbstractEventLoop

    def lines(self, served: ServedArm, revision: str, defaults: Headers) -> bytes:
        """The lines of the head of an answer of status 200, up to its length."""


Request = tuple[Asker, bytes]
"""A connection, and the body that it received."""


class RowForm:
    """How a request for one row of a version looks, and how its answer does."""

    __slots__ = ("before", "datatype", "dtype", "name", "outputs", "pack", "row", "shape", "width")

    def __init__(self, route: str, version: str, signature: Signature, pack: Callable[..., bytes]) -> None:
        (spec,), (output,) = signature.inputs, signature.outputs
        self.name = spec.name
        self.datatype = spec.datatype
        self.dtype = PLAIN[spec.datatype][1]
        self.row = spec.shape[1:]
        self.shape = [1, *self.row]
        self.pack = pack
        self.width = output.shape[1]
        self.outputs = (output.name,)
        tensor = {"name": output.name, "datatype": output.datatype, "shape": (1, self.width), "data": 0}
        document = {"model_name": route, "model_version": version, "outputs": [tensor]}
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
    # Answers that are not small may have to be compressed.
    if len(output.shape) != 2 or not 0 < output.shape[1] < SMALL_ELEMENTS:
        return None
    count = math.prod(spec.shape[1:])
    if not 0 < count <= LARGEST_ROW:
        return None
    pack = struct.Struct(f"<{count}{plain[0]}").pack
    return RowForm(served.labels.route, served.pin.version, signature, pack)


class Collector:
    """Takes the plain requests of one tick that one arm answers at one snapshot."""

    def __init__(self, shared: Shared, decided: Decided, form: RowForm) -> None:
        self._shared = shared
        self._decided = decided
        self._snapshot, self._served = decided
        self._form = form
        self._waiting: list[Request] = []
        self._bundles: set[Bundle] = set()
        """Queued or running."""
        self._group = (self._served.observations, form.outputs, form.row)
        self._timeout_ns = self._snapshot.routes[self._served.labels.route].timeout_ns

    def add(self, connection: Asker, body: bytes) -> None:
        """The connection is answered later, and says `lost` if it goes before."""
        if not self._waiting:
            self._served.loaded.batcher.turns.before(self._submit)
        self._waiting.append((connection, body))

    def lost(self, duration_ns: int) -> None:
        """A client went before its answer; its connection is this collector's no more."""
        self._served.observations.answered(499, duration_ns)
        for bundle in [bundle for bundle in self._bundles if not self._is_awaited(bundle)]:
            bundle.cancel()

    def _is_awaited(self, bundle: Bundle) -> bool:
        return any(connection.collector is self for connection, _ in bundle.asked)

    def _submit(self) -> None:
        waiting, self._waiting = self._waiting, []
        waiting = [each for each in waiting if each[0].collector is self]
        if self._shared.inference.snapshot is not self._snapshot:
            # A change came in the same tick: what was decided does not hold any more.
            self._ask_again(waiting)
            return
        quota = self._served.quota
        if quota is not None:
            waiting = self._expose(waiting, quota)
        most = self._served.loaded.batcher.max_batch_size
        for start in range(0, len(waiting), most):
            requests = waiting[start : start + most]
            try:
                self._queue(requests)
            except Exception:
                log.exception("requests could not be queued as one")
                self._ask_again(requests)

    def _expose(self, waiting: list[Request], quota: Quota) -> list[Request]:
        """Those that the limits of the version let through; of the others its stand-in is asked at once."""
        through: list[Request] = []
        others: list[Request] = []
        for request in waiting:
            (through if quota.spend() else others).append(request)
        if others:
            try:
                instead = self._shared.inference.stand_in(self._decided)
            except InferenceError as error:
                unable = error
                self._each(others, lambda connection, _: connection.fail(self._decided, unable))
            else:
                self._each(others, lambda connection, body: connection.start_again(body, instead))
        return through

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
        self._ask_again(others)
        if not taken:
            return
        form = self._form
        array = np.frombuffer(b"".join(rows), form.dtype).reshape(len(rows), *form.row)
        deadline_ns = taken[0][0].started_ns + self._timeout_ns
        bundle = Bundle(self, taken, {form.name: array}, self._group, deadline_ns)
        self._bundles.add(bundle)
        self._served.enter(len(taken))
        try:
            self._served.loaded.batcher.submit(bundle)
        except InferenceError as full:
            bundle.deliver(full)
        except BaseException:
            bundle.cancel()
            raise

    def bring(self, requests: list[Request], outcome: RunOutputs | InferenceError, start: int) -> None:
        """Answers each of these requests, whose rows begin at `start`, or sees that something else does."""
        if isinstance(outcome, InferenceError) and outcome.status == 504:
            # Here, and not behind the queue once more, which may have no room for those that are late.
            self._each(requests, lambda connection, _: connection.fail(self._decided, outcome))
            return
        try:
            if isinstance(outcome, RunOutputs) and self._fits(outcome, start + len(requests)):
                requests = self._answer(requests, outcome, start)
        except Exception:
            log.exception("requests could not be answered as one")
        self._ask_again(requests)

    def _fits(self, run: RunOutputs, rows: int) -> bool:
        """Whether an engine gave what its signature promises."""
        if len(run.arrays) != 1:
            return False
        shape = run.arrays[0].shape
        return len(shape) == 2 and shape[1] == self._form.width and (run.shared or shape[0] == rows)

    def _answer(self, requests: list[Request], run: RunOutputs, start: int) -> list[Request]:
        """Those that are left without an answer."""
        lists = run.first_lists()
        defaults = requests[0][0].server_state.default_headers
        lines, before = self._shared.lines(self._served, self._snapshot.label, defaults), self._form.before
        now_ns, now = time.perf_counter_ns(), self._shared.loop.time()
        durations, left = [], []
        try:
            for index, (connection, body) in enumerate(requests, start):
                if connection.collector is not self:
                    continue  # it went, and was counted
                data = _encode(lists[index])
                if b"null" in data:
                    left.append((connection, body))  # not finite: JSON cannot carry it, and its error can
                    continue
                try:
                    connection.answer_row(lines, b"%s%s}]}" % (before, data), now)
                    durations.append(now_ns - connection.started_ns)
                except Exception:
                    log.exception("an answer could not be written")
                    connection.give_up()
        finally:
            self._served.observations.answered_many(durations)
        return left

    def _ask_again(self, requests: list[Request]) -> None:
        """Each that has no answer yet by itself, as if there were no collector."""
        self._each(requests, lambda connection, body: connection.start_again(body, self._decided))

    def _each(self, requests: list[Request], act: Callable[[Asker, bytes], None]) -> None:
        """Whatever one raises, the others have their turn."""
        for connection, body in requests:
            if connection.collector is self:
                try:
                    act(connection, body)
                except Exception:
                    log.exception("a request could not be answered")
                    connection.give_up()

    def over(self, bundle: Bundle) -> None:
        """Nothing more is to be written for this bundle."""
        self._bundles.discard(bundle)
        self._served.leave(bundle.requests)

    def observe(self) -> None:
        """Shows how many requests are in flight."""
        self._served.observe()


class Bundle(Work):
    """Requests of one collector that are queued, run and answered as one."""

    __slots__ = ("_collector", "asked")

    def __init__(
        self,
        collector: Collector,
        asked: list[Request],
        inputs: dict[str, Any],
        group: tuple[Any, ...],
        deadline_ns: int,
    ) -> None:
        """`Work`'s own constructor would look at the array again."""
        self._collector = collector
        self.asked = asked
        self.inputs = inputs
        self.group = group
        self.observations, self.outputs, _ = group
        self.deadline_ns = deadline_ns
        self.done = _ignore
        self.queued_ns = 0
        self.rows = self.requests = len(asked)

    def deliver(self, outcome: RunOutputs | InferenceError, start: int = 0) -> None:
        """See `Work.deliver`. Where there is no outcome each request is asked again alone."""
        if self.done is None:
            return
        self.done = None
        try:
            self._collector.bring(self.asked, outcome, start)
        finally:
            self._collector.over(self)

    def cancel(self) -> None:
        """See `Work.cancel`."""
        if self.done is not None:
            self.done = None
            self._collector.over(self)

    def rejected(self) -> None:
        """See `Work.rejected`: each request will be asked again, and is counted then."""

    def begins(self) -> None:
        """See `Work.begins`."""
        self._collector.observe()


def _ignore(_: object) -> None:
    """Says that the bundle still waits."""

"""One request from its decision to its answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from gateway.serving.batching import Work
from gateway.serving.classification import classify
from gateway.serving.engine import Array
from gateway.serving.live import ServedArm
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse, OutputTensor, RequestedOutput
from gateway.telemetry.observations import VersionObservations

log = logging.getLogger(__name__)

NOTHING_ASKED = InferRequest(inputs=[])
"""Stands for a request that could not be decoded."""


class Answer(Work):
    """What a request becomes: work for a version, then its outputs or the reason why there are none.

    The wire calls `finish` once, after the last byte. Until then the version that answers is leased, and a
    rollback's acknowledgement waits for it. One object for all of it: a request makes few others.
    """

    __slots__ = (
        "_arrived",
        "_response",
        "arrays",
        "error",
        "gone",
        "request",
        "revision",
        "route_name",
        "served",
        "started_ns",
    )

    def __init__(
        self,
        route_name: str,
        revision: str,
        observations: VersionObservations,
        started_ns: int,
        arrived: Callable[[Answer], None],
    ) -> None:
        """`Work` is set up by `queue`, once it is known which version is to run."""
        self.route_name = route_name
        self.revision = revision
        self.observations = observations
        """Where the request is counted: the route's own block until a version was chosen."""
        self.started_ns = started_ns
        self._arrived = arrived
        self.done = None
        self.gone = False
        """Nobody waits for the answer any more."""
        self.served: ServedArm | None = None
        self.request = NOTHING_ASKED
        self.arrays: list[Array] | None = None
        """The outputs that the request gets, in order."""
        self._response: InferResponse | None = None
        self.error: InferenceError | None = None

    def queue(self, served: ServedArm, request: InferRequest, deadline_ns: int) -> None:
        """Has the version run the request. Raises `InferenceError` where it will not."""
        self.observations = served.observations
        self.request = request
        self.served = served
        served.enter()
        loaded = served.loaded
        batcher = loaded.batcher
        inputs, outputs = loaded.checker.check(self.route_name, request)
        Work.__init__(self, inputs, outputs, batcher.batchable, deadline_ns, served.observations, self._ran)
        batcher.submit(self)

    def fail(self, error: InferenceError) -> None:
        """There are no outputs, for this reason."""
        self.error = error
        self._arrived(self)

    def finish(self, code: int) -> None:
        """The client has its answer, with this status, or is gone (499)."""
        self.observations.answered(code, time.perf_counter_ns() - self.started_ns)
        served = self.served
        if served is not None:
            self.served = None
            served.leave()

    def cancel(self) -> None:
        """The client is gone: what did not run yet will not. `finish` is still to be called."""
        self.gone = True
        self.done = None

    @property
    def is_plain(self) -> bool:
        """Whether the request wants all outputs as JSON, and has no id: as most do."""
        request = self.request
        return not (request.outputs or request.id or request.binary_default)

    @property
    def response(self) -> InferResponse | None:
        """None where there is an error."""
        if self._response is None and self.arrays is not None:
            self._response = self._respond(self.arrays)
        return self._response

    def _ran(self, outcome: list[Array] | InferenceError) -> None:
        if isinstance(outcome, InferenceError):
            self.error = outcome
        elif len(outcome) != len(self.outputs):
            # An engine that returned something else than its signature promises.
            log.error("the answer of %s cannot be used", self.observations.labels)
            self.error = InferenceError(
                500,
                f"the model's answer cannot be used: it has {len(outcome)} outputs, not {len(self.outputs)}",
            )
        elif not self.request.outputs:
            self.arrays = outcome
        else:
            self._take(outcome)
        self._arrived(self)

    def _take(self, arrays: list[Array]) -> None:
        """Classification may fail, and the error is to be known before the answer is written."""
        try:
            self._response = self._respond(arrays)
            self.arrays = arrays
        except InferenceError as error:
            self.error = error
        except Exception as error:
            log.exception("the answer of %s cannot be used", self.observations.labels)
            self.error = InferenceError(500, f"the model's answer cannot be used: {type(error).__name__}")

    def _respond(self, arrays: list[Array]) -> InferResponse:
        """Raises `InferenceError` where an output cannot be classified as the request wants."""
        request, served = self.request, self.served
        assert served is not None
        datatypes = served.loaded.checker.output_datatypes
        if request.outputs:
            batched = served.loaded.engine.signature.batchable
            outputs = [
                _asked_for(asked, datatypes[asked.name], array, batched=batched)
                for asked, array in zip(request.outputs, arrays, strict=True)
            ]
        else:
            outputs = [
                OutputTensor(name=name, datatype=datatypes[name], array=array, binary=request.binary_default)
                for name, array in zip(self.outputs, arrays, strict=True)
            ]
        return InferResponse(
            route=self.route_name, version=served.pin.version, outputs=outputs, id=request.id
        )


def _asked_for(asked: RequestedOutput, datatype: str, array: Array, *, batched: bool) -> OutputTensor:
    output = OutputTensor(name=asked.name, datatype=datatype, array=array, binary=asked.binary)
    return classify(output, asked.classification, batched=batched) if asked.classification else output

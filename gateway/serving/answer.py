"""One request from its decision to its answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from gateway.serving.batching import Work
from gateway.serving.classification import classify
from gateway.serving.engine import Array
from gateway.serving.live import ServedArm
from gateway.serving.run_outputs import RunOutputs
from gateway.serving.tensors import InferenceError, InferRequest, InferResponse, OutputTensor, RequestedOutput
from gateway.telemetry.observations import VersionObservations

log = logging.getLogger(__name__)

NOTHING_ASKED = InferRequest(inputs=[])
"""Stands for a request that could not be decoded."""


class Refusing(Protocol):
    """Where requests are counted that reach no version."""

    @property
    def refused(self) -> VersionObservations:
        """Memory is taken when there is one."""


class Answer(Work):
    """What a request becomes: work for a version, then its outputs or the reason why there are none.

    The wire calls `finish` once, after the last byte. Until then the version that answers is leased, and a
    rollback's acknowledgement waits for it. One object for all of it: a request makes few others.
    """

    __slots__ = (
        "_arrived",
        "_refusing",
        "_response",
        "error",
        "gone",
        "outputs_of_run",
        "request",
        "revision",
        "route_name",
        "served",
        "start",
        "started_ns",
    )

    def __init__(
        self,
        route_name: str,
        revision: str,
        refusing: Refusing,
        started_ns: int,
        arrived: Callable[[Answer], None],
    ) -> None:
        """`Work` is set up by `queue`, once it is known which version is to run."""
        self.route_name = route_name
        self.revision = revision
        self._refusing = refusing
        self.started_ns = started_ns
        self._arrived = arrived
        self.done = None
        self.gone = False
        """Nobody waits for the answer any more."""
        self.served: ServedArm | None = None
        self.request = NOTHING_ASKED
        self.outputs_of_run: RunOutputs | None = None
        """What the version gave, with the outputs that the request wants in order; None where there is an error."""
        self.start = 0
        """Where this request's rows begin in it."""
        self._response: InferResponse | None = None
        self.error: InferenceError | None = None

    def queue(self, served: ServedArm, request: InferRequest, deadline_ns: int) -> None:
        """Has the version run the request. Raises `InferenceError` where it will not."""
        self.request = request
        self.lease(served)
        loaded = served.loaded
        batcher = loaded.batcher
        inputs, outputs = loaded.checker.check(self.route_name, request)
        Work.__init__(self, inputs, outputs, batcher.batchable, deadline_ns, self.observations, _ignore)
        batcher.submit(self)

    def lease(self, served: ServedArm) -> None:
        """From here to `finish` this is one of the version's requests."""
        self.served = served
        served.enter()
        self.observations = served.observations

    def fail(self, error: InferenceError) -> None:
        """There are no outputs, for this reason."""
        self.error = error
        self._arrived(self)

    def finish(self, code: int) -> None:
        """The client has its answer, with this status, or is gone (499)."""
        duration_ns = time.perf_counter_ns() - self.started_ns
        served = self.served
        if served is None:
            self._refusing.refused.answered(code, duration_ns)
        else:
            self.observations.answered(code, duration_ns)
            if code >= 500 and served.quota is not None:
                served.quota.failed()
            self.served = None
            served.leave()

    def cancel(self) -> None:
        """The client is gone: what did not run yet will not. `finish` is still to be called."""
        self.gone = True
        self.done = None

    @property
    def response(self) -> InferResponse | None:
        """None where there is an error."""
        if self._response is None and self.outputs_of_run is not None:
            self._response = self._respond(self.outputs_of_run)
        return self._response

    def deliver(self, outcome: RunOutputs | InferenceError, start: int = 0) -> None:
        """See `Work.deliver`."""
        if self.done is None:
            return
        self.done = None
        if isinstance(outcome, InferenceError):
            self.error = outcome
        elif len(outcome.arrays) != len(self.outputs):
            # An engine that returned something else than its signature promises.
            log.error("the answer of %s cannot be used", self.observations.labels)
            self.error = InferenceError(
                500,
                f"the model's answer cannot be used: it has {len(outcome.arrays)} outputs, "
                f"not {len(self.outputs)}",
            )
        else:
            self.start = start
            self.outputs_of_run = outcome
            if self.request.outputs:
                self._ask_for(outcome)
        self._arrived(self)

    def begins(self) -> None:
        """See `Work.begins`."""
        if self.served is not None:
            self.served.observe()

    def _ask_for(self, run: RunOutputs) -> None:
        """Classification may fail, and the error is to be known before the answer is written."""
        try:
            self._response = self._respond(run)
        except InferenceError as error:
            self.outputs_of_run, self.error = None, error
        except Exception as error:
            log.exception("the answer of %s cannot be used", self.observations.labels)
            self.outputs_of_run = None
            self.error = InferenceError(500, f"the model's answer cannot be used: {type(error).__name__}")

    def _respond(self, run: RunOutputs) -> InferResponse:
        """Raises `InferenceError` where an output cannot be classified as the request wants."""
        request, served = self.request, self.served
        assert served is not None
        arrays = run.rows(self.start, self.rows)
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


def _ignore(_: object) -> None:
    """`Answer.deliver` calls nobody but the wire; that something stands here says that it is still waited for."""

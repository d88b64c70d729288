"""Whether a request fits a model: names, datatypes and shapes, before the engine sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from gateway.serving.datatypes import DATATYPES, RAW
from gateway.serving.engine import Array, Signature, TensorSpec
from gateway.serving.tensors import InferenceError, InferRequest, InputTensor

_SHOWN = 16
"""Names that an error lists: a request may have thousands."""


class _InputCheck:
    """One input's specification, laid out for comparing."""

    __slots__ = ("datatype", "fixed", "linked", "name", "rank", "spec")

    def __init__(self, spec: TensorSpec, shared: frozenset[str]) -> None:
        self.spec = spec
        self.name = spec.name
        self.datatype = spec.datatype
        self.rank = len(spec.shape)
        self.fixed = tuple((axis, size) for axis, size in enumerate(spec.shape) if size >= 0)
        self.linked = tuple((axis, name) for axis, name in enumerate(spec.dimensions) if name in shared)


class Checker:
    """Checks requests against one signature. Built once for each loaded version; `check` takes about 1 µs."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.output_names = tuple(spec.name for spec in signature.outputs)
        shared = _shared_dimensions(signature.inputs)
        self.output_datatypes = {spec.name: spec.datatype for spec in signature.outputs}
        self._checks = {spec.name: _InputCheck(spec, shared) for spec in signature.inputs}
        self._count = len(self._checks)
        self._outputs = frozenset(self.output_names)

    def check(self, model_name: str, request: InferRequest) -> tuple[dict[str, Array], tuple[str, ...]]:
        """The arrays by input name, in the model's own order, and the names of the outputs to compute.

        Outputs come in the order of the request, or are all of the model's where it names none.
        Raises `InferenceError` (400) with the texts that clients of other servers know.
        """
        inputs = request.inputs if request.untyped is None else request.untyped(self.signature)
        if len(inputs) != self._count:
            raise self._wrong_count(model_name, inputs)
        if self._count and inputs[0].datatype == RAW:
            inputs = [self._unwrap_raw(model_name, inputs[0])]
        arrays: dict[str, Array] = {}
        links: dict[str, tuple[int, str]] = {}
        for tensor in inputs:
            self._check_input(model_name, tensor, links)
            arrays[tensor.name] = tensor.array
        if len(arrays) != self._count:
            raise self._duplicate(model_name, inputs)
        if self._count > 1:
            arrays = {name: arrays[name] for name in self._checks}
        return arrays, self._check_outputs(model_name, request) if request.outputs else self.output_names

    def _check_input(self, model_name: str, tensor: InputTensor, links: dict[str, tuple[int, str]]) -> None:
        check = self._checks.get(tensor.name)
        if check is None:
            raise InferenceError(
                400,
                f"unexpected inference input {tensor.name!r} for model {model_name!r}: "
                f"its inputs are {_names(self._checks)}",
            )
        if tensor.datatype != check.datatype:
            raise InferenceError(
                400,
                f"inference input {tensor.name!r} data-type is {tensor.datatype!r}, "
                f"but model {model_name!r} expects {check.datatype!r}",
            )
        shape = tensor.array.shape
        if len(shape) != check.rank:
            raise _unexpected_shape(model_name, check.spec, shape)
        for axis, size in check.fixed:
            if shape[axis] != size:
                raise _unexpected_shape(model_name, check.spec, shape)
        for axis, dimension in check.linked:
            size, owner = links.setdefault(dimension, (shape[axis], tensor.name))
            if size != shape[axis]:
                raise InferenceError(
                    400,
                    f"unexpected shape for input {tensor.name!r} for model {model_name!r}: its dimension "
                    f"{dimension!r} is {shape[axis]}, but that of input {owner!r} is {size}",
                )

    def _check_outputs(self, model_name: str, request: InferRequest) -> tuple[str, ...]:
        names = tuple(output.name for output in request.outputs)
        for name in names:
            if name not in self._outputs:
                raise InferenceError(
                    400,
                    f"unexpected inference output {name!r} for model {model_name!r}: "
                    f"its outputs are {_names(self.output_names)}",
                )
        if len(set(names)) != len(names):
            raise InferenceError(400, f"inference output {_repeated(names)!r} is requested more than once")
        return names

    def _wrong_count(self, model_name: str, inputs: Sequence[InputTensor]) -> InferenceError:
        text = f"expected {self._count} inputs but got {len(inputs)} inputs for model {model_name!r}."
        if len(inputs) == 1 and inputs[0].datatype == RAW:
            return InferenceError(400, f"{text} Raw binary requests need a model with exactly one input")
        given = {tensor.name for tensor in inputs}
        missing = [name for name in self._checks if name not in given]
        if missing:
            return InferenceError(400, f"{text} Missing required input(s) {_names(missing)}")
        extra = [tensor.name for tensor in inputs if tensor.name not in self._checks]
        if extra:
            return InferenceError(400, f"{text} Unexpected input(s) {_names(extra)}")
        return self._duplicate(model_name, inputs)

    def _duplicate(self, model_name: str, inputs: Sequence[InputTensor]) -> InferenceError:
        name = _repeated([tensor.name for tensor in inputs])
        return InferenceError(400, f"input {name!r} for model {model_name!r} is given more than once")

    def _unwrap_raw(self, model_name: str, tensor: InputTensor) -> InputTensor:
        """The bare body as the model's only input: batch 1, and at most one other dynamic dimension."""
        (spec,) = self.signature.inputs
        return InputTensor(
            name=spec.name,
            datatype=spec.datatype,
            array=_raw_array(model_name, spec, tensor.array, batched=self.signature.batchable),
        )


def _raw_array(model_name: str, spec: TensorSpec, raw: Array, *, batched: bool) -> Array:
    shape = list(spec.shape)
    if batched:
        shape[0] = 1
    dynamic = [axis for axis, size in enumerate(shape) if size < 0]
    if len(dynamic) > 1:
        raise InferenceError(
            400,
            f"input {spec.name!r} of model {model_name!r} has shape {_shape(spec.shape)}: a raw binary "
            "request can tell one dynamic dimension beside the batch; name the shape in a JSON header",
        )
    elements = _raw_elements(spec, raw)
    known = 1
    for axis, size in enumerate(shape):
        known *= 1 if axis in dynamic else size
    if dynamic and known:
        shape[dynamic[0]] = elements.size // known
        known *= shape[dynamic[0]]
    if known != elements.size or any(size < 0 for size in shape):
        raise InferenceError(
            400,
            f"unexpected raw body for input {spec.name!r} for model {model_name!r}: {elements.size} elements "
            f"of {spec.datatype} do not fill shape {_shape(spec.shape)}",
        )
    return elements.reshape(shape)


def _raw_elements(spec: TensorSpec, raw: Array) -> Array:
    datatype = DATATYPES[spec.datatype]
    if datatype.size_bytes == 0:
        # As in Triton: the whole body is one element, without the length that precedes elements elsewhere.
        element = np.empty(1, dtype=object)
        element[0] = raw.tobytes()
        return element
    if raw.size % datatype.size_bytes:
        raise InferenceError(
            400,
            f"the raw body for input {spec.name!r} has {raw.size} bytes, "
            f"which is no multiple of the {datatype.size_bytes} that {spec.datatype} takes",
        )
    return raw.view(datatype.dtype)


def _shared_dimensions(inputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Names that more than one dimension of the inputs has: only those can disagree."""
    counts = Counter(name for spec in inputs for name in spec.dimensions if name)
    return frozenset(name for name, count in counts.items() if count > 1)


def _unexpected_shape(model_name: str, spec: TensorSpec, shape: Sequence[int]) -> InferenceError:
    return InferenceError(
        400,
        f"unexpected shape for input {spec.name!r} for model {model_name!r}. "
        f"Expected {_shape(spec.shape)}, got {_shape(shape)}",
    )


def _shape(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _names(names: Sequence[str] | dict[str, _InputCheck]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(repr(name) for name in listed[:_SHOWN]) + more


def _repeated(names: Sequence[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)


__all__ = ["Checker"]

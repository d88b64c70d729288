"""ONNX models in this process, by ONNX Runtime."""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime as ort

from gateway.routing.state import EngineOptions
from gateway.serving.datatypes import BY_ONNX
from gateway.serving.engine import Array, Engine, EngineError, Signature, TensorSpec
from gateway.serving.engines import mapped
from gateway.serving.engines.onnx_tensors import bytes_to_str, run_with_bfloat16, same, str_to_bytes, zeros

log = logging.getLogger(__name__)

Run = Callable[[Sequence[str], Mapping[str, Array]], list[Array]]

WARM_SIZES = (1, 256)
"""What a warm-up tries for a dynamic dimension that is not an input's first: samples, tokens, pixels.
Silero-vad takes 256 samples at 8 kHz and 512 at 16, and reads the zero that is its rate as 8 kHz."""
_SILENT = 4
"""ONNX Runtime's severity FATAL: what fails is raised, and its caller says what becomes of it."""
_REASON_CHARS = 600
_OPTIMIZATION = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def load_onnx(path: Path, options: EngineOptions, derived: Path | None = None) -> OnnxEngine:
    """Loads one model file, with its external data from beside it. Blocking: call it off the loop.

    With a directory for `derived` data, a large model comes in the form whose weights are mapped: `mapped`.
    Raises `EngineError` with ONNX Runtime's reason, without local paths: it reaches clients.
    """
    if derived is not None and mapped.worth_sharing(path, options):
        try:
            form = mapped.mapped_form(derived, options, lambda target: _make_form(path, options, target))
            # It is optimized already, and so as a session of these options would have it.
            return _load(form, msgspec.structs.replace(options, graph_optimization="disabled"))
        except (EngineError, mapped.FormUnusable, OSError) as error:
            log.warning("%s is loaded into this worker's own memory: %s", path.name, error)
    return _load(path, options)


def _make_form(path: Path, options: EngineOptions, target: Path) -> None:
    """Raises `FormUnusable` where it does not answer to the bit as the model does."""
    original = _load(path, options, lambda session: mapped.save_options(session, target))
    form = _load(target, msgspec.structs.replace(options, graph_optimization="disabled"))
    if original.signature != form.signature or not same_answers(original, form):
        raise mapped.FormUnusable("the form with mapped weights does not answer as the model does")


def _load(
    path: Path, options: EngineOptions, adjust: Callable[[ort.SessionOptions], None] = lambda _: None
) -> OnnxEngine:
    providers = _check_providers(options.providers)
    session_options = _session_options(options)
    adjust(session_options)
    try:
        # With its fallback a provider that fails prints to stdout and the model runs on the CPU, unasked.
        session = ort.InferenceSession(str(path), session_options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime has a dozen classes right below Exception
        raise EngineError(f"the model does not load: {_reason(error, path)}") from None
    session.disable_fallback()
    return OnnxEngine(session)


class OnnxEngine:
    """One session. `run` is safe from several threads at once, as ONNX Runtime's sessions are."""

    platform = "onnxruntime_onnx"

    def __init__(self, session: ort.InferenceSession) -> None:
        self.signature = Signature(
            inputs=tuple(_spec(node, "input") for node in session.get_inputs()),
            outputs=tuple(_spec(node, "output") for node in session.get_outputs()),
        )
        self._run: Run = _runner(session, self.signature)
        self._text_inputs = tuple(s.name for s in self.signature.inputs if s.datatype == "BYTES")
        self._text_outputs = frozenset(s.name for s in self.signature.outputs if s.datatype == "BYTES")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See `Engine.run`. Raises `InferenceError` (400) for BYTES that are not UTF-8: ONNX strings are."""
        if self._text_inputs:
            inputs = {**inputs, **{name: bytes_to_str(name, inputs[name]) for name in self._text_inputs}}
        try:
            arrays = self._run(outputs, inputs)
        except Exception as error:  # see load_onnx
            raise EngineError(f"the model failed: {_reason(error)}") from None
        if not self._text_outputs:
            return arrays
        return [
            str_to_bytes(array) if name in self._text_outputs else array
            for name, array in zip(outputs, arrays, strict=True)
        ]

    def warm(self) -> None:
        """One run on zeros, BYTES empty: dynamic dimensions are 1, or of `WARM_SIZES` where 1 is too few.

        Raises `EngineError` where none of the sizes is legal input for the model: it may still serve.
        """
        outputs = [spec.name for spec in self.signature.outputs]
        reason: EngineError | None = None
        for size in WARM_SIZES:
            try:
                self.run({spec.name: zeros(spec, size) for spec in self.signature.inputs}, outputs)
                return
            except EngineError as error:
                reason = reason or error
        raise EngineError(
            f"the warm-up run failed on zeros with dynamic dimensions of {', '.join(map(str, WARM_SIZES))}: "
            f"the model does not run here, or takes no such input. With 1: {reason}"
        )

    def close(self) -> None:
        """Drops the session and hands what it had allocated back to the operating system."""
        self._run = _closed
        release_memory()


def same_answers(one: Engine, other: Engine) -> bool:
    """Whether both give the same bits for ones, or, where those are no legal input, for zeros."""
    outputs = [spec.name for spec in one.signature.outputs]
    for fill in (1, 0):
        for size in WARM_SIZES:
            feed = {spec.name: zeros(spec, size) for spec in one.signature.inputs}
            for array in feed.values():
                if array.dtype != object:
                    array[...] = fill
            try:
                expected = one.run(feed, outputs)
            except EngineError:
                continue
            return all(map(same, expected, other.run(feed, outputs)))
    return False


def release_memory() -> None:
    """Gives freed heap back to the operating system, where the C library keeps it otherwise.

    glibc keeps the pages of freed blocks below its mmap threshold: of a 100 MB model with many small tensors
    190 MB stayed after its session was gone, and a container's memory limit counts them.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)


def _closed(outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
    raise EngineError("this version has been unloaded")


def _check_providers(wanted: Sequence[str]) -> list[str]:
    """ONNX Runtime would only warn, and run a GPU's model on the CPU."""
    available = ort.get_available_providers()
    missing = [name for name in wanted if name not in available]
    if missing or not wanted:
        raise EngineError(
            f"execution provider {', '.join(missing) or '(none given)'} is not available here; "
            f"available: {', '.join(available)}"
        )
    return list(wanted)


def _session_options(options: EngineOptions) -> ort.SessionOptions:
    session = ort.SessionOptions()
    session.intra_op_num_threads = options.threads
    session.inter_op_num_threads = 1
    session.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    session.graph_optimization_level = _OPTIMIZATION[options.graph_optimization]
    session.log_severity_level = _SILENT
    # Threads that spin after a run would take the cores that other workers and versions serve from.
    session.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return session


def _runner(session: ort.InferenceSession, signature: Signature) -> Run:
    """The leanest way to run this session.

    `InferenceSession.run` checks names that `Checker` has checked already; its C++ object, one attribute
    below, takes the same arguments, and that saves 1 to 6 µs of the 5 to 11 that a tiny model takes. The
    attribute is private, so a release that moves it falls back to the public method.
    """
    run_options = ort.RunOptions()
    run_options.log_severity_level = _SILENT
    datatypes = {spec.datatype for spec in (*signature.inputs, *signature.outputs)}
    if {"BF16", "BYTES"} <= datatypes:
        raise EngineError(
            "the model has both bfloat16 and string tensors, which ONNX Runtime's Python interface "
            "cannot pass in one run: cast one of them in the model"
        )
    if "BF16" in datatypes:
        return lambda outputs, inputs: run_with_bfloat16(session, run_options, signature, outputs, inputs)
    direct: Any = getattr(getattr(session, "_sess", None), "run", None) or session.run
    return lambda outputs, inputs: direct(outputs, inputs, run_options)


def _spec(node: Any, kind: str) -> TensorSpec:
    datatype = BY_ONNX.get(node.type)
    if datatype is None:
        raise EngineError(
            f"{kind} {node.name!r} is of type {node.type}, which the protocol has no datatype for: "
            "export the model with plain tensors"
        )
    return TensorSpec(
        name=node.name,
        datatype=datatype.name,
        shape=tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape),
        dimensions=tuple(size if isinstance(size, str) else "" for size in node.shape),
    )


_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOAD = re.compile(r"Load model from .*? failed:\s*", re.DOTALL)
_SOURCE = re.compile(r"\S*onnxruntime_src/\S+(?: [^()]*\([^()]*\)(?: const)?)?")
_SOURCE_SHORT = re.compile(r"\b\w+\.(?:cc|h):\d+ ")


def _reason(error: Exception, path: Path | None = None) -> str:
    """ONNX Runtime's text for people: no local paths, no C++ signatures, one line.

    Node names may look like paths (`/encoder/MatMul`) and help the model's owner, so only known ones go.
    """
    text = _PREFIX.sub("", str(error))
    if path is not None:
        # Both as given and as resolved: the checks of external data print the latter.
        text = _LOAD.sub("", text)
        for parent in (*path.resolve().parents, *path.parents):
            if len(parent.parts) > 1:
                text = text.replace(f"{parent}/", "").replace(f'"{parent}"', "the model's")
    text = _SOURCE_SHORT.sub("", _SOURCE.sub("", text))
    return " ".join(text.split())[:_REASON_CHARS] or type(error).__name__


__all__ = ["OnnxEngine", "load_onnx", "release_memory"]

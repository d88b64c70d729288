"""What the protocol tells about servers and models: metadata, configuration, statistics, index. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.serving.datatypes import DATATYPES
from gateway.serving.engine import Signature, TensorSpec

Document = dict[str, Any]
ModelState = Literal["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
READY: ModelState = "READY"
UNAVAILABLE: ModelState = "UNAVAILABLE"

SERVER_VERSION = "0.1.0"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
"""As Triton spells them."""


def server_metadata(
    version: str = SERVER_VERSION, name: str = "turnout", extensions: Sequence[str] = EXTENSIONS
) -> Document:
    """`GET /v2`."""
    return {"name": name, "version": version, "extensions": list(extensions)}


def model_metadata(name: str, versions: Sequence[str], platform: str, signature: Signature) -> Document:
    """`GET /v2/models/{name}`. Shapes include the batch dimension, as -1."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform,
        "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
    }


def model_config(
    name: str, platform: str, signature: Signature, max_batch_size: int, *, batching: bool = True
) -> Document:
    """`GET /v2/models/{name}/config`, as much of Triton's as clients and `perf_analyzer` read.

    Where the model is batchable and `batching` is on, `max_batch_size` is above 0 and the dims are those of
    one row; else it is 0 and they are whole: that is how Triton's clients tell the two apart.
    """
    rows = signature.batchable and batching and max_batch_size > 0
    document: Document = {
        "name": name,
        "platform": platform,
        "backend": platform.partition("_")[0],
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_batch_size if rows else 0,
        "input": [_tensor_config(spec, rows) for spec in signature.inputs],
        "output": [_tensor_config(spec, rows) for spec in signature.outputs],
    }
    if rows:
        document["dynamic_batching"] = {"max_queue_delay_microseconds": 0}
    return document


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One version in the repository index."""

    name: str
    version: str
    state: ModelState
    reason: str = ""


def repository_index(entries: Iterable[IndexEntry], *, ready_only: bool = False) -> list[Document]:
    """`POST /v2/repository/index`; `ready_only` is the request's `ready`."""
    return [
        {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
        for entry in entries
        if entry.state == "READY" or not ready_only
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How often something was done, and how long it took in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatistics:
    """Runs of one batch size."""

    batch_size: int
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """The counts of one version, since it was loaded."""

    name: str
    version: str
    last_inference_ms: int = 0
    """Since the epoch; 0 where there was none."""
    inference_count: int = 0
    """Rows that were answered: a request of batch 8 counts 8."""
    execution_count: int = 0
    """Runs of the engine."""
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    batches: Sequence[BatchStatistics] = field(default=())


def statistics(models: Iterable[ModelStatistics]) -> Document:
    """`GET /v2/models/stats` and `GET /v2/models/{name}/stats`."""
    return {"model_stats": [_model_statistics(model) for model in models]}


def _model_statistics(model: ModelStatistics) -> Document:
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": model.last_inference_ms,
        "inference_count": model.inference_count,
        "execution_count": model.execution_count,
        "inference_stats": {
            "success": _duration(model.success),
            "fail": _duration(model.fail),
            "queue": _duration(model.queue),
            "compute_input": _duration(model.compute_input),
            "compute_infer": _duration(model.compute_infer),
            "compute_output": _duration(model.compute_output),
            # No answers are cached here; perf_analyzer reads both all the same.
            "cache_hit": _duration(Duration()),
            "cache_miss": _duration(Duration()),
        },
        "batch_stats": [_batch_statistics(batch) for batch in model.batches],
    }


def _batch_statistics(batch: BatchStatistics) -> Document:
    return {
        "batch_size": batch.batch_size,
        "compute_input": _duration(batch.compute_input),
        "compute_infer": _duration(batch.compute_infer),
        "compute_output": _duration(batch.compute_output),
    }


def _duration(duration: Duration) -> Document:
    return {"count": duration.count, "ns": duration.ns}


def _tensor_metadata(spec: TensorSpec) -> Document:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _tensor_config(spec: TensorSpec, rows: bool) -> Document:
    dims = spec.shape[1:] if rows else spec.shape
    return {"name": spec.name, "data_type": DATATYPES[spec.datatype].triton, "dims": list(dims)}

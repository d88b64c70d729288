"""The calls of the inference service that predict nothing: only translates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from gateway.serving.tensors import InferenceError
from gateway.wire import oip_documents as documents
from gateway.wire.grpc import inference_pb2 as pb
from gateway.wire.grpc.calls import Handler, parsed, read_one
from gateway.wire.models import Models
from gateway.wire.readiness import Readiness

Call = Callable[[Any], Awaitable[Message]]


class Service:
    """One method a call: message in, message out. Each raises `InferenceError`."""

    def __init__(self, models: Models, readiness: Readiness) -> None:
        self._models = models
        self._readiness = readiness

    def handlers(self) -> Mapping[str, Handler]:
        """By the call's name; they read and return bytes."""
        calls: Mapping[str, tuple[type[Message], Call]] = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self._repository_index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self._unload),
        }
        return {name: _handler(type_, call) for name, (type_, call) in calls.items()}

    async def _server_live(self, _: pb.ServerLiveRequest) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, _: pb.ServerReadyRequest) -> Message:
        return pb.ServerReadyResponse(ready=self._readiness.ready)

    async def _server_metadata(self, _: pb.ServerMetadataRequest) -> Message:
        return pb.ServerMetadataResponse(**documents.server_metadata())

    async def _model_ready(self, asked: pb.ModelReadyRequest) -> Message:
        try:
            ready = self._models.ready(asked.name, asked.version or None)
        except InferenceError as error:
            # As in Triton: whether it is ready has an answer, and clients raise whatever is none.
            if error.status != 404:
                raise
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def _model_metadata(self, asked: pb.ModelMetadataRequest) -> Message:
        return pb.ModelMetadataResponse(**await self._models.metadata(asked.name, asked.version or None))

    async def _model_config(self, asked: pb.ModelConfigRequest) -> Message:
        config = await self._models.config(asked.name, asked.version or None)
        return pb.ModelConfigResponse(config=pb.ModelConfig(**config))

    async def _model_statistics(self, asked: pb.ModelStatisticsRequest) -> Message:
        found = await self._models.statistics(asked.name or None, asked.version or None)
        return pb.ModelStatisticsResponse(**found)

    async def _repository_index(self, asked: pb.RepositoryIndexRequest) -> Message:
        entries = self._models.index(ready_only=asked.ready)
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(**entry) for entry in entries]
        )

    async def _load(self, asked: pb.RepositoryModelLoadRequest) -> Message:
        await self._models.load(asked.model_name, _values(asked.parameters))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, asked: pb.RepositoryModelUnloadRequest) -> Message:
        await self._models.unload(asked.model_name, _values(asked.parameters))
        return pb.RepositoryModelUnloadResponse()


def _handler(type_: type[Message], call: Call) -> Handler:
    async def handler(_: Any, context: Any) -> bytes:
        answer = await call(parsed(type_, await read_one(context)))
        encoded: bytes = answer.SerializeToString()
        return encoded

    return handler


def _values(parameters: Mapping[str, pb.ModelRepositoryParameter]) -> dict[str, Any]:
    chosen = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in chosen.items() if choice}

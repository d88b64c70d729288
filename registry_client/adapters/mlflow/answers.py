"""What MLflow's REST API answers, and what its errors mean."""

from __future__ import annotations

import math

import msgspec

from registry_client.errors import (
    InvalidReference,
    NotFound,
    NotReady,
    PermissionDenied,
    ProtocolError,
    RegistryError,
    Unsupported,
)

_MESSAGE_LIMIT = 300

# MLflow's own error codes go before the HTTP status, which it uses loosely.
_CODES: dict[str, type[RegistryError]] = {
    "RESOURCE_DOES_NOT_EXIST": NotFound,
    "NOT_FOUND": NotFound,
    "ENDPOINT_NOT_FOUND": Unsupported,
    "NOT_IMPLEMENTED": Unsupported,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": PermissionDenied,
    "INVALID_STATE": NotReady,
    "INVALID_PARAMETER_VALUE": ProtocolError,
}


class Tag(msgspec.Struct, frozen=True):
    key: str = ""
    value: str = ""


class Metric(msgspec.Struct, frozen=True):
    key: str = ""
    value: float | str = 0.0
    """Protobuf writes NaN and infinities as text."""


class Version(msgspec.Struct, frozen=True):
    name: str
    version: str | int
    creation_timestamp: int | str = 0
    current_stage: str = ""
    description: str = ""
    source: str = ""
    run_id: str = ""
    status: str = "READY"
    status_message: str = ""
    tags: list[Tag] = []
    aliases: list[str] = []


class VersionAnswer(msgspec.Struct, frozen=True):
    model_version: Version


class VersionsAnswer(msgspec.Struct, frozen=True):
    model_versions: list[Version] = []
    next_page_token: str = ""


class Alias(msgspec.Struct, frozen=True):
    alias: str
    version: str | int


class RegisteredModel(msgspec.Struct, frozen=True):
    aliases: list[Alias] = []


class RegisteredModelAnswer(msgspec.Struct, frozen=True):
    registered_model: RegisteredModel


class DownloadUri(msgspec.Struct, frozen=True):
    artifact_uri: str


class Artifact(msgspec.Struct, frozen=True):
    path: str
    is_dir: bool = False
    file_size: int | str | None = None


class Listing(msgspec.Struct, frozen=True):
    files: list[Artifact] = []


class Presigned(msgspec.Struct, frozen=True):
    url: str
    headers: dict[str, str] | None = None


class RunData(msgspec.Struct, frozen=True):
    metrics: list[Metric] = []
    params: list[Tag] = []
    tags: list[Tag] = []


class DatasetEntry(msgspec.Struct, frozen=True):
    name: str = ""
    digest: str = ""


class DatasetInput(msgspec.Struct, frozen=True):
    dataset: DatasetEntry = DatasetEntry()


class RunInputs(msgspec.Struct, frozen=True):
    dataset_inputs: list[DatasetInput] = []


class Run(msgspec.Struct, frozen=True):
    data: RunData = RunData()
    inputs: RunInputs = RunInputs()


class RunAnswer(msgspec.Struct, frozen=True):
    run: Run = Run()


class LoggedModel(msgspec.Struct, frozen=True):
    data: RunData = RunData()


class LoggedModelAnswer(msgspec.Struct, frozen=True):
    model: LoggedModel = LoggedModel()


class _Problem(msgspec.Struct, frozen=True):
    error_code: str = ""
    message: str = ""


def explain(status: int, body: bytes) -> RegistryError | None:
    """What MLflow means by an error; None where it is not MLflow's own."""
    if status == 403 and body.startswith(b"Invalid Host header"):
        return PermissionDenied(
            "MLflow does not accept the host name in this registry's url: "
            "add it to MLFLOW_SERVER_ALLOWED_HOSTS where the server is started"
        )
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    kind = _CODES.get(problem.error_code)
    if kind is None:
        return None
    text = "".join(each for each in problem.message[:_MESSAGE_LIMIT] if each.isprintable())
    if kind is ProtocolError and "alias" in text and "not found" in text:
        # The one missing thing that MLflow reports as a wrong parameter.
        kind = NotFound
    if kind is ProtocolError and text.startswith("Invalid model name"):
        kind = InvalidReference
    return kind(f"MLflow: {text or problem.error_code}")


def metric_values(metrics: list[Metric]) -> dict[str, float]:
    """The finite ones: a NaN has no order, so no gate could judge it."""
    values: dict[str, float] = {}
    for metric in metrics:
        try:
            value = float(metric.value)
        except ValueError:
            continue
        if math.isfinite(value):
            values[metric.key] = value
    return values


def tag_values(tags: list[Tag]) -> dict[str, str]:
    return {tag.key: tag.value for tag in tags}

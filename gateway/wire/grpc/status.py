"""From the protocol's HTTP status to gRPC's code."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from grpc import StatusCode

CODES: Mapping[int, StatusCode] = MappingProxyType(
    {
        400: StatusCode.INVALID_ARGUMENT,
        403: StatusCode.PERMISSION_DENIED,
        404: StatusCode.NOT_FOUND,
        413: StatusCode.RESOURCE_EXHAUSTED,
        415: StatusCode.UNIMPLEMENTED,
        499: StatusCode.CANCELLED,
        503: StatusCode.UNAVAILABLE,
        504: StatusCode.DEADLINE_EXCEEDED,
    }
)


def code_of(status: int) -> StatusCode:
    """INTERNAL where the table has no other."""
    return CODES.get(status, StatusCode.INTERNAL)

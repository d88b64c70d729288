"""One gateway for all clients of this package."""

from tests.conformance.served import gateway

__all__ = ["gateway"]

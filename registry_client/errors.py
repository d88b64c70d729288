"""What can go wrong between a caller and a model registry.

    RegistryError
    ├── InvalidReference        the text is not `registry/model@revision`
    ├── InvalidConfiguration    the registry's declaration or credentials are unusable
    ├── NotFound                the model, revision or file does not exist there
    ├── PermissionDenied        the registry knows us, or does not, and refuses
    ├── NotReady                the version exists and may not be used (pending, failed, deleted)
    ├── Unavailable             network, time-out, 5xx, rate limit: trying again may help
    ├── ProtocolError           the registry answered something that it should not
    ├── IntegrityError          bytes differ from what was promised
    └── Unsupported             this registry cannot do that

Callers decide by class; `str(error)` names the thing, the limit and the remedy, and never holds a secret.
"""

from __future__ import annotations


class RegistryError(Exception):
    """The base of everything that this package raises on purpose."""


class InvalidReference(RegistryError):
    """A reference that is not `registry/model@revision`."""


class InvalidConfiguration(RegistryError):
    """A registry's declaration, or the environment it needs, is unusable."""


class NotFound(RegistryError):
    """The model, the revision or the file does not exist in the registry."""


class PermissionDenied(RegistryError):
    """The registry refused our credentials, or asked for some."""


class NotReady(RegistryError):
    """The version exists, but its registry says that it may not be used."""


class Unavailable(RegistryError):
    """The registry could not be reached or is overloaded.

    `retry_after_s` is what the registry asked for, where it asked.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProtocolError(RegistryError):
    """The registry's answer does not follow its own protocol."""


class IntegrityError(RegistryError):
    """Bytes or their number differ from what the registry, or an earlier pin, promised."""


class Unsupported(RegistryError):
    """The registry has no such notion."""

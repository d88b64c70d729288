"""A reader's memory of the document that it holds: of the next one, only what is new is read.

Of 10,000 routes, a document takes 0.2 s to decode, in which a worker answers nobody; nearly always all but one
of them are as before.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gateway.routing.state import (
    SCHEMA,
    DamagedState,
    InForce,
    RegistryDeclaration,
    Route,
    State,
    StateError,
    check_state,
    decode_envelope,
    decode_state,
    in_force,
    state_sha256,
)


class _Outline(msgspec.Struct):
    """A document with its routes left as they are written."""

    schema: int = SCHEMA
    registries: dict[str, RegistryDeclaration] = {}
    routes: dict[str, msgspec.Raw] = {}
    manifest_sha256: str = ""


_KNOWN = msgspec.json.Decoder(_Outline)
"""See `gateway.routing.state`: made before there are threads."""


class _Known(NamedTuple):
    """The last document; replaced whole, so that readers in several threads need no lock."""

    sha256: str
    state: State
    routes: dict[str, tuple[bytes, Route]]
    """Each as it is written, and what that means."""


class Documents:
    """Decodes states; quick where most of one is as in the one before."""

    def __init__(self) -> None:
        self._known = _Known("", State(), {})

    def in_force(self, raw: bytes) -> InForce:
        """As `decode_in_force`; a state may come without its document, if that is the last one's.

        Routes that are written as before are the same objects as before. Raises `StateError`, which is a
        `DamagedState` where only the document is at fault.
        """
        envelope = decode_envelope(raw)
        try:
            return in_force(envelope, self.state(envelope.doc.encode(), envelope.sha256))
        except StateError as error:
            beside = in_force(envelope, State())
            raise DamagedState(str(error), beside.revision, beside.denies) from error

    def state(self, raw: bytes, sha256: str) -> State:
        """As `decode_state`; the same object as before where the document is the last one."""
        known = self._known
        # One that comes is checked all the same: it may have been edited, and its digest not.
        if sha256 != known.sha256 or (raw and state_sha256(raw) != sha256):
            known = self._known = _decode(raw, sha256, known)
        return known.state


def _decode(raw: bytes, sha256: str, known: _Known) -> _Known:
    outline = _outline(raw, sha256)
    if outline is None:
        return _Known(sha256, decode_state(raw, sha256), {})  # which says what is wrong
    routes = {}
    fresh = {}
    for name, raw_route in outline.routes.items():
        written = bytes(raw_route)
        before = known.routes.get(name)
        if before is not None and before[0] == written:
            routes[name] = before
            continue
        try:
            fresh[name] = msgspec.json.decode(written, type=Route)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _Known(sha256, decode_state(raw, sha256), {})
        routes[name] = written, fresh[name]
    check_state(State(routes=fresh))
    state = State(
        schema=outline.schema,
        registries=outline.registries,
        routes={name: route for name, (_, route) in routes.items()},
        manifest_sha256=outline.manifest_sha256,
    )
    return _Known(sha256, state, routes)


def _outline(raw: bytes, sha256: str) -> _Outline | None:
    """None where the document cannot be what it says it is."""
    if state_sha256(raw) != sha256:
        return None
    try:
        outline = msgspec.json.decode(raw, type=_Outline)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return outline if outline.schema <= SCHEMA else None

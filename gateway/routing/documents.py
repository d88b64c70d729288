"""A reader's memory of the document that it holds: of the next one, only what is new is read.

Of 10,000 routes, a document takes 0.2 s to decode, in which a worker answers nobody; nearly always all but one
of them are as before.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.routing.state import (
    SCHEMA,
    Envelope,
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


class Documents:
    """Decodes states in the order in which they come."""

    def __init__(self) -> None:
        self._sha256 = ""
        self._state = State()
        self._routes: dict[str, tuple[bytes, Route]] = {}

    def in_force(self, raw: bytes) -> InForce:
        """As `decode_in_force`; a state may come without its document, if that is the last one's.

        Routes that are written as before are the same objects as before. Raises `StateError`.
        """
        envelope = decode_envelope(raw)
        if envelope.sha256 != self._sha256:
            self._state = self._decode(envelope)
            self._sha256 = envelope.sha256
        return in_force(envelope, self._state)

    def _decode(self, envelope: Envelope) -> State:
        raw = envelope.doc.encode()
        if state_sha256(raw) != envelope.sha256:
            return decode_state(raw, envelope.sha256)  # which says what is wrong
        try:
            outline = msgspec.json.decode(raw, type=_Outline)
            routes = {name: self._route(name, bytes(written)) for name, written in outline.routes.items()}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return decode_state(raw, envelope.sha256)
        if outline.schema > SCHEMA:
            return decode_state(raw, envelope.sha256)
        fields: dict[str, Any] = {name: getattr(outline, name) for name in outline.__struct_fields__}
        state = State(**{**fields, "routes": {name: route for name, (_, route) in routes.items()}})
        known = self._routes
        check_state(
            State(routes={n: r for n, (_, r) in routes.items() if n not in known or known[n][1] is not r})
        )
        self._routes = routes
        return state

    def _route(self, name: str, written: bytes) -> tuple[bytes, Route]:
        known = self._routes.get(name)
        if known is not None and known[0] == written:
            return known
        return written, msgspec.json.decode(written, type=Route)


__all__ = ["Documents", "StateError"]

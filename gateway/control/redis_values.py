"""Values as they lie in Redis, and back. Nothing in there is trusted: people write to it by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gateway.control.store import Author, HistoryRecord, Member, Signal
from gateway.routing.state import Deny, DenyKey, InForce, Revision, State, StateError

SIGNAL_FIELDS = 20
SIGNAL_BYTES = 1024
"""Of one name or value of a signal; what is longer is cut."""

Fields = Mapping[bytes, bytes]


def text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")


def in_force(head: Fields, denies: Fields, state: State) -> InForce:
    """`head` is the state's HASH without its document. Raises `StateError`, and names what is damaged."""
    return InForce(
        revision=_revision(head),
        state=state,
        denies={DenyKey.parse(text(key)): _deny(key, raw) for key, raw in denies.items()},
        commit_us=_commit_us(head),
        base=_base(head),
        head=text(head.get(b"head", b"")),
    )


def check_head(head: Fields, document: bytes | None) -> None:
    """Raises `StateError` where the state lacks what every state has."""
    there = {name for name in (b"epoch", b"rev", b"sha256") if name in head}
    there |= {b"doc"} if document is not None else set()
    missing = [name for name in ("epoch", "rev", "doc", "sha256") if name.encode() not in there]
    if missing:
        raise StateError(f"the state in Redis lacks {', '.join(missing)}: it was edited by hand")


def tombstone_head(version: str, author: Author) -> bytes:
    """A deny without its end: the script adds the revision and the time, by the server's clock."""
    fields = {"version": version, "op_id": author.op_id, "actor": author.actor, "reason": author.reason}
    return msgspec.json.encode(fields)[:-1]


def history_record(fields: Fields) -> HistoryRecord | None:
    """None for an entry that nobody here has written."""
    known: dict[str, object] = {text(name): text(value) for name, value in fields.items()}
    try:
        known["changes"] = msgspec.json.decode(fields.get(b"changes", b"[]"))
        return msgspec.convert(known, HistoryRecord, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def member_from(fields: Fields) -> Member | None:
    """None for a report that has faded or that nobody here has written."""
    try:
        return msgspec.convert(
            {text(name): text(value) for name, value in fields.items()}, Member, strict=False
        )
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def signal(id_: bytes | str, fields: Fields) -> Signal:
    """Cut to size, and with a mark where bytes are no UTF-8."""
    first = list(fields.items())[:SIGNAL_FIELDS]
    return Signal(id=text(id_), fields={_short(name): _short(value) for name, value in first})


def _short(raw: bytes) -> str:
    return text(raw[:SIGNAL_BYTES])


def _deny(key: bytes, raw: bytes) -> Deny:
    try:
        return msgspec.json.decode(raw, type=Deny)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateError(f"deny {text(key)[:200]!r} in Redis is unreadable: {error}") from error


def _revision(head: Fields) -> Revision:
    try:
        return Revision.parse(f"{text(head[b'epoch'])}.{text(head[b'rev'])}")
    except ValueError as error:
        raise StateError(f"the state in Redis has no revision: {error}") from error


def _commit_us(head: Fields) -> int:
    raw = head.get(b"commit_us", b"0")
    return int(raw) if raw.isdigit() else 0


def _base(head: Fields) -> Revision:
    try:
        return Revision.parse(text(head.get(b"base", b"0.0")))
    except ValueError as error:
        raise StateError(f"the state in Redis has no base: {error}") from error


def fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Names and values in turn, as Redis gives a HASH and the fields of a stream's entry."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def id_order(id_: bytes) -> tuple[int, int]:
    """What stream ids are sorted by; what is none comes first."""
    ms, _, seq = id_.partition(b"-")
    return int(ms) if ms.isdigit() else 0, int(seq) if seq.isdigit() else 0

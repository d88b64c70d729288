"""Values as they lie in Redis, and back. Nothing in there is trusted: people write to it by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from gateway.control.store import Author, HistoryRecord, Member, Signal
from gateway.routing.documents import Documents
from gateway.routing.state import DamagedState, Deny, DenyKey, InForce, Revision, State, StateError

SIGNAL_FIELDS = 20
SIGNAL_BYTES = 1024
"""Of one name or value of a signal; what is longer is cut."""

REVISION_LIMIT = 2**53 - 1
"""Of an epoch and of a rev: the scripts count in doubles, and beyond it one more is the same."""

Fields = Mapping[bytes, bytes]


def text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")


def in_force(head: Fields, denies: Fields, state: Callable[[], State]) -> InForce:
    """`head` is the state's HASH without its document, which `state` gives, or raises `StateError`.

    Raises `DamagedState`, which names what is damaged and has what is sound.
    """
    sound, damage = _sound(denies)
    revision = Revision(0, 0)
    try:
        revision = _revision(head)
        if damage:
            raise StateError(damage)
        return InForce(
            revision=revision,
            state=state(),
            denies=sound,
            commit_us=_commit_us(head),
            base=_base(head),
            head=text(head.get(b"head", b"")),
        )
    except ValueError as error:
        raise DamagedState(str(error), revision, sound) from error


def decode_document(documents: Documents, document: bytes | None, sha256: bytes | None) -> State:
    """Raises `StateError`."""
    there = {"doc": document, "sha256": sha256}
    missing = [name for name, value in there.items() if value is None]
    if document is None or sha256 is None:
        raise StateError(f"the state in Redis lacks {', '.join(missing)}: it was edited by hand")
    return documents.state(document, text(sha256))


def _revision(state: Fields) -> Revision:
    try:
        revision = Revision.parse(f"{text(state.get(b'epoch', b''))}.{text(state.get(b'rev', b''))}")
    except ValueError as error:
        raise StateError(f"the state in Redis has no revision: {error}") from error
    if max(revision) > REVISION_LIMIT:
        raise StateError(
            f"the state in Redis has revision {str(revision)[:80]}, beyond 2^53-1: it was edited by hand"
        )
    return revision


def _sound(denies: Fields) -> tuple[dict[DenyKey, Deny], str]:
    """The denies that are readable, and what is wrong with the first that is not."""
    sound, damage = {}, ""
    for key, raw in denies.items():
        try:
            sound[DenyKey.parse(text(key))] = deny = _deny(key, raw)
        except StateError as error:
            damage = damage or str(error)
            continue
        if deny.rev > REVISION_LIMIT:
            # It denies all the same: so does one that was written while the state's revision is damaged.
            damage = damage or f"deny {text(key)[:200]!r} in Redis has revision {deny.rev}, beyond 2^53-1"
    return sound, damage


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
        member = msgspec.convert(
            {text(name): text(value) for name, value in fields.items()}, Member, strict=False
        )
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return member if max(member.epoch, member.rev) <= REVISION_LIMIT else None


def signal(id_: bytes | str, fields: Fields) -> Signal:
    """Cut to size, and with a mark where bytes are no UTF-8."""
    first = list(fields.items())[:SIGNAL_FIELDS]
    return Signal(id=text(id_), fields={_short(name): _short(value) for name, value in first})


def _short(raw: bytes) -> str:
    return text(raw[:SIGNAL_BYTES])


def _deny(key: bytes, raw: bytes) -> Deny:
    try:
        deny = msgspec.json.decode(raw, type=Deny)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateError(f"deny {text(key)[:200]!r} in Redis is unreadable: {error}") from error
    if deny.rev < 1:
        # It would look like one that only this replica knows, and nobody could lift it.
        raise StateError(f"deny {text(key)[:200]!r} in Redis has no revision: it was written by hand")
    return deny


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

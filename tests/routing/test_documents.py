"""What a reader remembers of the last document makes the next one cheap, and never another one."""

from __future__ import annotations

import msgspec
import pytest

from gateway.routing.documents import Documents
from gateway.routing.state import InForce, Revision, StateError, decode_in_force, encode_in_force
from gateway.routing.table import Tables, compile_table
from tests.states import in_force, route

ONE = in_force(route({"a 1": 100}), route({"a 1": 50, "b 2": 50}))


def changed(held: InForce, name: str, timeout_ms: int) -> InForce:
    routes = {
        **held.state.routes,
        name: msgspec.structs.replace(held.state.routes[name], timeout_ms=timeout_ms),
    }
    state = msgspec.structs.replace(held.state, routes=routes)
    return InForce(revision=Revision(1, held.revision.rev + 1), state=state, denies=held.denies)


def test_it_reads_what_a_reader_without_memory_reads() -> None:
    documents = Documents()
    for held in (ONE, changed(ONE, "digits", 7), in_force(route({"a 1": 100})), in_force(), ONE):
        raw = encode_in_force(held)
        assert documents.in_force(raw) == decode_in_force(raw) == held


def test_routes_that_are_written_as_before_are_the_same_objects() -> None:
    documents = Documents()
    before = documents.in_force(encode_in_force(ONE)).state.routes
    after = documents.in_force(encode_in_force(changed(ONE, "digits", 7))).state.routes
    assert after["digits2"] is before["digits2"]
    assert after["digits"].timeout_ms == 7


def test_denies_come_without_the_document_they_are_on() -> None:
    documents = Documents()
    state = documents.in_force(encode_in_force(ONE)).state
    denied = in_force(route({"a 1": 100}), route({"a 1": 50, "b 2": 50}), denied=["1"])
    raw = encode_in_force(denied, document=False)
    assert documents.in_force(raw) == denied
    assert documents.in_force(raw).state is state


def test_denies_on_another_document_are_refused() -> None:
    documents = Documents()
    documents.in_force(encode_in_force(ONE))
    with pytest.raises(StateError, match="does not match its sha256"):
        documents.in_force(encode_in_force(changed(ONE, "digits", 7), document=False))
    assert documents.in_force(encode_in_force(ONE, document=False)) == ONE, "what it had is not lost"


def test_an_edited_document_under_the_old_digest_is_refused() -> None:
    documents = Documents()
    raw = encode_in_force(ONE)
    documents.in_force(raw)
    edited = raw.replace(b"30000", b"30001", 1)
    assert edited != raw
    with pytest.raises(StateError, match="does not match its sha256"):
        documents.in_force(edited)


@pytest.mark.parametrize(
    "field", [b'"fallback":"a"', b'"weight_bp":5000', b'"schema":1', b'"timeout_ms":30000']
)
def test_what_contradicts_itself_is_refused_as_ever(field: bytes) -> None:
    name = field.partition(b":")[0]
    broken = ONE.state.encoded.replace(field, name + b":77")
    assert broken != ONE.state.encoded
    state = msgspec.structs.replace(ONE.state)
    state.__dict__["encoded"] = broken
    raw = encode_in_force(InForce(revision=Revision(1, 9), state=state))
    documents = Documents()
    documents.in_force(encode_in_force(ONE))
    if b"timeout" in field:
        assert documents.in_force(raw).state.routes["digits"].timeout_ms == 77
        return
    with pytest.raises(StateError) as expected:
        decode_in_force(raw)
    with pytest.raises(StateError) as found:
        documents.in_force(raw)
    assert str(found.value) == str(expected.value)


def test_tables_are_compiled_once_and_only_where_they_differ() -> None:
    tables = Tables()
    first = tables.of(ONE)
    assert tables.of(ONE) is first
    denied = msgspec.structs.replace(ONE, denies=in_force(route({"a 1": 100}), denied=["1"]).denies)
    second = tables.of(denied)
    assert second["digits2"] is first["digits2"]
    assert second["digits"].denied == compile_table(denied)["digits"].denied != frozenset()
    lifted = tables.of(msgspec.structs.replace(denied, denies={}))
    assert lifted["digits"].denied == frozenset()
    third = tables.of(changed(ONE, "digits", 7))
    assert third["digits2"] is first["digits2"]
    assert third["digits"].timeout_ms == 7

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.state import (
    EMPTY,
    SCHEMA,
    Deny,
    DenyKey,
    InForce,
    Pin,
    RegistryDeclaration,
    Revision,
    Route,
    State,
    StateError,
    Variant,
    check_state,
    decode_in_force,
    decode_state,
    encode_in_force,
    encode_state,
    state_sha256,
)
from tests.states import in_force, pin, route

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PINS = st.builds(Pin, registry=NAMES, model=TEXTS, version=TEXTS, digest=TEXTS, identity=TEXTS)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def routes(draw: st.DrawFn) -> Route:
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    first = draw(st.integers(0, 10_000)) if len(names) > 1 else 10_000
    weights = [first, 10_000 - first, 0]
    return Route(
        variants={
            name: Variant(pin=draw(PINS), reference=draw(TEXTS), weight_bp=weights[index])
            for index, name in enumerate(names)
        },
        fallback=draw(st.sampled_from(names)),
        previous=tuple(draw(st.lists(PINS, max_size=2))),
        salt=draw(TEXTS),
    )


STATES = st.builds(
    State,
    registries=st.dictionaries(
        NAMES, st.builds(RegistryDeclaration, type=NAMES, options=st.dictionaries(TEXTS, PLAIN, max_size=2))
    ),
    routes=st.dictionaries(NAMES, routes(), max_size=2),
    manifest_sha256=TEXTS,
)
KEYS = st.builds(DenyKey, NAMES, TEXTS)
DENIES = st.builds(
    Deny, version=TEXTS, rev=st.integers(0, 99), op_id=TEXTS, actor=TEXTS, reason=TEXTS, us=st.integers(0, 2**60)
)  # fmt: skip
HELD = st.builds(
    InForce,
    revision=st.builds(Revision, st.integers(0, 99), st.integers(0, 99)),
    state=STATES,
    denies=st.dictionaries(KEYS, DENIES, max_size=3),
)


@given(HELD)
def test_what_is_written_is_read_back(held: InForce) -> None:
    assert decode_in_force(encode_in_force(held)) == held
    raw = encode_state(held.state)
    assert encode_state(decode_state(raw, state_sha256(raw))) == raw


def test_equal_states_are_equal_bytes() -> None:
    one = {"a": route({"stable 1": 90, "canary 2": 10}), "b": route({"x 1": 100})}
    other = {"b": route({"x 1": 100}), "a": route({"canary 2": 10, "stable 1": 90}, fallback="stable")}
    options = {"path": "/p", "url": "u"}, {"url": "u", "path": "/p"}
    first, second = (
        State(routes=declared, registries={"r": RegistryDeclaration(type="t", options=given_options)})
        for declared, given_options in zip((one, other), options, strict=True)
    )
    assert first == second
    assert encode_state(first) == encode_state(second)


def test_the_encoding_is_what_replicas_of_other_releases_hash() -> None:
    """Literal: a release that encodes otherwise takes every state of the others for a fork."""
    state = State(routes={"digits": route({"b 2": 100, "a 1": 0})}, manifest_sha256="m")
    pins = {
        name: {
            "pin": {
                "digest": version * 64, "identity": "", "model": "digits", "registry": "local", "version": version,
            },
            "reference": f"local/digits@{version}",
            "weight_bp": points,
        }
        for name, version, points in (("a", "1", 0), ("b", "2", 10_000))
    }  # fmt: skip
    document = {
        "manifest_sha256": "m",
        "registries": {},
        "routes": {
            "digits": {
                "engine": {
                    "batching": None,
                    "concurrency": "auto",
                    "graph_optimization": "all",
                    "max_batch_size": 64,
                    "max_queue": 1024,
                    "providers": ["CPUExecutionProvider"],
                    "threads": 1,
                },
                "explicit_versions": "any",
                "fallback": "b",
                "overrides": False,
                "previous": [],
                "salt": "digits",
                "sticky": "header:turnout-key",
                "timeout_ms": 30000,
                "variants": pins,
            }
        },
        "schema": 1,
    }
    assert json.loads(encode_state(state)) == document
    order = list(json.loads(encode_state(state))["routes"]["digits"]["variants"])
    assert order == ["a", "b"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "unreadable"),
        (b"{", "unreadable"),
        (b"[]", "unreadable"),
        (b"{}", "unreadable"),
        (b'{"schema": "1"}', "unreadable"),
        (b"\xff", "unreadable"),
        # msgspec raises UnicodeDecodeError for this one, which is none of its own.
        (b'{"schema": 1, "manifest_sha256": "\xff"}', "unreadable"),
        (b'{"schema": 1, "routes": {"a": {}}}', "unreadable"),
        (b'{"schema": 1, "registries": {"r": {"type": "t", "options": {"x": ' + b"[" * 100_000, "unreadable"),
        (b'{"schema": %d}' % (SCHEMA + 1), "schema 2, this release knows 1: upgrade"),
        # Of a newer schema nothing else is looked at.
        (b'{"schema": 2, "routes": 5}', "upgrade"),
    ],
)  # fmt: skip
def test_a_document_that_cannot_be_in_force(raw: bytes, says: str) -> None:
    with pytest.raises(StateError, match=says):
        decode_state(raw)


def test_a_changed_byte_is_found() -> None:
    raw = encode_state(in_force(route({"a 1": 100})).state)
    with pytest.raises(StateError, match="sha256"):
        decode_state(raw.replace(b"digits", b"digitz", 1), state_sha256(raw))


def test_fields_of_a_later_release_with_the_same_schema_are_passed_over() -> None:
    raw = json.loads(encode_state(in_force(route({"a 1": 100})).state))
    raw["routes"]["digits"]["colour"] = "red"
    assert decode_state(json.dumps(raw).encode()) == in_force(route({"a 1": 100})).state


def changed(**fields: Any) -> State:
    declared = route({"stable 1": 90, "canary 2": 10})
    return State(routes={"digits": msgspec.structs.replace(declared, **fields)})


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (changed(variants={}), "routes.digits.variants is empty"),
        (changed(fallback="x"), "routes.digits.fallback 'x' is no variant"),
        (changed(variants=route({"stable 1": 101, "b 2": 0}).variants), "stable.weight_bp 10100 is not in"),
        (changed(variants=route({"stable 1": 100, "b 2": -1}).variants), "b.weight_bp -100 is not in"),
        (changed(variants=route({"stable 1": 90, "b 2": 9}).variants, fallback="b"), "add up to 99 %"),
        (changed(variants=route({"stable 1": 90, "b 2": 11}).variants, fallback="b"), "add up to 101 %"),
    ],
)
def test_a_contradictory_document_is_refused(state: State, says: str) -> None:
    with pytest.raises(StateError, match=says):
        check_state(state)
    with pytest.raises(StateError, match=says):
        decode_state(encode_state(state))


@pytest.mark.parametrize("weights", [{"a 1": 0, "b 2": 0}, {"a 1": 100}, {"a 1": 33.33, "b 2": 66.67}])
def test_a_whole_or_nothing_is_fine(weights: dict[str, float]) -> None:
    check_state(in_force(route(weights)).state)


@pytest.mark.parametrize(
    ("text", "revision"),
    [("1.7", (1, 7)), (' "1.7" ', (1, 7)), ("0.0", (0, 0)), ("12.0345", (12, 345))],
)
def test_revisions(text: str, revision: tuple[int, int]) -> None:
    assert Revision.parse(text) == revision


@pytest.mark.parametrize("text", ["", "1", "1.", ".7", "1.7.2", "a.b", "-1.7", "1.٣", "1.7+1", "1_0.7"])
def test_what_is_no_revision(text: str) -> None:
    with pytest.raises(ValueError, match=r"EPOCH\.REV"):
        Revision.parse(text)


def test_revisions_are_ordered_by_epoch_first() -> None:
    assert Revision(1, 99) < Revision(2, 1) < Revision(2, 2)
    assert str(Revision(2, 10)) == "2.10"


def test_deny_keys() -> None:
    key = DenyKey("digits", "a|b")
    assert DenyKey.parse(str(key)) == key
    with pytest.raises(StateError):
        DenyKey.parse("digits")


class TestLabel:
    def held(self, *revs: int) -> InForce:
        denies = {DenyKey("digits", str(index)): Deny(version="1", rev=rev) for index, rev in enumerate(revs)}
        return InForce(revision=Revision(3, 7), state=State(), denies=denies)

    @pytest.mark.parametrize(
        ("revs", "ahead", "label"),
        [
            ((), 0, "3.7"),
            ((1, 7), 0, "3.7"),
            # Not published yet, or committed behind a document that is still waiting for its weights.
            ((0,), 1, "3.7+1"),
            ((8, 7, 0), 2, "3.7+2"),
        ],
    )
    def test_denies_ahead_of_the_revision(self, revs: tuple[int, ...], ahead: int, label: str) -> None:
        assert self.held(*revs).ahead == ahead
        assert self.held(*revs).label == label

    def test_nothing_was_ever_applied(self) -> None:
        assert (EMPTY.label, EMPTY.ahead) == ("0.0", 0)


def test_a_version_is_denied_by_its_digest_and_route() -> None:
    held = in_force(route({"a 1": 100}), denied=["1"])
    assert held.denied("digits", msgspec.structs.replace(pin("1"), version="other")) is not None
    assert held.denied("digits", pin("2")) is None
    assert held.denied("digits2", pin("1")) is None


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b'{"epoch": 1, "rev": 1, "sha256": "", "doc": "\xff", "deny": {}}']
)
def test_a_state_file_that_is_unreadable(raw: bytes) -> None:
    with pytest.raises(StateError, match="the state file is unreadable"):
        decode_in_force(raw)

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.routing.change import ChangeRefused, UnknownName, renew, version_of
from gateway.routing.exposure import Count, Trip, follows, lapsed, limited, reached, written
from gateway.routing.manifest import parse_manifest
from gateway.routing.manifest_values import ManifestError
from gateway.routing.plan import make_plan
from gateway.routing.state import (
    DenyKey,
    Exposure,
    InForce,
    StateError,
    check_state,
    decode_state,
    encode_state,
)
from tests.states import in_force, pin, route

TEN = Exposure(requests=10)
LEASE = Exposure(lease_ms=600_000)


def digests(**limits: Exposure) -> dict[str, Exposure]:
    return {pin(name.removeprefix("v")).digest: each for name, each in limits.items()}


@pytest.mark.parametrize(
    ("weights", "limits", "denied", "expected"),
    [
        ({"stable 1": 90, "canary 2": 10}, {}, "", {}),
        ({"stable 1": 90, "canary 2": 10}, {"canary": TEN}, "", digests(v2=TEN)),
        # A version that gets no share can be asked for by name.
        ({"stable 1": 100, "canary 2": 0}, {"canary": TEN}, "", digests(v2=TEN)),
        # A lease is of what has a weight: nobody need renew what gets nothing.
        ({"stable 1": 100, "canary 2": 0}, {"canary": LEASE}, "", {}),
        ({"stable 1": 90, "canary 2": 10}, {"canary": LEASE}, "", digests(v2=LEASE)),
        # Two names of the same bytes are one version, with the strictest limits of both.
        (
            {"stable 1": 80, "a 2": 10, "b 2": 10},
            {"a": Exposure(requests=10, errors=3), "b": Exposure(requests=5, keys=7)},
            "",
            digests(v2=Exposure(requests=5, errors=3, keys=7)),
        ),
        ({"stable 1": 80, "a 2": 10, "b 2": 10}, {"a": TEN}, "", digests(v2=TEN)),
        # The fallback's bytes answer for all others, under whatever name.
        ({"stable 1": 90, "canary 1": 10}, {"canary": TEN}, "", {}),
        # What is denied needs no limit.
        ({"stable 1": 90, "canary 2": 10}, {"canary": TEN}, "2", {}),
    ],
)
def test_what_is_limited(
    weights: dict[str, float], limits: dict[str, Exposure], denied: str, expected: dict[str, Exposure]
) -> None:
    assert limited(route(weights, limits=limits), frozenset(pin(each).digest for each in denied)) == expected


def count(number: int = 1, requests: int = 0, life: str = "a", keys: int = 0) -> Count:
    return Count(life=life, number=number, requests=requests, keys=keys)


@pytest.mark.parametrize(
    ("seen", "found", "follows_from_it"),
    [
        (None, None, True),
        (None, count(3, 50), True),
        (count(1, 50), count(1, 50), True),
        (count(1, 50), count(1, 51), True),
        (count(1, 50), count(1, 49), False),
        (count(1, 5, keys=3), count(1, 5, keys=2), False),
        (count(1, 50), None, False),
        # Made anew by somebody who did not know, and as high by now.
        (count(1, 50), count(1, 60, life="b"), False),
        (count(3, 50), count(1, 60), False),
        # Begun anew by an `allow`, also behind a loss.
        (count(1, 50), count(2, 0), True),
        (count(1, 50), count(2, 0, life="b"), True),
    ],
)
def test_what_a_store_may_answer_to_one_that_has_seen_a_count(
    seen: Count | None, found: Count | None, follows_from_it: bool
) -> None:
    assert follows(seen, found) is follows_from_it


@pytest.mark.parametrize(
    ("exposure", "kind", "used", "trip"),
    [
        (TEN, "requests", 9, None),
        (TEN, "requests", 10, Trip("limit", "its limit of 10 requests is reached")),
        (TEN, "errors", 99, None),
        (Exposure(errors=2), "errors", 3, Trip("limit", "its limit of 2 errors is reached")),
        (Exposure(keys=2), "keys", 2, Trip("limit", "its limit of 2 keys is reached")),
    ],
)
def test_a_limit_that_is_reached(exposure: Exposure, kind: str, used: int, trip: Trip | None) -> None:
    assert reached(exposure, kind, used) == trip


@pytest.mark.parametrize(
    ("ms", "text"), [(600_000, "10m"), (90_000, "90s"), (7_200_000, "2h"), (5_500, "5500ms")]
)
def test_a_lease_is_told_as_it_is_written(ms: int, text: str) -> None:
    assert lapsed(Exposure(lease_ms=ms)) == Trip("lease", f"nobody has renewed its lease for {text}")
    assert dict(written(Exposure(requests=3, lease_ms=ms))) == {"limit.requests": "3", "lease": text}


MANIFEST = """
registries: {local: {type: directory, path: /models}}
routes:
  digits:
    sticky: %s
    variants:
      stable: {model: local/digits@1%s}
      canary: {model: local/digits@2, weight: 10, %s}
"""


def parsed(canary: str, stable: str = "", sticky: str = "header:user") -> Any:
    return parse_manifest(MANIFEST % (sticky, stable, canary)).routes["digits"].variants


def test_limits_in_a_manifest() -> None:
    variants = parsed("limit: {requests: 1000, errors: 5, keys: 20}, lease: 10m")
    assert variants["canary"].exposure == Exposure(requests=1000, errors=5, keys=20, lease_ms=600_000)
    assert variants["stable"].exposure is msgspec.UNSET
    assert parsed("limit: {}")["canary"].exposure is msgspec.UNSET


@pytest.mark.parametrize(
    ("canary", "stable", "sticky", "field", "problem"),
    [
        ("limit: {requests: 0}", "", "none", "canary.limit.requests", "0 is not in 1..1000000000000"),
        ("limit: {keys: 100001}", "", "header:a", "canary.limit.keys", "is not in 1..100000"),
        ("limit: {errors: many}", "", "none", "canary.limit.errors", "Expected `int | null`, got `str`"),
        ("limit: {seconds: 3}", "", "none", "canary.limit.seconds", "no such field"),
        ("limit: 5", "", "none", "canary.limit", "Expected `object`, got `int`"),
        ("limit: {keys: 5}", "", "none", "canary.limit.keys", "needs sticky keys"),
        ("lease: soon", "", "none", "canary.lease", "is no duration"),
        ("lease: 2s", "", "none", "canary.lease", "shorter than 5 s"),
        ("lease: 5s", ", lease: 5s", "none", "stable.lease", "is on the fallback"),
        ("lease: 5s", ", limit: {errors: 5}", "none", "stable.limit", "is on the fallback"),
    ],
)
def test_limits_that_are_refused(canary: str, stable: str, sticky: str, field: str, problem: str) -> None:
    with pytest.raises(ManifestError) as refused:
        parsed(canary, stable, sticky)
    assert refused.value.path == f"routes.digits.variants.{field}"
    assert problem in refused.value.problem


def test_a_plan_shows_limits_and_keeps_them() -> None:
    manifest = parse_manifest(MANIFEST % ("none", "", "limit: {requests: 5}, lease: 90s"))
    resolved = {f"local/digits@{version}": pin(version) for version in "12"}
    plan = make_plan(manifest, resolved, in_force(route({"stable 1": 90, "canary 2": 10}, sticky="none")))
    assert [str(change) for change in plan.changes] == [
        "+ routes.digits.variants.canary.lease: 90s",
        "+ routes.digits.variants.canary.limit.requests: 5",
    ]
    held = InForce(revision=(1, 2), state=plan.state)  # type: ignore[arg-type]
    again = make_plan(manifest, resolved, held)
    assert not again.changes and again.state == plan.state


def test_a_document_without_limits_is_written_as_it_was_before_there_were_any() -> None:
    plain = in_force(route({"stable 1": 90, "canary 2": 10})).state
    assert b"exposure" not in encode_state(plain)
    with_limits = in_force(route({"stable 1": 90, "canary 2": 10}, limits={"canary": TEN})).state
    assert b'"exposure":{"requests":10}' in encode_state(with_limits)
    assert decode_state(encode_state(with_limits)) == with_limits


def test_a_document_with_a_limit_on_the_fallback_is_refused() -> None:
    with pytest.raises(StateError, match=r"variants\.stable is the fallback and has a limit"):
        check_state(in_force(route({"stable 1": 90, "canary 2": 10}, limits={"stable": TEN})).state)


class TestRenewing:
    HELD = in_force(route({"stable 1": 80, "a 2": 10, "b 3": 10}, limits={"a": LEASE, "b": TEN}))

    def test_one_and_all(self) -> None:
        key = DenyKey("digits", pin("2").digest)
        assert renew(self.HELD, "digits", None) == renew(self.HELD, "digits", "a") == [key]
        assert version_of(self.HELD, key) == "2"
        assert version_of(self.HELD, DenyKey("digits", "9" * 64)) is None

    @pytest.mark.parametrize(
        ("name", "variant", "kind", "text"),
        [
            ("nobody", None, UnknownName, "no route"),
            ("digits", "c", UnknownName, "no variant"),
            ("digits", "b", ChangeRefused, "b of digits has no lease to renew"),
        ],
    )
    def test_refused(self, name: str, variant: str | None, kind: type[Exception], text: str) -> None:
        with pytest.raises(kind, match=text):
            renew(self.HELD, name, variant)

    def test_what_is_denied_stays_denied(self) -> None:
        held = msgspec.structs.replace(self.HELD, denies=in_force(denied="2").denies)
        with pytest.raises(ChangeRefused, match="turnout allow digits 2"):
            renew(held, "digits", None)

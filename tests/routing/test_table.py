from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.state import InForce, Route
from gateway.routing.table import Arm, RouteEntry, compile_table, sticky_hasher, unit_interval
from tests.states import deny, in_force, pin, route

LAST_DRAW = 1 - 2**-53
"""The highest that `random.random` gives."""


def entry(held: InForce, name: str = "digits") -> RouteEntry:
    return compile_table(held)[name]


def picked(table: RouteEntry, key: bytes | None, draw: float = 0.0) -> str:
    arm = table.pick(key, lambda: draw)
    assert arm is not None
    return arm.variant


def assignments(table: RouteEntry, keys: int = 1000) -> list[str]:
    return [picked(table, b"user-%d" % number) for number in range(keys)]


class TestStickyPick:
    KEYS = [b"user-%d" % number for number in range(24)] + [b"", "käse".encode(), b"\xff\x00", b"x" * 1000]

    # Computed once, by a program of its own. They must never change: a release that assigns keys otherwise
    # moves the users of everybody who upgrades.
    @pytest.mark.parametrize(
        ("salt", "weights", "golden"),
        [
            ("digits", {"stable 1": 90, "canary 2": 10}, "cssssscssssssssscsscssssssss"),
            ("digits", {"stable 1": 50, "canary 2": 50}, "cscssccccssccsscccscssssscsc"),
            ("digits-2", {"stable 1": 50, "canary 2": 50}, "ccccccsccccccsssscsssccccccs"),
            ("exp", {"a 1": 34, "b 2": 33, "c 3": 33}, "acbbcbbbbbbcaabacbbcbbbbcaac"),
            ("", {"a 1": 1, "b 2": 1, "c 3": 1, "d 4": 1, "e 5": 96}, "eeeeeeeeeeeeeeeeeeeeeeeeeeee"),
        ],
    )
    def test_golden_vectors(self, salt: str, weights: dict[str, float], golden: str) -> None:
        table = entry(in_force(route(weights, salt=salt)))
        assert "".join(picked(table, key)[0] for key in self.KEYS) == golden

    def test_golden_units(self) -> None:
        digest = sticky_hasher("digits", "canary").digest()
        assert digest.hex().startswith("1ceb6d5aad80a50d")
        assert unit_interval(bytes(8)) == 0.5 / 2**52
        assert unit_interval(b"\xff" * 8) == 1 - 0.5 / 2**52

    def test_ninety_to_ten_over_ten_thousand_keys(self) -> None:
        counts = Counter(assignments(entry(in_force(route({"stable 1": 90, "canary 2": 10}))), 10_000))
        assert 900 <= counts["canary"] <= 1100

    def test_the_order_of_the_variants_does_not_matter(self) -> None:
        one = route({"stable 1": 50, "canary 2": 30, "x 3": 20})
        other = route({"x 3": 20, "canary 2": 30, "stable 1": 50}, fallback="stable")
        assert assignments(entry(in_force(one))) == assignments(entry(in_force(other)))

    def test_another_salt_is_another_assignment(self) -> None:
        half = {"stable 1": 50.0, "canary 2": 50.0}
        one, other = (assignments(entry(in_force(route(half, salt=salt)))) for salt in ("a", "b"))
        assert 400 < sum(a != b for a, b in zip(one, other, strict=True)) < 600

    @given(
        weights=st.lists(st.integers(0, 60), min_size=2, max_size=5).filter(any),
        raised=st.integers(0, 4),
        by=st.integers(1, 60),
    )
    def test_raising_one_weight_moves_keys_only_into_it(
        self, weights: list[int], raised: int, by: int
    ) -> None:
        raised %= len(weights)
        names = [f"v{index} {index}" for index in range(len(weights))]
        after = [weight + by if index == raised else weight for index, weight in enumerate(weights)]
        before_table = entry(in_force(route(dict(zip(names, weights, strict=True)))))
        after_table = entry(in_force(route(dict(zip(names, after, strict=True)))))
        for before, now in zip(assignments(before_table, 200), assignments(after_table, 200), strict=True):
            assert now in (before, f"v{raised}")


class TestExactShares:
    DRAWS = (0.0, 2**-53, 0.5, 0.9, LAST_DRAW)

    @pytest.mark.parametrize("draw", DRAWS)
    @pytest.mark.parametrize("weights", [{"a 1": 100, "b 2": 0}, {"b 2": 0, "a 1": 100}])
    def test_hundred_to_nothing_is_exactly_that(self, weights: dict[str, float], draw: float) -> None:
        table = entry(in_force(route(weights)))
        assert picked(table, None, draw) == "a"
        assert set(assignments(table, 2000)) == {"a"}

    @pytest.mark.parametrize("draw", DRAWS)
    def test_a_weight_of_zero_is_never_drawn(self, draw: float) -> None:
        # At both ends and in the middle: the draws 0 and 1-2^-53 are where an off-by-one would show.
        table = entry(in_force(route({"z 1": 0, "a 2": 50, "y 3": 0, "b 4": 50, "x 5": 0})))
        assert picked(table, None, draw) == ("a" if draw < 0.5 else "b")
        assert set(assignments(table, 2000)) == {"a", "b"}

    def test_draws_follow_the_weights(self) -> None:
        table = entry(in_force(route({"a 1": 90, "b 2": 10})))
        assert [picked(table, None, draw) for draw in (0.0, 0.8999, 0.9, LAST_DRAW)] == ["a", "a", "b", "b"]

    def test_one_basis_point_is_one(self) -> None:
        table = entry(in_force(route({"a 1": 99.99, "b 2": 0.01})))
        assert picked(table, None, 0.99989) == "a"
        assert picked(table, None, LAST_DRAW) == "b"

    @pytest.mark.parametrize("key", [None, b"user"])
    def test_all_zero_is_nobody(self, key: bytes | None) -> None:
        table = entry(in_force(route({"a 1": 0, "b 2": 0})))
        assert table.pick(key, lambda: 0.0) is None
        assert not table.takes_traffic
        assert table.arms["b"] == Arm(variant="b", pin=pin("2")), "an override still reaches it"


class TestDenies:
    THREE = route({"stable 1": 60, "canary 2": 30, "other 3": 10})

    def test_a_deny_moves_only_the_denied_keys_and_to_the_fallback(self) -> None:
        before = assignments(entry(in_force(self.THREE)))
        denied = assignments(entry(in_force(self.THREE, denied=["2"])))
        assert denied == ["stable" if variant == "canary" else variant for variant in before]
        assert "canary" in before
        lifted = assignments(entry(in_force(self.THREE, denied=[])))
        assert lifted == before

    def test_random_draws_move_likewise(self) -> None:
        draws = [number / 1000 for number in range(1000)]
        tables = [entry(in_force(self.THREE, denied=denied)) for denied in ([], ["2"])]
        before, after = ([picked(table, None, draw) for draw in draws] for table in tables)
        assert after == ["stable" if variant == "canary" else variant for variant in before]

    def test_shares_and_arms_tell_what_is_so(self) -> None:
        table = entry(in_force(self.THREE, denied=["2"]))
        assert table.shares_bp == {"stable": 9000, "canary": 0, "other": 1000}
        assert table.arms["canary"] == table.arms["stable"] == Arm(variant="stable", pin=pin("1"))
        assert table.denied == {pin("2").digest}

    def test_a_deny_of_another_route_or_digest_changes_nothing(self) -> None:
        held = in_force(self.THREE, self.THREE, denied=["9"])
        key, tomb = deny("2", "digits2")
        held = in_force(self.THREE, self.THREE)
        held.denies[key] = tomb  # type: ignore[index]
        assert entry(held).denied == frozenset()
        assert entry(held, "digits2").arms["canary"].pin.version == "1"

    def test_two_variants_of_one_digest_are_denied_together(self) -> None:
        table = entry(in_force(route({"stable 1": 50, "a 2": 25, "b 2": 25}), denied=["2"]))
        assert {arm.pin.version for arm in table.arms.values()} == {"1"}

    def test_a_denied_fallback_leads_to_the_newest_earlier_version_that_is_allowed(self) -> None:
        promoted = route({"stable 4": 90, "canary 5": 10}, previous=["3", "2", "1"])
        one = entry(in_force(promoted, denied=["4"]))
        assert one.fallback == Arm(variant="stable", pin=pin("3"))
        assert one.arms["canary"].pin.version == "5"
        two = entry(in_force(promoted, denied=["4", "3", "5"]))
        assert {(arm.variant, arm.pin.version) for arm in two.arms.values()} == {("stable", "2")}
        assert assignments(two, 50) == ["stable"] * 50
        assert two.shares_bp == {"stable": 10_000, "canary": 0}

    def test_without_any_fallback_the_others_share_its_keys(self) -> None:
        table = entry(in_force(route({"stable 1": 60, "a 2": 30, "b 3": 10}), denied=["1"]))
        assert table.fallback is None
        assert set(assignments(table)) == {"a", "b"}
        assert set(table.arms) == {"a", "b"}
        assert table.shares_bp == {"stable": 0, "a": 7500, "b": 2500}
        assert [picked(table, None, draw) for draw in (0.0, 0.74, 0.76, LAST_DRAW)] == ["a", "a", "b", "b"]

    def test_all_denied_is_nobody(self) -> None:
        table = entry(in_force(route({"stable 1": 60, "a 2": 40}, previous=["3"]), denied=["1", "2", "3"]))
        assert table.pick(b"user", lambda: 0.5) is None
        assert table.pick(None, lambda: 0.5) is None
        assert not table.arms
        assert table.required == ()
        assert table.spare is None


class TestWhatMustBeLoaded:
    @pytest.mark.parametrize(
        ("declared", "denied", "spare", "required"),
        [
            # A first version has nowhere to go back to.
            (route({"stable 1": 100}), [], None, "1"),
            # The one before is kept loaded, and no more than that one.
            (route({"stable 3": 100}, previous=["2", "1"]), [], "2", "32"),
            # It is denied: the one before it.
            (route({"stable 3": 100}, previous=["2", "1"]), ["2"], "1", "31"),
            # It serves by now: the one before it is next.
            (route({"stable 3": 100}, previous=["2", "1"]), ["3"], "1", "21"),
            (route({"stable 3": 100}, previous=["2", "1"]), ["3", "2"], None, "1"),
            # Variants without a weight are loaded as well: overrides reach them, weights raise them.
            (route({"stable 2": 100, "canary 3": 0}, previous=["1"]), [], "1", "231"),
            # The one before is a variant at the same time: that is where a rollback leads all the same.
            (route({"stable 2": 100, "old 1": 0}, previous=["1"]), [], "1", "21"),
            # A denied canary is not kept.
            (route({"stable 1": 90, "canary 2": 10}), ["2"], None, "1"),
            # The earlier release was published again under another number: that is no way back.
            (route({"stable 1": 100}, previous=["1b"]), [], None, "1"),
        ],
    )
    def test_spare_and_required(
        self, declared: Route, denied: list[str], spare: str | None, required: str
    ) -> None:
        table = entry(in_force(declared, denied=denied))
        assert (table.spare.version if table.spare else None) == spare
        assert "".join(pin.version for pin in table.required) == required


class TestOverridesAndVersions:
    def test_overrides_are_refused_unless_the_route_allows_them(self) -> None:
        with pytest.raises(PermissionError, match="does not allow turnout-variant"):
            entry(in_force(route({"a 1": 100}))).overrides_to("a")

    def test_an_override_reaches_any_weight(self) -> None:
        table = entry(in_force(route({"a 1": 100, "b 2": 0}, overrides=True)))
        assert table.overrides_to("b") == Arm(variant="b", pin=pin("2"))
        assert table.overrides_to("nobody") is None

    def test_an_override_to_a_denied_variant_leads_to_the_fallback(self) -> None:
        table = entry(in_force(route({"a 1": 100, "b 2": 0}, overrides=True), denied=["2"]))
        assert table.overrides_to("b") == Arm(variant="a", pin=pin("1"))

    def test_known_versions_are_of_the_routes_own_model(self) -> None:
        held = in_force(route({"stable 3": 90, "canary 4": 10}, previous=["2", "1"]))
        assert set(entry(held).known_versions) == {"1", "2", "3", "4"}
        assert entry(held).model == ("local", "digits")

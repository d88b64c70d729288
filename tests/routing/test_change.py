from __future__ import annotations

import pytest

from gateway.routing import change
from gateway.routing.change import ChangeRefused, UnknownName
from gateway.routing.state import Deny, DenyKey, InForce, Route
from tests.states import deny, in_force, pin, route

SPLIT = route({"stable 1": 90, "canary 2": 10})
THREE = route({"stable 1": 80, "canary 2": 15, "other 3": 5})
PROMOTED = route({"stable 2": 100, "canary 2": 0}, previous=["1"])


def set_weights(held: InForce, **percents: float) -> dict[str, float]:
    state = change.set_weights(held, "digits", percents)
    return {name: variant.weight_bp / 100 for name, variant in state.routes["digits"].variants.items()}


class TestWeights:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"canary": 20}, {"stable": 80, "canary": 20}),
            ({"canary": 0}, {"stable": 100, "canary": 0}),
            ({"canary": 100}, {"stable": 0, "canary": 100}),
            ({"stable": 60, "canary": 40}, {"stable": 60, "canary": 40}),
            ({"stable": 90}, {"stable": 90, "canary": 10}),
            ({"canary": 0.01}, {"stable": 99.99, "canary": 0.01}),
            ({"stable": 0, "canary": 0}, {"stable": 0, "canary": 0}),
            ({}, {"stable": 90, "canary": 10}),
        ],
    )
    def test_the_fallback_takes_what_the_others_leave(
        self, given: dict[str, float], expected: dict[str, float]
    ) -> None:
        assert set_weights(in_force(SPLIT), **given) == expected

    def test_who_is_not_named_keeps_its_weight(self) -> None:
        assert set_weights(in_force(THREE), canary=20) == {"stable": 75, "canary": 20, "other": 5}

    def test_nothing_else_changes(self) -> None:
        held = in_force(SPLIT, THREE)
        state = change.set_weights(held, "digits", {"canary": 20})
        assert state.routes["digits2"] == THREE
        assert state.registries == held.state.registries
        assert held == in_force(SPLIT, THREE), "what was in force is left alone"

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"stable": 90, "canary": 20}, "add up to 110 %"),
            ({"stable": 50}, "add up to 60 %"),
            ({"canary": 101}, "variants.canary.weight: 101 is not a weight"),
            ({"canary": -1}, "variants.canary.weight: -1 is not a weight"),
            ({"canary": float("nan")}, "variants.canary.weight: nan is not a weight"),
            ({"canary": 0.001}, "finer than"),
        ],
    )
    def test_what_is_refused(self, given: dict[str, float], says: str) -> None:
        with pytest.raises(ChangeRefused, match=says):
            set_weights(in_force(SPLIT), **given)

    def test_more_than_the_whole_for_the_others(self) -> None:
        with pytest.raises(ChangeRefused, match="add up to 120 %"):
            set_weights(in_force(THREE), canary=60, other=60)

    @pytest.mark.parametrize(("name", "given"), [("nobody", {}), ("digits", {"nobody": 5.0})])
    def test_unknown_names(self, name: str, given: dict[str, float]) -> None:
        with pytest.raises(UnknownName, match="nobody"):
            change.set_weights(in_force(SPLIT), name, given)

    def test_a_denied_version_gets_no_weight(self) -> None:
        held = in_force(SPLIT, denied=["2"])
        with pytest.raises(ChangeRefused, match="lift it first with: turnout allow digits 2"):
            set_weights(held, canary=20)
        assert set_weights(held, canary=0) == {"stable": 100, "canary": 0}
        assert set_weights(held, canary=10) == {"stable": 90, "canary": 10}, "that is what it has"


def rollback(declared: Route, *denied: str, version: str | None = None) -> list[str]:
    """The digests' first digits that are to be denied."""
    denies = change.rollback(in_force(declared, denied=denied), "digits", version)
    assert all(key.route == "digits" for key in denies)
    return sorted(key.digest[0] for key in denies)


class TestSeveralRoutes:
    def test_weights_are_one_state(self) -> None:
        held = in_force(SPLIT, THREE)
        state = change.set_weights_of(held, {"digits": {"canary": 20}, "digits2": {"other": 0}})
        assert state.routes["digits"].variants["canary"].weight_bp == 2000
        assert state.routes["digits2"].variants["stable"].weight_bp == 8500
        assert held == in_force(SPLIT, THREE)

    def test_rollbacks_are_one_set_of_denies(self) -> None:
        denies = change.rollback_of(in_force(SPLIT, THREE), {"digits": None, "digits2": "3"})
        assert {(key.route, version) for key, version in denies.items()} == {
            ("digits", "2"),
            ("digits2", "3"),
        }
        half = in_force(SPLIT, THREE, denied=["2"])
        assert {key.route for key in change.rollback_of(half, {"digits": None, "digits2": None})} == {
            "digits2"
        }

    def test_all_or_none(self) -> None:
        held = in_force(SPLIT, route({"stable 1": 100}))
        for routes, kind in (
            ({"digits": None, "digits2": None}, ChangeRefused),
            ({"digits": None, "nobody": None}, UnknownName),
            ({}, ChangeRefused),
        ):
            with pytest.raises(kind, match=r"digits2|nobody|at least one"):
                change.rollback_of(held, routes)
        for weights in ({"digits": {"canary": 20}, "digits2": {"stable": 50}}, {}):
            with pytest.raises(ChangeRefused, match=r"digits2|at least one"):
                change.set_weights_of(held, weights)


NOTHING_LEFT = [
    "nothing to roll back to",
    "would leave digits without any version",
    "would give its traffic to",
]


class TestRollback:
    @pytest.mark.parametrize(
        ("declared", "denied", "version", "expected"),
        [
            # Without a version: all that has a weight and is not the fallback's.
            (SPLIT, "", None, ["2"]),
            (THREE, "", None, ["2", "3"]),
            (route({"stable 1": 0, "canary 2": 100}), "", None, ["2"]),
            # What has no weight is not new on the route.
            (route({"stable 1": 90, "canary 2": 10, "other 3": 0}), "", None, ["2"]),
            # The canary has the fallback's version: the fallback itself goes, if there is an earlier one.
            (PROMOTED, "", None, ["2"]),
            (route({"stable 2": 50, "canary 2": 50}, previous=["1"]), "", None, ["2"]),
            # A signal that comes twice, or ten times, walks no further back.
            (SPLIT, "2", None, []),
            (THREE, "23", None, []),
            (THREE, "2", None, ["3"]),
            (PROMOTED, "2", None, []),
            (route({"stable 3": 100}, previous=["2", "1"]), "3", None, []),
            # The earlier version is a variant at the same time: it is a way back like any.
            (route({"stable 2": 100, "old 1": 0}, previous=["1"]), "", None, ["2"]),
            # With a version: that one, wherever it is.
            (SPLIT, "", "2", ["2"]),
            # The fallback's, once its traffic is elsewhere, or an earlier one takes it.
            (route({"stable 1": 0, "canary 2": 100}), "", "1", ["1"]),
            (route({"stable 2": 90, "canary 3": 10}, previous=["1"]), "", "2", ["2"]),
            (THREE, "", "3", ["3"]),
            (route({"stable 3": 100}, previous=["2", "1"]), "", "3", ["3"]),
            (route({"stable 3": 100}, previous=["2", "1"]), "", "1", ["1"]),
            (route({"stable 3": 100}, previous=["2", "1"]), "3", "2", ["2"]),
            (route({"stable 1": 100, "canary 2": 0}), "", "2", ["2"]),
            (SPLIT, "2", "2", []),
            # All weights are 0: nothing is taken away.
            (route({"stable 1": 0, "canary 2": 0}), "", "2", ["2"]),
        ],
    )
    def test_what_is_denied(
        self, declared: Route, denied: str, version: str | None, expected: list[str]
    ) -> None:
        assert rollback(declared, *denied, version=version) == expected

    @pytest.mark.parametrize(
        ("declared", "denied", "version"),
        [
            (route({"stable 1": 100}), "", None),
            (route({"stable 1": 100}), "", "1"),
            (route({"stable 2": 100}, previous=["1"]), "1", None),
            (route({"stable 2": 100}, previous=["1"]), "2", "1"),
            # Whoever may only roll back must not move everybody to the canary.
            (SPLIT, "", "1"),
            (THREE, "2", "1"),
            # The same bytes under another number are no way back.
            (route({"stable 1": 100}, previous=["1b"]), "", None),
            # Somebody denied the fallback: what is left must not be denied as well.
            (SPLIT, "1", None),
            (SPLIT, "1", "2"),
            (route({"a 1": 100, "b 2": 0, "c 2": 0}), "2", "1"),
            # Nobody takes traffic, and nobody could.
            (route({"stable 1": 0, "canary 2": 0}), "2", "1"),
            # What would be left has no weight, and nobody gets the keys.
            (route({"stable 1": 100, "canary 2": 0}), "", None),
            (route({"stable 1": 100, "canary 2": 0}), "", "1"),
        ],
    )
    def test_a_rollback_to_nothing_is_refused(
        self, declared: Route, denied: str, version: str | None
    ) -> None:
        with pytest.raises(ChangeRefused, match="|".join(NOTHING_LEFT)) as refused:
            rollback(declared, *denied, version=version)
        assert not isinstance(refused.value, UnknownName)

    def test_two_variants_of_one_digest_are_one_deny(self) -> None:
        declared = route({"stable 1": 80, "a 2": 10, "b 2": 10})
        assert change.rollback(in_force(declared), "digits") == {DenyKey("digits", "2" * 64): "2"}

    def test_one_number_of_two_releases_is_two_denies(self) -> None:
        declared = route({"stable 1": 80, "a 2": 10, "b 3": 10})
        again = {**declared.variants}
        again["b"] = type(again["b"])(pin=pin("3", version="2"), reference="x", weight_bp=1000)
        declared = Route(variants=again, fallback="stable")
        assert rollback(declared, version="2") == ["2", "3"]

    def test_unknown_names(self) -> None:
        with pytest.raises(UnknownName, match=r"no version '9' \(it has: 1, 2\)"):
            rollback(SPLIT, version="9")
        with pytest.raises(UnknownName, match="no route 'nobody'"):
            change.rollback(in_force(SPLIT), "nobody")

    def test_names_out_of_signals_are_cut(self) -> None:
        for names in (("r" * 10**6, None), ("digits", "v" * 10**6)):
            with pytest.raises(UnknownName) as refused:
                change.rollback(in_force(SPLIT), *names)
            assert len(str(refused.value)) < 300


class TestAllow:
    def test_the_denies_of_a_version(self) -> None:
        held = in_force(SPLIT, THREE, denied=["2"])
        key, other = deny("2", "digits2")
        held = InForce(revision=held.revision, state=held.state, denies={**held.denies, key: other})
        assert change.allow(held, "digits", "2") == [DenyKey("digits", "2" * 64)]

    def test_what_is_not_denied(self) -> None:
        with pytest.raises(UnknownName, match=r"version '1' is not denied on digits \(denied: 2\)"):
            change.allow(in_force(SPLIT, denied=["2"]), "digits", "1")
        with pytest.raises(UnknownName, match="denied: none"):
            change.allow(in_force(SPLIT), "digits", "1" * 10**6)
        with pytest.raises(UnknownName, match="no route"):
            change.allow(in_force(SPLIT), "nobody", "1")

    def test_denies_of_routes_that_are_gone(self) -> None:
        held = in_force(SPLIT, denied=["2"])
        gone = DenyKey("gone", "2" * 64)
        held = InForce(
            revision=held.revision, state=held.state, denies={**held.denies, gone: Deny(version="2")}
        )
        assert change.deny_orphans(held) == [gone]


class TestSummary:
    def test_only_what_serves_otherwise(self) -> None:
        before = in_force(THREE, SPLIT)
        assert change.summary(before, before) == []
        (one,) = change.summary(before, in_force(THREE, SPLIT, denied=["3"]))
        assert one["route"] == "digits"
        assert one["before"]["other"] == {"version": "3", "weight": 5, "share": 5}
        assert one["after"]["other"] == {"version": "3", "weight": 5, "share": 0, "denied": "3"}
        assert one["after"]["stable"] == {"version": "1", "weight": 80, "share": 85}

    def test_a_denied_fallback_shows_who_answers_for_it(self) -> None:
        (one,) = change.summary(in_force(PROMOTED), in_force(PROMOTED, denied=["2"]))
        assert one["after"]["stable"] == {"version": "1", "weight": 100, "share": 100, "denied": "2"}

    def test_routes_come_and_go(self) -> None:
        assert change.summary(in_force(), in_force(SPLIT))[0]["before"] is None
        assert change.summary(in_force(SPLIT), in_force())[0]["after"] is None

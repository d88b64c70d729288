from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
import yaml

from gateway.routing.change import ChangeRefused
from gateway.routing.manifest import Manifest, parse_manifest
from gateway.routing.plan import Plan, make_plan, same_release
from gateway.routing.state import EMPTY, PREVIOUS_KEPT, InForce, Pin, Revision
from tests.states import in_force, pin


def manifest(weights: Mapping[str, float], **route: object) -> Manifest:
    """`manifest({"stable@champion": 90, "canary@2": 10})`, of a route `digits`."""
    variants = {
        text.split("@")[0]: {"model": f"local/digits@{text.split('@')[1]}", "weight": percent}
        for text, percent in weights.items()
    }
    declared = {
        "registries": {"local": {"type": "directory", "path": "/models"}},
        "routes": {"digits": {"variants": variants, **route}},
    }
    return parse_manifest(yaml.safe_dump(declared, sort_keys=False))


def plan(declared: Manifest, held: InForce, **aliases: str | Pin) -> Plan:
    """What follows where each alias leads to the version given, and a number to itself."""
    resolved = {}
    for _, _, reference in declared.references():
        found = aliases.get(reference.revision, reference.revision)
        resolved[str(reference)] = found if isinstance(found, Pin) else pin(found)
    return make_plan(declared, resolved, held)


def held(planned: Plan, denied: list[str] | None = None) -> InForce:
    denies = in_force(denied=denied or []).denies
    return InForce(revision=Revision(1, 1), state=planned.state, denies=denies)


def lines(planned: Plan) -> list[str]:
    return [str(change) for change in planned.changes]


def versions(planned: Plan) -> dict[str, str]:
    return {name: variant.pin.version for name, variant in planned.state.routes["digits"].variants.items()}


def previous(planned: Plan) -> list[str]:
    return [pin.version for pin in planned.state.routes["digits"].previous]


SPLIT = manifest({"stable@champion": 90, "canary@challenger": 10})
WHOLE = manifest({"stable@champion": 100})
FIRST = plan(SPLIT, EMPTY, champion="1", challenger="2")
SERVING = held(plan(WHOLE, EMPTY, champion="1"))


def test_a_new_route_is_all_news() -> None:
    assert versions(FIRST) == {"stable": "1", "canary": "2"}
    assert previous(FIRST) == []
    assert FIRST.notes == []
    assert FIRST.state.manifest_sha256 == SPLIT.sha256
    assert all(change.before is None for change in FIRST.changes)
    assert "+ registries.local: directory path=/models" in lines(FIRST)
    assert "+ routes.digits.variants.canary.weight: 10 %" in lines(FIRST)
    assert "+ routes.digits.variants.canary.version: 2 (222222222222)" in lines(FIRST)
    assert "+ routes.digits.fallback: stable" in lines(FIRST)


def test_the_same_again_is_nothing() -> None:
    again = plan(SPLIT, held(FIRST), champion="1", challenger="2")
    assert (again.changes, again.notes) == ([], [])
    assert again.state == FIRST.state


def test_an_alias_that_moved_brings_its_version_and_keeps_the_old_one() -> None:
    moved = plan(WHOLE, SERVING, champion="2")
    assert lines(moved) == ["~ routes.digits.variants.stable.version: 1 (111111111111) -> 2 (222222222222)"]
    assert previous(moved) == ["1"]


def test_a_weight_that_changed_keeps_the_pins() -> None:
    planned = plan(manifest({"stable@champion": 80, "canary@challenger": 20}), held(FIRST), champion="1",
                   challenger="2")  # fmt: skip
    assert lines(planned) == [
        "~ routes.digits.variants.canary.weight: 10 % -> 20 %",
        "~ routes.digits.variants.stable.weight: 90 % -> 80 %",
    ]
    assert previous(planned) == []


def test_what_is_left_out_goes() -> None:
    planned = plan(WHOLE, held(FIRST), champion="1")
    assert versions(planned) == {"stable": "1"}
    assert any(line.startswith("- routes.digits.variants.canary.version: 2") for line in lines(planned))
    gone = make_plan(parse_manifest("routes: {}"), {}, held(FIRST))
    assert gone.state.routes == {}
    assert all(change.after is None for change in gone.changes)


def test_the_options_of_a_route_are_changes_too() -> None:
    engine = {"threads": 2, "max_queue": 1024, "batching": False, "providers": ["A", "B"]}
    planned = plan(manifest({"stable@champion": 100}, timeout="1s", engine=engine), SERVING, champion="1")
    assert lines(planned) == [
        "+ routes.digits.engine.batching: false",
        "+ routes.digits.engine.providers: [A, B]",
        "+ routes.digits.engine.threads: 2",
        "~ routes.digits.timeout_ms: 30000 -> 1000",
    ]
    back = plan(manifest({"stable@champion": 100}), held(planned), champion="1")
    assert "- routes.digits.engine.threads: 2" in lines(back)


class TestPrevious:
    def test_the_newest_first_and_a_few(self) -> None:
        now = SERVING
        for version in "23456789":
            now = held(plan(WHOLE, now, champion=version))
        kept = [pin.version for pin in now.state.routes["digits"].previous]
        assert kept == ["8", "7", "6", "5", "4"]
        assert len(kept) == PREVIOUS_KEPT

    def test_back_to_an_earlier_version(self) -> None:
        two = held(plan(WHOLE, SERVING, champion="2"))
        back = plan(WHOLE, two, champion="1")
        assert (versions(back), previous(back)) == ({"stable": "1"}, ["2"])

    def test_what_was_denied_is_nothing_to_return_to(self) -> None:
        # 2 was denied and 1 has served since: 3 replaces 1, not 2.
        two = held(plan(WHOLE, SERVING, champion="2"), denied=["2"])
        assert previous(plan(WHOLE, two, champion="3")) == ["1"]

    def test_of_a_denied_fallback_that_stays(self) -> None:
        two = held(plan(WHOLE, SERVING, champion="2"), denied=["2"])
        assert previous(plan(WHOLE, two, champion="2")) == ["1"]

    def test_another_fallback(self) -> None:
        promoted = plan(manifest({"stable@1": 0, "canary@2": 100}, fallback="canary"), held(FIRST))
        assert previous(promoted) == ["1"]


class TestDenied:
    def test_an_alias_to_a_denied_version_is_not_followed(self) -> None:
        planned = plan(WHOLE, held(plan(WHOLE, EMPTY, champion="1"), denied=["2"]), champion="2")
        assert versions(planned) == {"stable": "1"}
        assert planned.changes == []
        assert planned.notes == [
            "digits.stable: the registry points to version 2, which is denied; "
            "version 1 stays until: turnout allow digits 2"
        ]

    def test_nor_is_a_number_of_its_own(self) -> None:
        # The same release under a new number has the same digest.
        again = pin("2", version="7")
        planned = plan(WHOLE, held(plan(WHOLE, EMPTY, champion="1"), denied=["2"]), champion=again)
        assert versions(planned) == {"stable": "1"}

    def test_a_denied_version_that_is_in_place_stays_and_is_noted(self) -> None:
        planned = plan(SPLIT, held(FIRST, denied=["2"]), champion="1", challenger="2")
        assert planned.changes == []
        assert planned.notes == ["digits.canary: version 2 is denied; turnout allow digits 2 lifts it"]

    def test_a_new_variant_cannot_start_denied(self) -> None:
        with pytest.raises(
            ChangeRefused, match=r"digits\.canary: version 2 is denied on digits: allow it first"
        ):
            plan(SPLIT, in_force(*SERVING.state.routes.values(), denied=["2"]), champion="1", challenger="2")

    def test_a_deny_is_on_one_route(self) -> None:
        other = msgspec.structs.replace(SERVING, denies=in_force(denied=["2"]).denies)
        other = msgspec.structs.replace(
            other, denies={type(key)("elsewhere", key.digest): deny for key, deny in other.denies.items()}
        )
        assert versions(plan(WHOLE, other, champion="2")) == {"stable": "2"}


class TestReleases:
    def test_the_same_number_of_another_release_is_a_change(self) -> None:
        remade = pin("9", version="1", identity="second")
        planned = plan(WHOLE, SERVING, champion=remade)
        assert lines(planned) == [
            "~ routes.digits.variants.stable.version: 1 (111111111111) -> 1 (999999999999)"
        ]
        assert [pin.digest[0] for pin in planned.state.routes["digits"].previous] == ["1"]

    def test_a_release_whose_digest_is_not_known_yet_keeps_its_pin(self) -> None:
        planned = plan(WHOLE, SERVING, champion=pin("1", digest=""))
        assert planned.state == SERVING.state
        fresh = plan(WHOLE, EMPTY, champion=pin("1", digest=""))
        assert "+ routes.digits.variants.stable.version: 1 (not fetched yet)" in lines(fresh)

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            (pin("1"), pin("1"), True),
            (pin("1"), pin("1", digest=""), True),
            (pin("1", digest=""), pin("1", digest=""), True),
            (pin("1"), pin("1", digest="2" * 64), False),
            (pin("1"), pin("1", identity="x"), False),
            (pin("1", identity="x", digest=""), pin("1", identity="y", digest=""), False),
            (pin("1"), pin("1", model="other"), False),
            (pin("1"), pin("1", registry="other"), False),
            (pin("1"), pin("2", digest="1" * 64), False),
        ],
    )
    def test_same_release(self, one: Pin, other: Pin, same: bool) -> None:
        assert same_release(one, other) is same
        assert same_release(other, one) is same

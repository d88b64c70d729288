from __future__ import annotations

from typing import Any

import pytest

from gateway.control.as_of import AsOf, NotTold, Served
from gateway.control.store import HistoryRecord
from gateway.routing.change import UnknownName
from gateway.routing.state import EMPTY, InForce
from tests.states import in_force, route

NOW = in_force(route({"stable 1": 100}))
"""What is in force when the history is read, of routes that it may not mention."""


def line(
    us: int, rev: int, *changes: tuple[str, str | None, str | None], type_: str = "put"
) -> HistoryRecord:
    """`changes`: route, and what served it before and after; letters stand for the mixes."""
    return HistoryRecord(
        type=type_,
        epoch=1,
        rev=rev,
        us=us,
        actor="ann",
        reason=f"reason {rev}",
        changes=[
            {"route": route, "before": mix(before), "after": mix(after)} for route, before, after in changes
        ],
    )


def mix(letter: str | None) -> dict[str, str] | None:
    return None if letter is None else {"stable": letter}


HISTORY = [
    line(100, 1, ("fraud", None, "A"), ("digits", None, "K")),
    line(200, 2, ("fraud", "A", "B")),
    line(200, 2, type_="reject"),
    line(300, 3, ("digits", "K", None), ("spam", None, "X")),
    line(400, 4, ("fraud", "B", "C"), type_="deny"),
]


def ask(at: int, route: str | None, records: list[HistoryRecord], now: InForce = EMPTY) -> dict[str, Served]:
    then = AsOf(at, route)
    for record in records:  # a line at a time, as pages may end anywhere
        then.read([record])
    return then.served(now)


@pytest.mark.parametrize(
    ("at", "records", "route", "serving", "since", "until"),
    [
        (100, HISTORY, "fraud", "A", "1.1", "1.2"),  # at the very moment of the change
        (199, HISTORY, "fraud", "A", "1.1", "1.2"),
        (200, HISTORY, "fraud", "B", "1.2", "1.4"),
        (350, HISTORY, "fraud", "B", "1.2", "1.4"),  # other routes' changes in between are none of its
        (400, HISTORY, "fraud", "C", "1.4", None),
        (9999, HISTORY, "fraud", "C", "1.4", None),
        (299, HISTORY, "digits", "K", "1.1", "1.3"),
        (300, HISTORY, "digits", None, "1.3", None),  # removed
        (299, HISTORY, "spam", None, None, "1.3"),  # not there yet
        # Trimmed: what was before the first change that is left is what that change says.
        (350, HISTORY[3:], "fraud", "B", None, "1.4"),
        (300, HISTORY[3:], "fraud", "B", None, "1.4"),
        # A clock that went back: the order of the lines is the order of the changes.
        (150, [line(100, 1, ("f", None, "A")), line(200, 2, ("f", "A", "B")), line(150, 3, ("f", "B", "C"))],
         "f", "C", "1.3", None),
    ],
)  # fmt: skip
def test_what_served(
    at: int,
    records: list[HistoryRecord],
    route: str,
    serving: str | None,
    since: str | None,
    until: str | None,
) -> None:
    (served,) = ask(at, route, records).values()
    assert served.serving == mix(serving)
    assert (served.since and served.since.revision, served.until and served.until.revision) == (since, until)


def test_every_route_that_there_was() -> None:
    assert {name: served.serving for name, served in ask(250, None, HISTORY).items()} == {
        "digits": mix("K"),
        "fraud": mix("B"),
    }
    assert set(ask(350, None, HISTORY)) == {"fraud", "spam"}


def test_a_route_that_nobody_changed_serves_as_now() -> None:
    for asked in ("digits", None):
        served = ask(250, asked, [line(200, 5, ("other", None, "A"))], NOW)["digits"]
        assert served.serving is not None and "share" in next(iter(served.serving.values()))
        assert (served.since, served.until) == (None, None)


def test_who_and_why() -> None:
    served = ask(250, "fraud", HISTORY)["fraud"]
    assert served.since is not None
    assert (served.since.us, served.since.type, served.since.actor, served.since.reason) == (
        200, "put", "ann", "reason 2",
    )  # fmt: skip


def test_the_revision_then() -> None:
    then = AsOf(350)
    then.read(HISTORY)
    assert then.revision == "1.3"


@pytest.mark.parametrize(
    ("at", "records", "says"),
    [
        (99, HISTORY, "begins with revision 1.1"),
        (250, HISTORY[3:], "begins with revision 1.3"),
        (250, [], "is empty"),
    ],
)
def test_it_does_not_guess(at: int, records: list[HistoryRecord], says: str) -> None:
    with pytest.raises(NotTold, match=says):
        ask(at, "fraud", records, NOW)


def test_an_unknown_route() -> None:
    with pytest.raises(UnknownName, match="there is no route 'nobody'"):
        ask(250, "nobody", HISTORY, NOW)


def test_changes_that_somebody_wrote_by_hand() -> None:
    changes: list[dict[str, Any]] = [{}, {"route": 7}, {"route": "fraud"}]
    strange = HistoryRecord(type="put", epoch=1, rev=2, us=150, actor="", changes=changes)
    assert ask(160, "fraud", [HISTORY[0], strange])["fraud"].serving is None

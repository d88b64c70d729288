"""The judge finds each kind of violation in a made-up history, and none where an order of events explains it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.checker import check
from tests.faults.figures import late_s, slow
from tests.faults.history import CANARY, STABLE, Answer, Change, Fault, History, Label, Standing, read_answers

S = 10**9


def answer(at_s: float, version: int = CANARY, label: str = "1.1", **other: object) -> Answer:
    """Sent at that time, and received 0.1 s later."""
    made = Answer(
        sent_ns=int(at_s * S),
        received_ns=int((at_s + 0.1) * S),
        connection=1,
        key=1,
        replica=0,
        route=0,
        version=version,
        status=200,
        label=Label.parse(label),
    )
    return made._replace(**other)  # type: ignore[arg-type]


def change(
    at_s: float,
    value: int,
    *acknowledged_s: float,
    register: str = "denied",
    label: str = "1.2",
    **other: object,
) -> Change:
    """Answered half a second after it was sent; acknowledged by replica 0, 1, … at these times."""
    fields: dict[str, object] = {
        "route": 0,
        "register": register,
        "value": value,
        "by": "api",
        "sent_ns": int(at_s * S),
        "replied_ns": int((at_s + 0.5) * S),
        "outcome": "done",
        "label": Label.parse(label),
        "acknowledged_ns": {replica: int(moment * S) for replica, moment in enumerate(acknowledged_s)},
    }
    return Change(**{**fields, **other})  # type: ignore[arg-type]


def fault(began_s: float, over_s: float, **other: object) -> Fault:
    return Fault(kind="kill", target="", began_ns=int(began_s * S), over_ns=int(over_s * S), **other)  # type: ignore[arg-type]


def history(
    *changes: Change, faults: list[Fault] | None = None, final: list[Standing] | None = None
) -> History:
    return History(
        seed=0,
        replicas=1,
        routes=1,
        changes=list(changes),
        faults=faults or [],
        final=final or [],
        ended_ns=100 * S,
    )


def kinds(made: History, *answers: Answer) -> list[str]:
    return [violation.kind for violation in check(made, answers)]


ROLLBACK = change(1, 1, 2)
ALLOW = change(5, 0, 6, label="1.3")
DENIED = "denied version answered"
ABSENT = "an acknowledged change is not in force"


@pytest.mark.parametrize(
    ("at_s", "version", "found"),
    [
        (0.5, CANARY, []),
        (0.95, STABLE, []),  # half of the traffic is the stable version's at any time
        (1.5, CANARY, []),  # asked for, and not acknowledged yet
        (1.95, CANARY, []),  # sent before the acknowledgement: it may have been answered before it as well
        (2.05, CANARY, [DENIED]),
        (2.05, STABLE, []),
        (4.85, CANARY, [DENIED]),
        (4.95, CANARY, []),  # received when the version may be allowed again
        (7.0, CANARY, []),
    ],
)
def test_a_denied_version_is_not_answered_after_the_acknowledgement(
    at_s: float, version: int, found: list[str]
) -> None:
    label = "1.3" if at_s > 6 else "1.2" if at_s > 1 else "1.1"
    assert kinds(history(ROLLBACK, ALLOW), answer(at_s, version, label)) == found


def test_the_answer_of_a_rollback_is_its_acknowledgement_by_the_replica_that_was_asked() -> None:
    rollback = change(1, 1, 9, 9, through=0, here_ns=2 * S)
    made = history(rollback)
    made.replicas = 2
    assert kinds(made, answer(3, CANARY, replica=0)) == [DENIED]
    assert kinds(made, answer(3, CANARY, replica=1)) == []


def test_a_change_that_is_acknowledged_is_in_force_until_the_next_one() -> None:
    made = history(change(1, 0, 2, register="weight"), change(5, 100, 6, register="weight", label="1.3"))
    assert kinds(made, answer(3, CANARY, "1.2")) == [ABSENT]
    assert kinds(made, answer(5.5, STABLE, "1.2"), answer(5.7, CANARY, "1.3")) == []
    assert kinds(made, answer(7, STABLE, "1.3")) == [ABSENT]


def test_a_change_without_an_answer_may_have_been_in_force_until_it_was_found_that_it_is_not() -> None:
    unknown = change(1, 1, outcome="unknown", register="denied")
    weight = change(0.1, 100, 0.2, register="weight", label="1.1")
    assert kinds(history(weight, unknown), answer(1.2, STABLE)) == []
    assert kinds(history(weight, unknown), answer(2, STABLE)) == [ABSENT]


def test_a_refused_change_is_never_in_force() -> None:
    weight = change(0.1, 100, 0.2, register="weight", label="1.1")
    assert kinds(history(weight, change(1, 1, outcome="refused")), answer(1.2, STABLE)) == [ABSENT]


@pytest.mark.parametrize(
    ("acknowledged_s", "durable", "loses", "found"),
    [
        (3.5, False, True, []),
        (2, False, True, [ABSENT]),  # every replica had it when the fault began
        (3.5, True, True, [ABSENT]),
        (3.5, False, False, [ABSENT]),
    ],
)
def test_only_what_not_everybody_has_may_be_lost_and_only_with_the_store(
    acknowledged_s: float, durable: bool, loses: bool, found: list[str]
) -> None:
    weight = change(1, 100, acknowledged_s, register="weight", durable=durable)
    assert kinds(history(weight, faults=[fault(3, 4, loses=loses)]), answer(5, STABLE, "1.2")) == found


def test_a_deny_that_was_lifted_may_come_back_with_what_the_store_lost() -> None:
    allow = change(5, 0, 6, label="1.3", durable=False)
    made = history(change(0.1, 100, 0.2, register="weight", label="1.1"), ROLLBACK, allow)
    made.faults = [fault(7, 8, loses=True)]
    assert kinds(made, answer(9, STABLE, "1.3")) == []
    allow.durable = True
    assert kinds(made, answer(9, STABLE, "1.3")) == [ABSENT]


def test_a_deny_is_not_lost_with_the_store() -> None:
    made = history(change(1, 1, 2, durable=False), faults=[fault(3, 4, loses=True)])
    assert kinds(made, answer(5, CANARY, "1.2")) == [DENIED]


def test_an_answer_is_not_older_than_what_its_replica_had_acknowledged() -> None:
    made = history(change(1, 100, 2, register="weight", label="1.7"))
    assert kinds(made, answer(1.95, label="1.6")) == []
    assert kinds(made, answer(2.5, label="1.6")) == ["older than what was acknowledged"]
    assert kinds(made, answer(2.5, label="1.7+1"), answer(3, label="2.1")) == []


@pytest.mark.parametrize("later", ["1.6", "1.7", "0.9"])
def test_revisions_never_go_back_on_a_connection(later: str) -> None:
    first, second = answer(1, label="1.7+1"), answer(2, label=later)
    assert kinds(history(), first, second) == ["revision went back on a connection"]
    assert kinds(history(), first, second._replace(connection=2)) == []
    assert kinds(history(), second, first._replace(sent_ns=3 * S, received_ns=4 * S)) == []


def test_one_revision_gives_a_key_one_version() -> None:
    first, other = answer(1, CANARY), answer(2, STABLE, replica=0, connection=2)
    assert kinds(history(), first, other) == ["one revision, two answers"]
    assert kinds(history(), first, other._replace(key=2)) == []
    assert kinds(history(), first, other._replace(label=Label(1, 2))) == []
    ahead = Label(1, 1, 1)
    assert kinds(history(), first._replace(label=ahead), other._replace(label=ahead)) == []


def test_a_failed_prediction() -> None:
    assert kinds(history(), answer(1, 0, status=503)) == ["failed prediction"]
    assert kinds(history(), answer(1, 0, status=0)) == ["failed prediction"]


@pytest.mark.parametrize(
    ("at_s", "status", "replica", "found"),
    [
        (2.95, 0, 0, []),  # under way when the worker was killed
        (3.05, 0, 0, []),
        (3.05, 503, 0, ["failed prediction"]),  # an error is no loss
        (3.05, 0, 1, ["failed prediction"]),  # another replica's
        (2.5, 0, 0, ["failed prediction"]),  # before
        (3.3, 0, 0, ["failed prediction"]),  # after
    ],
)
def test_what_is_in_flight_on_a_killed_worker_may_be_lost(
    at_s: float, status: int, replica: int, found: list[str]
) -> None:
    made = history(faults=[fault(3, 3.1, replica=0)])
    assert kinds(made, answer(at_s, 0, status=status, replica=replica)) == found


def test_a_flip_that_one_replica_never_acknowledged_is_missed() -> None:
    made = history(change(1, 1, 2))
    made.replicas = 2
    assert kinds(made) == ["missed"]
    assert kinds(history(change(1, 1, outcome="refused"), change(2, 1, outcome="unknown"))) == []


def test_the_end_shows_the_last_acknowledged_change() -> None:
    end = [Standing(where="replica 0", route=0, denied=0, weight=50)]
    assert kinds(history(ROLLBACK, final=end)) == ["acknowledged change lost"]
    assert kinds(history(ROLLBACK, ALLOW, final=end)) == []


def test_late_is_what_comes_after_the_last_fault() -> None:
    slow_change = change(1, 1, 9)
    assert late_s(slow_change, []) == 8
    assert late_s(slow_change, [fault(2, 4), fault(5, 7), fault(0, 0.5)]) == 2
    assert late_s(slow_change, [fault(5, 12)]) == 0
    met = [fault(2, 4, whole_ns=5 * S), fault(5, 7, whole_ns=8 * S)]
    assert slow(history(slow_change, faults=met)) == []
    assert len(slow(history(slow_change))) == 1


def test_slow_is_who_stays_broken_and_who_notices_late() -> None:
    never, late = fault(1, 2), fault(1, 2, whole_ns=6 * S)
    blind = fault(1, 4, whole_ns=5 * S, noticed_ns={0: int(3.5 * S), 1: int(2.5 * S)})
    assert len(slow(history(faults=[never]))) == len(slow(history(faults=[late]))) == 1
    assert [line[:9] for line in slow(history(faults=[blind]))] == ["replica 0"]


def test_answers_come_back_as_they_were_written(tmp_path: object) -> None:
    written = [answer(1.5, label="3.70000+9"), answer(2, 0, "0.0", status=0)]
    path = tmp_path / "answers"  # type: ignore[operator]
    # A process that is killed may leave half a row.
    path.write_bytes(b"".join(each.packed() for each in written) + b"half")
    assert list(read_answers(path)) == written
    assert Counter(read_answers(path)) == Counter(written)

"""Judges a recorded history: which promises of the control plane were broken in it. Pure.

An answer is made somewhere between its first byte sent and its last byte received, and a change comes into force
somewhere between its first byte sent and its acknowledgement. So a violation is only what no order of these
moments explains. docs/control-plane.md has the promises in words.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.faults.history import CANARY, STABLE, Answer, Change, Fault, History, Label, Standing

DEATH_NS = 5_000_000
"""A client that has just seen an idle connection alive may still write to it, when its worker is gone."""
DEMOTED_NS = 5_000_000_000
"""A primary goes on taking writes until a sentinel has told it that it is none any more, and loses them then."""


class Violation(NamedTuple):
    kind: str
    text: str


def check(history: History, answers: Iterable[Answer]) -> list[Violation]:
    """Every broken promise, once for each answer or change that shows it."""
    kept = list(answers)
    return [
        *_answers_of_other_states(history, kept),
        *_older_than_acknowledged(history, kept),
        *_backwards(kept),
        *_two_answers_of_one_revision(kept),
        *_failed(history.faults, kept),
        *_missed(history),
        *_lost(history),
    ]


class Register:
    """One value of one route, written by one operator after the other, read by every answer."""

    def __init__(
        self, initial: int, changes: Iterable[Change], faults: Iterable[Fault], replicas: int
    ) -> None:
        self._initial = initial
        self._replicas = replicas
        self._writes = [change for change in changes if change.outcome == "done"]
        self._unknown = [change for change in changes if change.outcome == "unknown"]
        self._losing = [fault for fault in faults if fault.loses]
        self._in_force: dict[int, tuple[list[int], list[int]]] = {}

    def possible(self, replica: int, sent_ns: int, received_ns: int) -> set[int]:
        """The values that an answer of this replica may show."""
        latest = self._latest(replica, sent_ns)
        values = self._from(latest, received_ns)
        for write in self._writes[latest + 1 :]:
            if write.sent_ns > received_ns:
                break
            values.add(write.value)
        for write in self._unknown:
            if write.sent_ns <= received_ns and sent_ns <= write.replied_ns:
                values.add(write.value)
        return values

    def _latest(self, replica: int, now_ns: int) -> int:
        """The last write that this replica has acknowledged by now, -1 for none."""
        if replica not in self._in_force:
            moments = [(_in_force_ns(write, replica), at) for at, write in enumerate(self._writes)]
            known = sorted((moment, at) for moment, at in moments if moment)
            newest, latest = -1, []
            for _, at in known:
                newest = max(newest, at)
                latest.append(newest)
            self._in_force[replica] = ([moment for moment, _ in known], latest)
        times, latest = self._in_force[replica]
        found = bisect_right(times, now_ns)
        return latest[found - 1] if found else -1

    def _from(self, at: int, until_ns: int) -> set[int]:
        """The value of a write, and those before it that a loss of the store may have brought back."""
        values = set()
        while at >= 0:
            values.add(self._writes[at].value)
            if not self._may_be_lost(self._writes[at], until_ns):
                return values
            at -= 1
        return values | {self._initial}

    def _may_be_lost(self, write: Change, until_ns: int) -> bool:
        if write.durable or (write.register == "denied" and write.value):
            return False  # a deny is asserted again by every replica that has it
        # A document that every replica has is given back to the store. A deny that was lifted may come back
        # with it, which is the safe side.
        everybody = write.register == "weight" and len(write.acknowledged_ns) == self._replicas
        held_ns = max(write.acknowledged_ns.values()) if everybody else None
        return any(
            max(fault.over_ns, fault.whole_ns) + DEMOTED_NS >= write.sent_ns and fault.began_ns <= until_ns
            for fault in self._losing
            if held_ns is None or held_ns > fault.began_ns
        )


def _in_force_ns(change: Change, replica: int) -> int:
    moments = [change.acknowledged_ns.get(replica, 0), change.here_ns if change.through == replica else 0]
    return min((moment for moment in moments if moment), default=0)


def registers(history: History) -> dict[tuple[int, str], Register]:
    """(route, name) → register. Every route begins with half of its traffic on a canary that is not denied."""
    return {
        (route, name): Register(
            initial,
            [change for change in history.changes if (change.route, change.register) == (route, name)],
            history.faults,
            history.replicas,
        )
        for route in range(history.routes)
        for name, initial in (("denied", 0), ("weight", 50))
    }


def _versions(denied: set[int], weights: set[int]) -> set[int]:
    found = set()
    if 1 in denied or weights - {100}:
        found.add(STABLE)
    if 0 in denied and weights - {0}:
        found.add(CANARY)
    return found


def _answers_of_other_states(history: History, answers: list[Answer]) -> Iterator[Violation]:
    found = registers(history)
    for answer in answers:
        if answer.status != 200:
            continue
        span = (answer.replica, answer.sent_ns, answer.received_ns)
        denied = found[answer.route, "denied"].possible(*span)
        weights = found[answer.route, "weight"].possible(*span)
        if answer.version in _versions(denied, weights):
            continue
        if answer.version == CANARY and denied == {1}:
            yield Violation("denied version answered", _of(answer))
        else:
            yield Violation("an acknowledged change is not in force", f"{_of(answer)}: {denied=} {weights=}")


def _older_than_acknowledged(history: History, answers: list[Answer]) -> Iterator[Violation]:
    """An answer that is sent after a replica's acknowledgement of a revision is of that revision or a later one.

    Not for denies: they may be in force ahead of their revision.
    """
    moments: dict[int, list[tuple[int, Label]]] = defaultdict(list)
    for change in history.changes:
        if change.label is not None and not (change.register == "denied" and change.value):
            for replica, moment in change.acknowledged_ns.items():
                moments[replica].append((moment, change.label.revision))
    floors = {replica: _floor(sorted(known)) for replica, known in moments.items()}
    for answer in answers:
        times, labels = floors.get(answer.replica, ([], []))
        at = bisect_right(times, answer.sent_ns)
        if answer.status == 200 and at and answer.label < labels[at - 1]:
            yield Violation("older than what was acknowledged", f"{_of(answer)}, after {labels[at - 1]}")


def _floor(known: list[tuple[int, Label]]) -> tuple[list[int], list[Label]]:
    highest, labels = Label(0, 0), []
    for _, label in known:
        highest = max(highest, label)
        labels.append(highest)
    return [moment for moment, _ in known], labels


def _backwards(answers: list[Answer]) -> Iterator[Violation]:
    """On one connection, answered one after the other, a revision is never followed by an older one."""
    highest: dict[int, Label] = {}
    for answer in sorted(answers, key=lambda answer: answer.sent_ns):
        if answer.status != 200:
            continue
        before = highest.get(answer.connection, Label(0, 0))
        if answer.label < before:
            yield Violation("revision went back on a connection", f"{_of(answer)}, after {before}")
        highest[answer.connection] = max(before, answer.label)


def _two_answers_of_one_revision(answers: list[Answer]) -> Iterator[Violation]:
    """A revision says what a key gets, on every worker of every replica. Denies that are ahead of it do not
    count by their number alone, so answers with some are left out."""
    seen: dict[tuple[int, int, Label], Answer] = {}
    for answer in answers:
        if answer.status == 200 and not answer.label.ahead:
            first = seen.setdefault((answer.route, answer.key, answer.label), answer)
            if first.version != answer.version:
                yield Violation("one revision, two answers", f"{_of(first)} and {_of(answer)}")


def _failed(faults: list[Fault], answers: list[Answer]) -> Iterator[Violation]:
    deaths = [fault for fault in faults if fault.replica >= 0]
    for answer in answers:
        if answer.status == 200:
            continue
        in_flight = answer.status == 0 and any(
            death.replica == answer.replica
            and answer.sent_ns <= death.over_ns + DEATH_NS
            and answer.received_ns >= death.began_ns
            for death in deaths
        )
        if not in_flight:
            yield Violation("failed prediction", _of(answer))


def _missed(history: History) -> Iterator[Violation]:
    for change in history.changes:
        lacking = set(range(history.replicas)) - change.acknowledged_ns.keys()
        if change.outcome == "done" and lacking:
            yield Violation("missed", f"{change} was never acknowledged by {sorted(lacking)}")


def _lost(history: History) -> Iterator[Violation]:
    found = registers(history)
    end = history.ended_ns
    for standing in history.final:
        for name, value in (("denied", standing.denied), ("weight", standing.weight)):
            possible = set.union(
                *(
                    found[standing.route, name].possible(replica, end, end)
                    for replica in range(history.replicas)
                )
            )
            if value not in possible:
                yield Violation(
                    "acknowledged change lost", f"{_where(standing)}: {name} is {value}, not {possible}"
                )


def _where(standing: Standing) -> str:
    return f"{standing.where}, route {standing.route}"


def _of(answer: Answer) -> str:
    took_ms = (answer.received_ns - answer.sent_ns) / 1e6
    return (
        f"route {answer.route} key {answer.key} by replica {answer.replica} on connection {answer.connection}: "
        f"status {answer.status}, version {answer.version} of revision {answer.label}, "
        f"sent at {answer.sent_ns / 1e9:.4f} s, took {took_ms:.1f} ms"
    )

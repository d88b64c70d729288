"""Operators: each has a route of its own, rolls it back, allows it again and moves its weights, and writes down
what it asked for, what it was told, and when every replica had acknowledged it."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import redis

from tests.faults.fleet import CHANGE_TIMEOUT_S, ROUTES, Fleet, Replica, now_ns
from tests.faults.history import Change, Label, Standing
from tests.faults.store_view import StoreView

POLL_S = 0.015
GIVE_UP_S = 60.0
"""After this long without its acknowledgement a change is missed, and the run ends."""
AGAIN_S = 2.0
"""A signal that was lost with its primary is sent again after this."""
SETTLED_S = 0.3
"""A server that was frozen runs what lay in its buffers; whoever looks what became of a call looks after that."""


class Budget:
    """What all operators do together: so many flips that are done, and more until every kind of fault was tried."""

    def __init__(self, flips: int) -> None:
        self._flips = flips
        self._done = itertools.count(1)
        self._stop = threading.Event()
        self.tried = threading.Event()
        """Every kind of fault."""
        self.hurt = threading.Event()
        """Something is broken: whoever has to act then, acts."""

    @property
    def is_spent(self) -> bool:
        return self._stop.is_set()

    def count(self) -> None:
        """One more flip that every replica has acknowledged."""
        if next(self._done) >= self._flips and self.tried.is_set():
            self.stop()

    def stop(self) -> None:
        self._stop.set()

    def pause(self, seconds: float) -> None:
        self._stop.wait(seconds)


class Operator:
    def __init__(
        self,
        fleet: Fleet,
        store: StoreView | None,
        route: int,
        seed: str,
        budget: Budget,
        *,
        pause_s: float,
        note: Callable[[str], None],
    ) -> None:
        self.changes: list[Change] = []
        self._fleet = fleet
        self._store = store
        self._route = route
        self._random = random.Random(seed)
        self._budget = budget
        self._pause_s = pause_s
        self._note = note
        self._denied, self._weight = 0, 50

    def run(self) -> None:
        while not self._budget.is_spent:
            self._flip()
            haste = 0.2 if self._budget.hurt.is_set() else 1.0
            self._budget.pause(self._random.uniform(0, 2 * self._pause_s) * haste)

    def _flip(self) -> None:
        change = self._choose()
        self.changes.append(change)
        act = {"signal": self._signal, "cli": self._by_command}.get(change.by, self._by_api)
        act(change)
        if change.outcome == "unknown":
            self._find_out(change)
        if change.outcome == "done":
            self._await_acknowledgement(change)
            if change.register == "denied":
                self._denied = change.value
            else:
                self._weight = change.value

    def _choose(self) -> Change:
        """What to do next; always something that moves the traffic, or may."""
        # The weight of a denied version is not to be changed, and one without a share is nothing to roll back.
        allows = bool(self._denied)
        rolls_back = not allows and self._weight > 0 and self._random.random() < 0.65
        change = Change(
            route=self._route,
            register="denied" if rolls_back or allows else "weight",
            value=0 if allows else 1,
            by="api",
            through=self._random.randrange(len(self._fleet.replicas)),
            sent_ns=now_ns(),
        )
        if change.register == "weight":
            change.value = self._random.choice([value for value in (0, 50, 100) if value != self._weight])
        elif rolls_back:
            change.by = self._random.choices(("signal", "api", "cli"), (45, 52, 3))[0]
            if change.by == "signal" and self._store is None:
                change.by = "api"
        if change.by == "signal":
            change.through = -1
        return change

    # How a change is asked for.

    def _signal(self, change: Change) -> None:
        """Appends to the stream until that works, as whoever sends an alert does."""
        assert self._store is not None
        fields = {"action": "rollback", "route": ROUTES[self._route], "reason": "faults"}
        until = now_ns() + int(GIVE_UP_S * 1e9)
        while now_ns() < until:
            change.sent_again_ns = now_ns()
            try:
                handled = partial(self._handled, self._store.signal(fields))
                if self._wait(handled, GIVE_UP_S) and self._publication(change, AGAIN_S):
                    change.replied_ns = now_ns()
                    change.outcome = "done"
                    return
            except (redis.RedisError, OSError):
                _pause(0.05)

    def _handled(self, signal: str) -> bool:
        """Gone with a store that was emptied counts as well: the signal is then sent again."""
        assert self._store is not None
        try:
            return self._store.handled(signal) or self._store.is_lost(signal)
        except (redis.RedisError, OSError):
            return False

    def _by_command(self, change: Change) -> None:
        """`turnout rollback --wait`: what it says when it ends with 0 is taken at its word."""
        gateway = self._fleet.replicas[change.through].gateway
        ended = gateway.turnout("rollback", ROUTES[self._route], "--wait", "--timeout", "15")
        change.replied_ns = now_ns()
        if ended.returncode == 0:
            change.outcome = "done"
            change.acknowledged_ns = {replica.number: change.replied_ns for replica in self._fleet.replicas}
        elif ended.returncode == 4 and self._publication(change):
            change.outcome = "done"
        else:
            self._note(f"{change}: {ended.stdout}{ended.stderr}")

    def _by_api(self, change: Change) -> None:
        replica = self._fleet.replicas[change.through]
        path = f"/routes/{ROUTES[self._route]}"
        document: dict[str, Any] = {}
        if change.register == "weight":
            document = {"weights": {"canary": change.value}}
            status, answer = self._ask(replica, "PATCH", f"{path}/weights", document)
        elif change.value:
            status, answer = self._ask(replica, "POST", f"{path}/rollback", document)
        else:
            status, answer = self._ask(replica, "DELETE", f"{path}/denies/2", None)
        change.replied_ns = now_ns()
        if status == 200:
            self._took(change, answer)
        elif status in (404, 409, 422):
            change.outcome = "refused"
            if status != 409:
                # Something that was acknowledged is not so: the judge says whether that may be.
                self._note(f"{change}: {status} {answer}")
                self._look_anew()

    def _took(self, change: Change, answer: dict[str, Any]) -> None:
        change.durable = answer.get("durable")
        rolled_back = change.register == "denied" and change.value
        if rolled_back and answer["changed"] and "not every worker" not in answer["message"]:
            change.here_ns = change.replied_ns
        if not rolled_back or (answer["published"] and answer["changed"]):
            change.label = Label.parse(answer["revision"]).revision
            change.outcome = "done"
        elif self._publication(change):
            change.outcome = "done"

    def _ask(
        self, replica: Replica, method: str, path: str, document: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any]]:
        """The status, 0 where there is no answer, and the document."""
        try:
            response = replica.api.request(method, f"/api/v1{path}", json=document, timeout=CHANGE_TIMEOUT_S)
            return response.status_code, response.json()
        except (httpx.HTTPError, ValueError):
            return 0, {}

    # What became of it.

    def _publication(self, change: Change, seconds: float = GIVE_UP_S) -> bool:
        """Waits for a deny to lie in the store; a replica that had it alone publishes it when it can."""
        if self._store is None:
            return False
        store = self._store

        def published() -> bool:
            try:
                change.label = store.deny_label(ROUTES[self._route])
            except (redis.RedisError, OSError):
                return False
            return change.label is not None

        return self._wait(published, seconds)

    def _find_out(self, change: Change) -> None:
        """What became of a change without an answer, once nothing is wrong any more."""

        def found() -> bool:
            standing = self._agreed()
            documents = [replica.get("/readyz") for replica in self._fleet.replicas]
            if standing is None or None in documents:
                return False
            change.replied_ns = now_ns()
            # Of the revision that it was lost with.
            change.acknowledged_ns.clear()
            if getattr(standing, change.register) == change.value:
                change.label = max(Label.parse(document["revision"]).revision for document in documents)
                change.outcome = "done"
            return True

        self._wait(found, GIVE_UP_S)

    def _look_anew(self) -> None:
        """What the route is like, once nothing is wrong any more and the replicas agree."""

        def agreed() -> bool:
            found = self._agreed()
            if found is not None:
                self._denied, self._weight = found.denied, found.weight
            return found is not None

        self._wait(agreed, GIVE_UP_S)

    def _agreed(self) -> Standing | None:
        """The route as every replica holds it; None where they differ, or where one says that something is wrong."""
        if any(self._fleet.troubles()):
            return None
        _pause(SETTLED_S)
        try:
            standings = [replica.standing(self._route) for replica in self._fleet.replicas]
        except (httpx.HTTPError, ValueError, KeyError):
            return None
        values = {(standing.denied, standing.weight) for standing in standings}
        return standings[0] if len(values) == 1 and not any(self._fleet.troubles()) else None

    def _await_acknowledgement(self, change: Change) -> None:
        replicas = itertools.cycle(self._fleet.replicas)

        def acknowledged() -> bool:
            if len(change.acknowledged_ns) < len(self._fleet.replicas):
                self._look(next(replicas), change)
            everybody = len(change.acknowledged_ns) == len(self._fleet.replicas)
            return everybody or change.outcome != "done"

        if self._wait(acknowledged, GIVE_UP_S):
            if change.outcome == "done":
                self._budget.count()
        else:
            self._note(f"missed: {change}")
            self._budget.stop()

    def _look(self, replica: Replica, change: Change) -> None:
        """One replica's view of all of them, as `--wait` polls it."""
        try:
            members = replica.get("/api/v1/status")["members"]
        except (TypeError, KeyError):
            return
        assert change.label is not None
        if any(lacks(member, change.label) for member in members):
            self._lost(change)
            return
        for member in members:
            number = self._fleet.names.get(member["replica"])
            if number is not None and has(member, change):
                change.acknowledged_ns.setdefault(number, now_ns())

    def _lost(self, change: Change) -> None:
        """A fail-over left it out. A replica that has a deny publishes it once more; a weight is gone."""
        if change.register == "denied" and change.value:
            self._publication(change)
        elif not change.durable:
            change.outcome = "unknown"
            self._find_out(change)

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        until = now_ns() + int(seconds * 1e9)
        while not condition():
            if now_ns() > until:
                return False
            _pause(POLL_S)
        return True


def has(member: dict[str, Any], change: Change) -> bool:
    """Whether a member says that all its workers have a change. Only denies may be ahead of their revision."""
    assert change.label is not None
    if member["workers_ok"] < member["workers_total"] or member["status"] != "ACK":
        return False
    if member["epoch"] != change.label.epoch:
        return bool(member["epoch"] > change.label.epoch and not lacks(member, change.label))
    ahead = member["denies_rev"] if change.register == "denied" and change.value else 0
    return bool(max(member["rev"], ahead) >= change.label.rev)


def lacks(member: dict[str, Any], label: Label) -> bool:
    """Whether a later revision of a member continues what was before a change, which a fail-over lost."""
    base = Label.parse(member["base"])
    return bool(member["epoch"] > label.epoch == base.epoch and base.rev < label.rev)


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)

"""One run: a fleet, its clients, its operators and a nemesis; then the history is judged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults.checker import Violation, check
from tests.faults.figures import slow, summary
from tests.faults.fleet import ROUTES, Fleet, now_ns
from tests.faults.history import History, read_answers
from tests.faults.nemesis import Nemesis
from tests.faults.operators import Budget, Operator
from tests.faults.topologies import TOPOLOGIES
from tests.servers.gateway import wait_for

CONNECTIONS = 8
"""To each replica."""
SPAN_MS = 60
SEEN_S = 1.0
"""How long the clients go on after the last fault is over."""


@dataclass(frozen=True, kw_only=True)
class Options:
    seed: int
    flips: int
    per_second: float
    topology: str
    kind: str
    """valkey or redis"""
    faults: str = ""
    """How the names of the faults begin: `store:`, `worker`; all of them without."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    flips: int
    """Acknowledged by every replica."""
    faults: int
    answers: int
    violations: list[Violation]
    slow: list[str]
    summary: str
    troubles: list[str]
    """Lines of the logs that nobody should ever see."""


def run(options: Options, directory: Path, note: Callable[[str], None]) -> Judged:
    """Leaves `answers` and `history.json` in the directory, beside the replicas' logs."""
    topology = TOPOLOGIES[options.topology](directory, options.kind)
    fleet = Fleet(directory, topology.urls)
    history = History(seed=options.seed, replicas=len(fleet.replicas), routes=len(ROUTES))
    budget = Budget(options.flips)
    nemesis = Nemesis(
        fleet, topology, f"{options.seed} nemesis", kinds=options.faults, hurt=budget.hurt, note=note
    )
    operators = [
        Operator(
            fleet, topology.view, route, f"{options.seed} operator {route}", budget,
            pause_s=len(ROUTES) / options.per_second, note=note,
        )
        for route in range(len(ROUTES))
    ]  # fmt: skip
    try:
        fleet.start()
        with fleet.clients(directory / "answers", connections=CONNECTIONS, span_ms=SPAN_MS):
            _operate(operators, nemesis, budget)
            wait_for(lambda: not any(fleet.troubles()), 60, lambda: str(fleet.troubles()))
            history.final = [
                replica.standing(route) for replica in fleet.replicas for route in range(len(ROUTES))
            ]
            history.ended_ns = now_ns()
            threading.Event().wait(SEEN_S)
    finally:
        fleet.kill()
        topology.close()
    history.changes = sorted(
        (change for operator in operators for change in operator.changes), key=lambda change: change.sent_ns
    )
    history.faults = nemesis.faults
    history.save(directory / "history.json")
    return judge(history, directory, [replica.log for replica in fleet.replicas])


def judge(history: History, directory: Path, logs: list[str]) -> Judged:
    answers = list(read_answers(directory / "answers"))
    connections = {answer.connection for answer in answers}
    return Judged(
        flips=sum(len(change.acknowledged_ns) == history.replicas for change in history.changes),
        faults=len(history.faults),
        answers=len(answers),
        violations=check(history, answers),
        slow=slow(history),
        summary=summary(history, len(answers), len(connections)),
        troubles=[line for log in logs for line in log.splitlines() if "Traceback" in line],
    )


def _operate(operators: list[Operator], nemesis: Nemesis, budget: Budget) -> None:
    """The nemesis has this thread: a server ends with the thread that started it."""
    with ThreadPoolExecutor(len(operators)) as threads:
        working = [threads.submit(operator.run) for operator in operators]
        try:
            nemesis.run(until=lambda: all(each.done() for each in working), tried=budget.tried.set)
        finally:
            budget.stop()
        for each in working:
            each.result()

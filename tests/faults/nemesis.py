"""Hurts the store and the replicas, one fault after the other, and waits until all is whole again."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator

from tests.faults.fleet import WHOLE_S, Fleet, Replica, gone, now_ns, send
from tests.faults.history import Fault
from tests.faults.topologies import Injury, Topology
from tests.servers.gateway import wait_for

CALM_S = (0.3, 2.0)
LASTS_S = (0.05, 0.3, 1.0, 2.5)
FROZEN_S = 3.0
"""Long enough for every replica to notice that the store is frozen, which has two seconds."""


class Nemesis:
    def __init__(
        self,
        fleet: Fleet,
        topology: Topology,
        seed: str,
        *,
        kinds: str,
        hurt: threading.Event,
        note: Callable[[str], None],
    ) -> None:
        self.faults: list[Fault] = []
        self._fleet = fleet
        self._random = random.Random(seed)
        self._hurt_now = hurt
        self._note = note
        self._injuries: dict[str, tuple[int, Injury]] = {
            **{f"store: {name}": injury for name, injury in topology.injuries(self._random).items()},
            "worker: kill": (4, self._kill_worker),
            "workers: kill all": (1, self._kill_workers),
            "worker: freeze": (2, self._freeze_worker),
            "supervisor: freeze": (1, self._freeze_supervisor),
            "replica: kill": (1, self._kill_replica),
        }
        self._injuries = {name: injury for name, injury in self._injuries.items() if name.startswith(kinds)}

    def run(self, until: Callable[[], bool], tried: Callable[[], None]) -> None:
        """One fault after the other. Every kind comes once before any comes twice; then `tried` is told."""
        if not self._fleet.replicas[0].can_restore:
            self._injuries.pop("store: flush", None)
        names, weights = list(self._injuries), [weight for weight, _ in self._injuries.values()]
        first = self._random.sample(names, len(names))
        while not until():
            _pause(self._random.uniform(*CALM_S))
            self._hurt(first.pop() if first else self._random.choices(names, weights)[0])
            if not first:
                tried()

    def _hurt(self, name: str) -> None:
        fault = Fault(kind=name, target="", began_ns=now_ns())
        self.faults.append(fault)
        self._note(f"{name} …")
        self._hurt_now.set()
        with self._injuries[name][1](fault):
            if fault.over_ns:
                self._await_whole(fault)
            elif name == "store: freeze" and self._random.random() < 0.6:
                self._await_notice(fault)
            else:
                _pause(self._random.choice(LASTS_S))
        fault.over_ns = fault.over_ns or now_ns()
        self._hurt_now.clear()
        # Again, where something was put back that the fleet could do without.
        self._await_whole(fault)

    def _await_whole(self, fault: Fault) -> None:
        try:
            self._fleet.wait_whole(mend=True)
            fault.whole_ns = fault.whole_ns or now_ns()
        except AssertionError:
            self._note(f"… not whole {WHOLE_S:g} s after {fault.kind}: {self._fleet.troubles()}")

    def _await_notice(self, fault: Fault) -> None:
        until = fault.began_ns + int(FROZEN_S * 1e9)
        while now_ns() < until and len(fault.noticed_ns) < len(self._fleet.replicas):
            for replica in self._fleet.replicas:
                if replica.number not in fault.noticed_ns and any(replica.degraded()):
                    fault.noticed_ns[replica.number] = now_ns()
            _pause(0.02)

    # What can be done to the replicas themselves.

    def _any(self) -> Replica:
        return self._random.choice(self._fleet.replicas)

    @contextlib.contextmanager
    def _kill_worker(self, fault: Fault) -> Iterator[None]:
        replica = self._any()
        self._kill(fault, replica, replica.gateway.worker_pids()[:1])
        yield

    @contextlib.contextmanager
    def _kill_workers(self, fault: Fault) -> Iterator[None]:
        replica = self._any()
        self._kill(fault, replica, replica.gateway.worker_pids())
        yield

    def _kill(self, fault: Fault, replica: Replica, pids: list[int]) -> None:
        fault.target, fault.replica = f"replica {replica.number}", replica.number
        fault.began_ns = now_ns()
        for pid in pids:
            send(pid, signal.SIGKILL)
        wait_for(lambda: all(gone(pid) for pid in pids), 10)
        # From here on it is the supervisor's to mend.
        fault.over_ns = now_ns()

    @contextlib.contextmanager
    def _freeze_worker(self, fault: Fault) -> Iterator[None]:
        replica = self._any()
        with self._frozen(fault, replica, self._random.choice(replica.gateway.worker_pids())):
            yield

    @contextlib.contextmanager
    def _freeze_supervisor(self, fault: Fault) -> Iterator[None]:
        replica = self._any()
        with self._frozen(fault, replica, replica.pid):
            yield

    @contextlib.contextmanager
    def _frozen(self, fault: Fault, replica: Replica, pid: int) -> Iterator[None]:
        fault.target = f"replica {replica.number}, pid {pid}"
        send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            send(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def _kill_replica(self, fault: Fault) -> Iterator[None]:
        """The supervisor dies, its workers drain and go, and it is started again on the same disk."""
        replica = self._any()
        fault.target = f"replica {replica.number}"
        replica.restart()
        self._fleet.learn(replica)
        yield


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)

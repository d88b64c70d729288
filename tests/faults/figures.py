"""What a run shows in numbers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.faults.history import Change, Fault, History

CONVERGED_S = 3.0
NOTICED_S = 2.0


def late_s(change: Change, faults: Sequence[Fault]) -> float:
    """From the end of the last fault that a change met, or from its beginning, to its last acknowledgement.

    A signal that was lost with its primary begins when it is sent again: nobody has heard of it before.
    """
    until_ns = max(change.acknowledged_ns.values(), default=0)
    since_ns = max(change.sent_ns, change.sent_again_ns)
    for fault in faults:
        if fault.over_ns >= change.sent_ns and fault.began_ns <= until_ns:
            since_ns = max(since_ns, fault.over_ns)
    return max(0, until_ns - since_ns) / 1e9


def took_ms(change: Change) -> float:
    return (max(change.acknowledged_ns.values()) - change.sent_ns) / 1e6


def met_none(change: Change, faults: Sequence[Fault]) -> bool:
    until_ns = max(change.acknowledged_ns.values(), default=0)
    return not any(
        (fault.whole_ns or fault.over_ns) >= change.sent_ns and fault.began_ns <= until_ns for fault in faults
    )


def slow(history: History) -> list[str]:
    """What took longer than it may: acknowledgements and wholeness after a fault, and to notice a frozen store."""
    found = [
        f"{late_s(change, history.faults):.2f} s after all faults were over: {change}"
        for change in history.changes
        if change.acknowledged_ns and late_s(change, history.faults) > CONVERGED_S
    ]
    for fault in history.faults:
        if not fault.whole_ns or (fault.whole_ns - fault.over_ns) / 1e9 > CONVERGED_S:
            found.append(f"not whole within {CONVERGED_S:g} s: {_told(fault)}")
        for replica, noticed_ns in fault.noticed_ns.items():
            if (noticed_ns - fault.began_ns) / 1e9 > NOTICED_S:
                found.append(f"replica {replica} noticed after {NOTICED_S:g} s: {_told(fault)}")
    return found


def summary(history: History, answers: int, connections: int) -> str:
    done = [change for change in history.changes if change.outcome == "done" and change.acknowledged_ns]
    calm = sorted(took_ms(change) for change in done if met_none(change, history.faults))
    lates = [late_s(change, history.faults) for change in done]
    noticed = [(at - fault.began_ns) / 1e9 for fault in history.faults for at in fault.noticed_ns.values()]
    wholes = [(fault.whole_ns - fault.over_ns) / 1e9 for fault in history.faults if fault.whole_ns]
    ways = Counter(_way(change) for change in done)
    kinds = Counter(fault.kind for fault in history.faults)
    outcomes = Counter(change.outcome for change in history.changes)
    lines = [
        f"seed {history.seed}: {len(done)} flips acknowledged by all ({_counted(ways)})",
        f"  not done: {outcomes['refused']} refused, {outcomes['unknown']} without effect",
        f"  {answers} answers on {connections} connections",
        f"  {len(history.faults)} faults: {_counted(kinds)}",
        f"  longest after its last fault: a flip {max(lates, default=0):.2f} s, "
        f"a fleet that is whole {max(wholes, default=0):.2f} s",
    ]
    if calm:
        lines.append(
            f"  {len(calm)} flips met no fault: acknowledged by all, as seen by who polls, "
            f"p50 {calm[len(calm) // 2]:.0f} ms, max {calm[-1]:.0f} ms"
        )
    if noticed:
        lines.append(
            f"  a frozen store was noticed after {max(noticed):.2f} s at most ({len(noticed)} times)"
        )
    return "\n".join(lines)


def _way(change: Change) -> str:
    if change.register == "weight":
        return "weights"
    return f"rollback by {change.by}" if change.value else "allow"


def _counted(what: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in what.most_common())


def _told(fault: Fault) -> str:
    took = (fault.over_ns - fault.began_ns) / 1e9
    whole = f"whole {(fault.whole_ns - fault.over_ns) / 1e9:.2f} s later" if fault.whole_ns else "never whole"
    noticed = {replica: round((at - fault.began_ns) / 1e9, 2) for replica, at in fault.noticed_ns.items()}
    return f"{fault.kind} {fault.target} for {took:.2f} s, {whole}, noticed {noticed}"

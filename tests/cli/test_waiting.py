"""What `--wait` makes of the acknowledgements of a store that lost changes."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from gateway.cli.admin_client import AdminClient
from gateway.cli.changes import ChangeLost, wait_for_all
from gateway.routing.state import Revision


class Status:
    """The admin API, as far as it says who holds what."""

    def __init__(self, *members: dict[str, Any]) -> None:
        self.members = list(members)

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/status"
        return {"members": self.members, "complete": True}


def member(revision: str, base: str, denies_rev: int = 0) -> dict[str, Any]:
    epoch, rev = revision.split(".")
    return {
        "replica": "one",
        "revision": revision,
        "epoch": int(epoch),
        "rev": int(rev),
        "denies_rev": denies_rev,
        "base": base,
        "status": "ACK",
        "error": "",
        "workers_ok": 2,
        "workers_total": 2,
    }


def wait(held: dict[str, Any], revision: str, *, denies_only: bool = False) -> list[str]:
    admin = cast(AdminClient, Status(held))
    return wait_for_all(admin, Revision.parse(revision), time.monotonic(), denies_only=denies_only)


@pytest.mark.parametrize(
    ("held", "base", "revision", "has"),
    [
        ("1.7", "0.0", "1.7", True),
        ("1.7", "0.0", "1.8", False),
        ("2.8", "1.7", "1.7", True),
        ("2.1", "1.9", "1.8", True),
        ("1.7", "", "1.7", True),  # of an earlier release
        ("2.1", "", "1.7", True),
        ("3.9", "2.8", "1.9", True),  # too long ago to say
        ("1.9", "0.0", "2.8", False),
    ],
)
def test_a_later_revision_has_what_its_epoch_continues(
    held: str, base: str, revision: str, has: bool
) -> None:
    assert (wait(member(held, base), revision) == []) == has


@pytest.mark.parametrize("denies_only", [False, True])
@pytest.mark.parametrize(("held", "base"), [("2.8", "1.7"), ("2.1", "1.7"), ("3.8", "1.7")])
def test_one_that_continues_what_was_before_has_lost_it(held: str, base: str, denies_only: bool) -> None:
    with pytest.raises(ChangeLost, match=rf"1\.8 was lost .* one is at {held}, which continues 1\.7"):
        wait(member(held, base, denies_rev=99), "1.8", denies_only=denies_only)

from __future__ import annotations

import logging

import pytest

from gateway.control.troubles import Trouble, Troubles


def test_who_reads_of_the_beginning_reads_of_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """At the level that the log has without --verbose, too."""
    caplog.set_level(logging.WARNING)
    troubles = Troubles()
    troubles.begin(Trouble.UNREACHABLE, "it does not answer")
    troubles.end(Trouble.UNREACHABLE)
    assert caplog.messages == ["it does not answer", "over: the store was unreachable"]
    assert len({record.levelno for record in caplog.records}) == 1


def test_what_was_only_expected_ends_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    troubles = Troubles()
    troubles.expect(Trouble.UNREACHABLE, "it was not asked yet")
    troubles.end(Trouble.UNREACHABLE)
    assert caplog.messages == [] and Trouble.UNREACHABLE not in troubles

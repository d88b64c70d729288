"""Who asks for a change, as it goes into the history: what others wrote is cut, and made fit to be shown."""

from __future__ import annotations

import secrets

from gateway.control.store import Author

ACTOR_LENGTH, REASON_LENGTH, OP_ID_LENGTH = 80, 500, 240
"""In characters."""


def author(actor: str, reason: str = "", op_id: str = "") -> Author:
    """Without an `op_id` the change is one of its own.

    >>> author("ann\\x1b[31m", "too  many\\n5xx", "pager-7")
    Author(actor='ann[31m', reason='too many 5xx', op_id='pager-7')
    """
    return Author(
        actor=shown(actor, ACTOR_LENGTH),
        reason=shown(reason, REASON_LENGTH),
        op_id=shown(op_id, OP_ID_LENGTH) or secrets.token_hex(8),
    )


def shown(text: str, length: int) -> str:
    """One line of `length` characters at most, without what a terminal would obey and what no JSON can hold."""
    # Cut first as well: a megabyte is not looked at character by character.
    line = " ".join(text[: 4 * length].split())
    return "".join(character for character in line if character.isprintable())[:length]

"""A replica's name, the same in all its lives: a restart takes the place of the one before it in the store."""

from __future__ import annotations

import logging
import re
import secrets
import socket
from pathlib import Path

from gateway.control import state_file

log = logging.getLogger(__name__)

FILE_NAME = "replica"
_LIMIT_BYTES = 8192


def replica_name(state_dir: Path) -> str:
    """`<hostname>-<hex>` as `<state-dir>/replica` has it; made anew on another host, in another directory (a copy
    of one must not report in the other's name), and where the file is unreadable."""
    path = state_dir / FILE_NAME
    host = socket.gethostname()
    place = f"{state_dir.absolute()}"
    name, _, written_at = _read(path).partition("\n")
    if re.fullmatch(rf"{re.escape(host)}-[0-9a-f]{{12}}", name) and written_at.rstrip("\n") == place:
        return name
    name = f"{host}-{secrets.token_hex(6)}"
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        state_file.replace(path, f"{name}\n{place}\n".encode())
    except OSError as error:
        # It serves all the same, and after a restart is another replica: the old name is LOST for a while.
        log.warning("the replica's name cannot be kept in %s: %s", path, error.strerror)
    return name


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return ""

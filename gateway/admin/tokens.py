"""The file of tokens: who may use the admin API beside the holder of TURNOUT_ADMIN_TOKEN.

    pager: {role: guard, sha256: 0d1f…}

It holds no token, only the SHA-256 of each: 256 random bits need no slow hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import secrets
import stat
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml

from gateway.admin.roles import Role
from gateway.routing.names import NAME

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the file is looked at: as long as a token works after it was taken out."""
HANG_S = 5.0
"""After so long without an answer of its disk the file is in trouble."""
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
SIZE_LIMIT_BYTES = 1024 * 1024
PREFIX = "turnout_"
"""Of the tokens made here, so that a scanner of leaked secrets can tell what one is."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROLES = {str(role): role for role in Role}


class TokensError(ValueError):
    """The file cannot be used; the text says which line of it, and never a value that is in it."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Whom a token stands for. `name` is "" for who needs none."""

    name: str
    role: Role
    sha256: bytes = field(default=b"", repr=False)


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    sha256: str


def make_token() -> tuple[str, str]:
    """(a new token, its SHA-256 in hex)."""
    token = PREFIX + secrets.token_hex(32)
    return token, hashlib.sha256(token.encode()).hexdigest()


def parse_tokens(text: str) -> tuple[Holder, ...]:
    """Raises `TokensError`."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except TokensError:
        raise
    except Exception as error:  # PyYAML lets through whatever a value's constructor throws
        mark = getattr(error, "problem_mark", None)
        raise TokensError(f"it is no YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    if not isinstance(document, dict):
        raise TokensError("write one line for each token: NAME: {role: guard, sha256: …}; {} for none")
    holders = tuple(_holder(name, entry) for name, entry in document.items())
    if len({holder.sha256 for holder in holders}) < len(holders):
        raise TokensError("two names have the same sha256: which of them it was could not be told")
    return holders


def _holder(name: object, entry: object) -> Holder:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise TokensError("a name is letters, digits and ._- (128 at most), and begins with no ._-")
    try:
        found = msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        raise TokensError(f"{name}: {error}; write {{role: …, sha256: …}}") from None
    if found.role not in _ROLES:
        raise TokensError(f"{name}: that is no role: write {', '.join(_ROLES)}")
    if not _SHA256.fullmatch(found.sha256):
        raise TokensError(f"{name}: its sha256 is not 64 hex digits: make one with turnout token {name}")
    return Holder(name=name, role=_ROLES[found.role], sha256=bytes.fromhex(found.sha256))


class _Loader(yaml.SafeLoader):
    """Refuses a name that is written twice: the second would silently win."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    seen: set[object] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise TokensError(f"line {key.start_mark.line + 1}: a name must be plain text")
        if key.value in seen:
            raise TokensError(f"line {key.start_mark.line + 1}: {str(key.value)[:80]!r} is written twice")
        seen.add(key.value)
    found: dict[object, object] = loader.construct_mapping(node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _open(path: str, flags: int) -> int:
    """Waits for no writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


class TokensFile:
    """The holders in the file, read again when it changes. What is damaged or gone leaves the last ones."""

    def __init__(self, path: Path) -> None:
        """Raises `TokensError`."""
        self._path = path
        self.trouble = ""
        """Why the file as it is now is not in force, "" where it is."""
        self.holders: tuple[Holder, ...] = ()
        self._text = self._read()
        self.holders = self._parsed(self._text)

    async def run(self) -> None:
        """In a thread, because the file may lie on a disk that hangs; requests never wait for it."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look_aside()

    async def _look_aside(self) -> None:
        """In a thread of its own that ends with the process: the loop's own are waited for at the exit."""
        looked: Future[None] = Future()

        def look() -> None:
            looked.set_running_or_notify_cancel()
            try:
                self.look()
            except Exception as error:
                looked.set_exception(error)
            else:
                looked.set_result(None)

        threading.Thread(target=look, name="turnout-tokens", daemon=True).start()
        waiting = asyncio.wrap_future(looked)
        try:
            async with asyncio.timeout(HANG_S):
                await asyncio.shield(waiting)
        except TimeoutError:
            self._note(
                f"the tokens in {self._path} cannot be read: no answer for {HANG_S:g} s: "
                "the tokens of before are in force"
            )
            await waiting

    def look(self) -> None:
        """One look at the file."""
        try:
            text = self._read()
            if text == self._text and not self.trouble:
                return
            self.holders, self._text = self._parsed(text), text
        except TokensError as error:
            self._note(f"{error}: the tokens of before are in force")
            return
        log.info("%s was read again: %d tokens", self._path, len(self.holders))
        self._note("")

    def _read(self) -> str:
        # Whole, and not by its times: a file that is replaced within a clock's tick looks unchanged.
        try:
            with open(self._path, "rb", opener=_open) as file:
                self._see_that_it_may_be_used(os.fstat(file.fileno()).st_mode)
                raw = file.read(SIZE_LIMIT_BYTES + 1)
            if len(raw) > SIZE_LIMIT_BYTES:
                raise TokensError(f"{self._path} is larger than {SIZE_LIMIT_BYTES} bytes")
            return raw.decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise TokensError(f"the tokens in {self._path} cannot be read: {reason}") from None

    def _see_that_it_may_be_used(self, mode: int) -> None:
        """Raises `TokensError`."""
        if not stat.S_ISREG(mode):
            raise TokensError(f"the tokens in {self._path} cannot be read: it is no regular file")
        if mode & OTHERS_WRITE:
            raise TokensError(
                f"the tokens in {self._path} are refused: others than its owner may write to it (mode "
                f"{stat.S_IMODE(mode):04o}), and so make themselves a token: chmod go-w {self._path}"
            )

    def _parsed(self, text: str) -> tuple[Holder, ...]:
        try:
            return parse_tokens(text)
        except TokensError as error:
            raise TokensError(f"the tokens in {self._path} are refused: {error}") from None

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            log.error("%s", trouble)
        self.trouble = trouble

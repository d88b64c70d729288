"""Parts of a file over HTTP: what is asked for, and what the answer proves to be (RFC 9110, 14 and 13.1.5)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import httpx

RANGE_HEADERS = frozenset({"Range", "If-Range"})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Part:
    """From `start` up to `end`, or to the file's end, of the file that `validator`, an ETag, names."""

    start: int = 0
    end: int | None = None
    validator: str = ""

    @property
    def headers(self) -> Mapping[str, str]:
        """Empty for the whole file."""
        if not self.start and self.end is None:
            return {}
        last = "" if self.end is None else str(self.end - 1)
        headers = {"Range": f"bytes={self.start}-{last}"}
        return {**headers, "If-Range": self.validator} if self.validator else headers


WHOLE = Part()


class Sent(NamedTuple):
    """What a body is of a file."""

    start: int
    end: int | None
    total_bytes: int | None


def sent_part(response: httpx.Response, part: Part) -> Sent | None:
    """What the body is; None where that is not what was asked for, nor the whole file."""
    length = response.headers.get("content-length", "")
    length_bytes = int(length) if length.isdecimal() else None
    if response.status_code == 200:
        return Sent(0, None, length_bytes)
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code != 206 or not part.headers or found is None:
        return None
    start, end = int(found[1]), int(found[2]) + 1
    total_bytes = None if found[3] == "*" else int(found[3])
    believable = start == part.start and start < end <= (total_bytes or end)
    if not believable or (part.end is not None and end > part.end) or length_bytes not in (None, end - start):
        return None
    return Sent(start, end, total_bytes)


def strong_validator(response: httpx.Response) -> str:
    tag: str = response.headers.get("etag", "")
    # A weak one names many states of the bytes (RFC 9110, 8.8.1).
    return "" if tag.startswith("W/") else tag

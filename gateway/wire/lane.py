"""What the fast lanes of a worker's connections share: heads that were seen, and who takes their requests."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.serving.inference import Inference
from gateway.serving.live import ServedArm
from gateway.wire import answers
from gateway.wire.bundles import Collector, row_form
from gateway.wire.codec import HEADER_LENGTH, JSON_HEADERS, Headers, OpenInference
from gateway.wire.oip_json import Limits
from gateway.wire.plain_heads import Head, PlainHeads

_NOT_COLLECTED = frozenset({b"content-encoding", HEADER_LENGTH})
"""The body is no JSON."""
_REMEMBERED, _LONGEST_HEAD = 4096, 1024
Known = tuple[Head, "Collector | None"]
"""A head, and who takes its requests; None: each goes its own way."""


class Lane:
    """What the connections of a worker share."""

    def __init__(self, inference: Inference, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.inference = inference
        self.limits = limits
        self.loop = loop
        self.codec = OpenInference(limits)
        self.draining = False
        self._plain = PlainHeads()
        self._snapshot = inference.snapshot
        self._known: dict[bytes, Known] = {}
        """By the bytes of a head, of this snapshot."""
        self._collectors: dict[ServedArm, Collector | None] = {}
        self._lines: dict[ServedArm, bytes] = {}
        self._lines_of: tuple[object, str] = (None, "")

    @property
    def revision(self) -> str:
        """By which requests are routed now."""
        return self.inference.snapshot.label

    def known(self, head: bytes) -> Known | None:
        """What a head without its empty line asks for; None where it is not plain."""
        if self.inference.snapshot is not self._snapshot:
            self._snapshot = self.inference.snapshot
            self._known.clear()
            self._collectors.clear()
        known = self._known.get(head)
        if known is not None:
            return known
        read = self._plain.read(head)
        if read is None:
            return None
        (route, version), fields, _ = read
        if version is not None or not fields.keys().isdisjoint(_NOT_COLLECTED):
            served, fixed = None, True
        else:
            served, fixed = self.inference.foresee(route, fields.get)
        known = read, None if served is None else self._collector(served)
        if fixed and len(head) <= _LONGEST_HEAD:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[head] = known
        return known

    def _collector(self, served: ServedArm) -> Collector | None:
        if served in self._collectors:
            return self._collectors[served]
        form = row_form(served)
        collector = None if form is None else Collector(self, (self._snapshot, served), form)
        self._collectors[served] = collector
        return collector

    def lines(self, served: ServedArm, revision: str, defaults: Headers) -> bytes:
        """The first lines of an answer of status 200 in JSON, up to its length: who gave it, and when.

        `defaults` is uvicorn's list of headers, which it replaces each second for the sake of the date.
        """
        of, known_revision = self._lines_of
        if of is not defaults or known_revision is not revision:
            self._lines.clear()
            self._lines_of = defaults, revision
        lines = self._lines.get(served)
        if lines is None:
            headers = [*defaults, *answers.turnout_headers(revision, served), *JSON_HEADERS]
            lines = STATUS_LINE[200] + answers.header_lines(headers) + b"content-length: "
            self._lines[served] = lines
        return lines

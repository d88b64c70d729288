"""What every version did, as integers that add up: across requests, workers, deaths and replicas.

A worker writes into a block of memory that it shares with the supervisor, so a count survives the worker's
death, a scrape costs the worker nothing, and no lock is on the way of a request. One process writes a block.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from math import log
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.uint64]

CODES = (200, 400, 403, 404, 405, 408, 413, 415, 429, 499, 500, 503, 504)
"""Statuses with a slot of their own; every other is counted in the last one, as code 0."""
_CODE_SLOTS = 16
BUCKETS = 912
"""Logarithmic, 2 % wide, from 1 µs to 70 s: exact to merge, and a quantile is off by at most 2 %."""
_PER_E = 1 / math.log(1.02)
BATCH_BUCKETS = 16
"""Batch sizes up to 1, 2, 4, … 32,768 rows."""

_LIVE, _LABEL_BYTES = 0, 1
_LABEL_SLOT, _LABEL_SLOTS = 2, 126
LABEL_LIMIT_BYTES = _LABEL_SLOTS * 8
CODE = _LABEL_SLOT + _LABEL_SLOTS
LATENCY_NS = CODE + _CODE_SLOTS
QUEUE_NS = LATENCY_NS + 1
ENGINE_NS = QUEUE_NS + 1
ROWS = ENGINE_NS + 1
LAST_MS = ROWS + 1
FAILED_NS = LAST_MS + 1
BATCHES = LAST_MS + 4
LATENCY = BATCHES + BATCH_BUCKETS
ENGINE = LATENCY + BUCKETS
LIMIT = ENGINE + BUCKETS
"""The limit on requests in flight of the version, in this worker; 0 where there is none."""
IN_FLIGHT = LIMIT + 1
REJECTED = IN_FLIGHT + 1
BLOCK_SLOTS = 2048
BLOCK_BYTES = BLOCK_SLOTS * 8
CAPACITY = 16_384
"""Blocks of one worker. The memory is a sparse file: a block that was never used takes none."""
SIZE_BYTES = CAPACITY * BLOCK_BYTES
assert REJECTED < BLOCK_SLOTS

UNKNOWN = "_unknown"
"""The route of requests for a name that does not exist: one series, whatever clients invent."""
OVERFLOW = "_overflow"


class Labels(NamedTuple):
    """The labels of one block. `variant` and `version` are empty for requests that reached no version."""

    route: str
    variant: str
    version: str


def bucket_of(duration_ns: int) -> int:
    """The index of the bucket that holds a duration."""
    if duration_ns <= 1000:
        return 0
    index = int(math.log(duration_ns * 1e-3) * _PER_E) + 1
    return index if index < BUCKETS else BUCKETS - 1


def bucket_bounds_s() -> npt.NDArray[np.float64]:
    """The upper bound of each bucket, in seconds; the last one is unbounded in fact."""
    return np.asarray(1e-6 * np.power(1.02, np.arange(BUCKETS)), dtype=np.float64)


def batch_bucket_of(rows: int) -> int:
    return min(max(rows - 1, 0).bit_length(), BATCH_BUCKETS - 1)


_CODE_SLOT = {code: CODE + index for index, code in enumerate(CODES)}
_OTHER_SLOT = CODE + _CODE_SLOTS - 1


class VersionObservations:
    """The worker's hand on one block."""

    __slots__ = ("_base", "_slots", "labels")

    def __init__(self, slots: Any, base: int, labels: Labels) -> None:
        self._slots = slots
        self._base = base
        self.labels = labels

    def answered(self, code: int, duration_ns: int) -> None:
        """One request, with the status that the client saw and the time that it took in this process."""
        slots, base = self._slots, self._base
        slots[base + _CODE_SLOT.get(code, _OTHER_SLOT)] += 1
        slots[base + LATENCY_NS] += duration_ns
        if code != 200:
            slots[base + FAILED_NS] += duration_ns
        slots[base + LATENCY + bucket_of(duration_ns)] += 1

    def answered_many(self, durations_ns: Iterable[int]) -> None:
        """Requests of status 200, all at once."""
        slots, base = self._slots, self._base
        count = total_ns = 0
        for duration_ns in durations_ns:
            count += 1
            total_ns += duration_ns
            # `bucket_of`, without the call.
            index = int(log(duration_ns * 1e-3) * _PER_E) + 1 if duration_ns > 1000 else 0
            slots[base + LATENCY + (index if index < BUCKETS else BUCKETS - 1)] += 1
        slots[base + CODE] += count
        slots[base + LATENCY_NS] += total_ns

    def ran(self, rows: int, queued_ns: int, engine_ns: int, now_ms: int) -> None:
        """One run of the engine over `rows` rows, whose requests had waited `queued_ns` in sum."""
        slots, base = self._slots, self._base
        slots[base + QUEUE_NS] += queued_ns
        slots[base + ENGINE_NS] += engine_ns
        slots[base + ENGINE + bucket_of(engine_ns)] += 1
        slots[base + BATCHES + batch_bucket_of(rows)] += 1
        slots[base + ROWS] += rows
        slots[base + LAST_MS] = now_ms

    def limited(self, limit: int) -> None:
        """How many requests the version may have in flight in this worker from now on."""
        self._slots[self._base + LIMIT] = limit

    def in_flight(self, requests: int) -> None:
        """How many requests of this variant are between their arrival and their answer."""
        self._slots[self._base + IN_FLIGHT] = requests

    def rejected(self) -> None:
        """One request that the version's queue or limit did not take."""
        self._slots[self._base + REJECTED] += 1

    def read(self) -> Counts:
        """A copy of this worker's own counts."""
        view = np.frombuffer(self._slots, dtype=np.uint64, count=BLOCK_SLOTS, offset=self._base * 8)
        return view.copy()

    def _set_live(self, live: bool) -> None:
        self._slots[self._base + _LIVE] = int(live)


class ObservationWriter:
    """All blocks of one worker, over `SIZE_BYTES` of shared memory that starts as zeros."""

    def __init__(self, memory: memoryview) -> None:
        self._slots = memory.cast("B").cast("Q")
        self._blocks: dict[Labels, VersionObservations] = {}

    def block(self, labels: Labels) -> VersionObservations:
        """The block of these labels, live from now on. Counts go on where they were if they come back."""
        block = self._blocks.get(labels)
        if block is None:
            block = self._allocate(labels)
        block._set_live(True)
        return block

    def revive(self, labels: Labels) -> None:
        """The version is back: if it ever counted anything, its series go on."""
        block = self._blocks.get(labels)
        if block is not None:
            block._set_live(True)

    def retire(self, labels: Labels) -> None:
        """The version is gone from this worker: its series end unless another worker has it."""
        block = self._blocks.get(labels)
        if block is not None:
            block._set_live(False)

    def _allocate(self, labels: Labels) -> VersionObservations:
        if len(self._blocks) >= CAPACITY - 1:
            labels = Labels(OVERFLOW, "", "")
            if labels in self._blocks:
                return self._blocks[labels]
        base = len(self._blocks) * BLOCK_SLOTS
        encoded = _encoded(labels)
        start = (base + _LABEL_SLOT) * 8
        self._slots.cast("B")[start : start + len(encoded)] = encoded
        self._slots[base + _LABEL_BYTES] = len(encoded)
        block = self._blocks[labels] = VersionObservations(self._slots, base, labels)
        return block


def _encoded(labels: Labels) -> bytes:
    """The labels as they lie in a block. A version too long for it keeps its beginning and a mark of its own.

    Names of routes and variants have at most 128 characters; registries put no limit on a version.
    """
    encoded = json.dumps(labels).encode()
    kept = labels.version
    mark = "..." + hashlib.sha256(kept.encode("utf-8", "replace")).hexdigest()[:16]
    while len(encoded) > LABEL_LIMIT_BYTES and kept:
        # Escapes take up to 12 bytes a character: never cut too much.
        kept = kept[: -max(1, (len(encoded) - LABEL_LIMIT_BYTES) // 12)]
        encoded = json.dumps(labels._replace(version=kept + mark)).encode()
    return encoded if len(encoded) <= LABEL_LIMIT_BYTES else json.dumps(Labels(OVERFLOW, "", "")).encode()


class ObservedVersion(NamedTuple):
    labels: Labels
    live: bool
    counts: Counts


def read_blocks(memory: memoryview) -> Iterator[ObservedVersion]:
    """A copy of each block in use. A block being written while it is read is off by one request at most."""
    table = np.frombuffer(memory, dtype=np.uint64).reshape(CAPACITY, BLOCK_SLOTS)
    for block in table:
        size = int(block[_LABEL_BYTES])
        if size == 0:
            return
        label_bytes = block[_LABEL_SLOT : _LABEL_SLOT + _LABEL_SLOTS].tobytes()[:size]
        try:
            labels = Labels(*json.loads(label_bytes))
        except (ValueError, TypeError):
            continue  # a worker that crashed may have written anywhere; the others' counts are still good
        yield ObservedVersion(labels, bool(block[_LIVE]), block.copy())


def at_rest(counts: Counts) -> Counts:
    """What a worker's death leaves of its counts: nothing is in flight there, and no limit holds."""
    left = counts.copy()
    left[LIMIT] = left[IN_FLIGHT] = 0
    return left


def merge(one: Counts | None, other: Counts) -> Counts:
    """The sum of two blocks of the same labels; the time of the last inference is the later one."""
    if one is None:
        return other
    total = one + other
    total[:CODE] = 0
    total[LAST_MS] = max(one[LAST_MS], other[LAST_MS])
    return total


def requests_by_code(counts: Counts) -> dict[int, int]:
    """Only the codes that occurred; 0 stands for every status without a slot of its own."""
    slots = {code: int(counts[slot]) for code, slot in _CODE_SLOT.items()}
    slots[0] = int(counts[_OTHER_SLOT])
    return {code: count for code, count in slots.items() if count}


def quantile_s(counts: Counts, q: float, start: int = LATENCY) -> float | None:
    """The q-quantile of the latencies in seconds (the upper bound of its bucket), None without any."""
    buckets = counts[start : start + BUCKETS]
    total = int(buckets.sum())
    if not total:
        return None
    index = int(np.searchsorted(np.cumsum(buckets), math.ceil(q * total)))
    return float(bucket_bounds_s()[min(index, BUCKETS - 1)])

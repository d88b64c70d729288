from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry import observations as obs
from gateway.telemetry.ledger import Ledger
from gateway.telemetry.observations import (
    BUCKETS,
    CODES,
    LABEL_LIMIT_BYTES,
    Counts,
    Labels,
    ObservationWriter,
    VersionObservations,
    batch_bucket_of,
    bucket_bounds_s,
    bucket_of,
    merge,
    quantile_s,
    read_blocks,
    requests_by_code,
)

STABLE = Labels("digits", "stable", "1")
CANARY = Labels("digits", "canary", "2")
REFUSED = Labels("digits", "", "")
BOUNDS = bucket_bounds_s()


@pytest.fixture
def memory() -> memoryview:
    """What a worker and the supervisor share: zeros, and pages only where something was written."""
    return memoryview(mmap.mmap(-1, obs.SIZE_BYTES))


def blocks(memory: memoryview) -> dict[Labels, Counts]:
    read = list(read_blocks(memory))
    assert len({labels for labels, _, _ in read}) == len(read)
    return {labels: counts for labels, _, counts in read}


def live(memory: memoryview) -> dict[Labels, bool]:
    return {labels: is_live for labels, is_live, _ in read_blocks(memory)}


class TestBuckets:
    @given(st.integers(1000, 60_000_000_000))
    def test_a_bucket_is_two_per_cent_wide(self, duration_ns: int) -> None:
        bound_ns = BOUNDS[bucket_of(duration_ns)] * 1e9
        # The bound is never below the duration, beyond what a float rounds.
        assert duration_ns * (1 - 1e-9) <= bound_ns <= duration_ns * 1.0200001

    @given(st.integers(0, 10**15), st.integers(0, 10**15))
    def test_longer_is_never_a_lower_bucket(self, one: int, other: int) -> None:
        shorter, longer = sorted((one, other))
        assert 0 <= bucket_of(shorter) <= bucket_of(longer) <= BUCKETS - 1

    @pytest.mark.parametrize(
        ("duration_ns", "bucket"), [(-5, 0), (0, 0), (1000, 0), (1001, 1), (10**18, BUCKETS - 1)]
    )
    def test_the_ends(self, duration_ns: int, bucket: int) -> None:
        assert bucket_of(duration_ns) == bucket

    def test_a_minute_is_still_told_apart_from_more(self) -> None:
        assert bucket_of(60_000_000_000) < BUCKETS - 1
        assert BOUNDS[-1] > 60

    @pytest.mark.parametrize(
        ("rows", "bucket"),
        [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6), (65, 7), (16_384, 14), (16_385, 15), (10**9, 15)],
    )  # fmt: skip
    def test_batch_sizes_are_powers_of_two(self, rows: int, bucket: int) -> None:
        assert batch_bucket_of(rows) == bucket


class TestBlocks:
    def test_what_is_written_is_read(self, memory: memoryview) -> None:
        writer = ObservationWriter(memory)
        assert blocks(memory) == {}
        block = writer.block(STABLE)
        block.answered(200, 1_000_000)
        block.answered(200, 3_000_000)
        block.answered(503, 5_000_000)
        block.ran(rows=7, queued_ns=11, engine_ns=13, now_ms=17)
        block.ran(rows=1, queued_ns=1, engine_ns=2, now_ms=19)
        (counts,) = blocks(memory).values()
        assert requests_by_code(counts) == {200: 2, 503: 1}
        assert counts[obs.LATENCY_NS] == 9_000_000
        assert counts[obs.FAILED_NS] == 5_000_000
        assert (counts[obs.QUEUE_NS], counts[obs.ENGINE_NS], counts[obs.ROWS]) == (12, 15, 8)
        assert counts[obs.LAST_MS] == 19
        assert counts[obs.LATENCY : obs.LATENCY + BUCKETS].sum() == 3
        assert counts[obs.ENGINE : obs.ENGINE + BUCKETS].sum() == 2
        sizes = counts[obs.BATCHES : obs.BATCHES + obs.BATCH_BUCKETS]
        assert sizes[0] == 1 and sizes[3] == 1 and sizes.sum() == 2
        assert np.array_equal(block.read()[obs.CODE :], counts[obs.CODE :])

    @pytest.mark.parametrize("code", [*CODES, 201, 302, 418, 502, 599])
    def test_every_code_has_a_slot_of_its_own_or_the_last(self, memory: memoryview, code: int) -> None:
        writer = ObservationWriter(memory)
        block = writer.block(STABLE)
        block.answered(code, 1000)
        assert requests_by_code(block.read()) == {code if code in CODES else 0: 1}
        assert block.read()[obs.LATENCY_NS] == 1000, "the slots of codes end before the sums"

    @given(st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 10**13))))
    def test_many_at_once_are_as_many_one_by_one(self, durations_ns: list[int]) -> None:
        slots = memoryview(bytearray(2 * obs.BLOCK_BYTES)).cast("Q")
        at_once, singly = (VersionObservations(slots, at * obs.BLOCK_SLOTS, STABLE) for at in range(2))
        at_once.answered_many(iter(durations_ns))
        for duration_ns in durations_ns:
            singly.answered(200, duration_ns)
        assert at_once.read().tolist() == singly.read().tolist()

    def test_blocks_do_not_touch_each_other(self, memory: memoryview) -> None:
        writer = ObservationWriter(memory)
        for times, labels in enumerate((STABLE, CANARY, REFUSED), start=1):
            for _ in range(times):
                block = writer.block(labels)
                block.answered(599, 10**18)
                block.ran(10**9, 1, 10**18, 2**60)
        assert [requests_by_code(blocks(memory)[labels]) for labels in (STABLE, CANARY, REFUSED)] == [
            {0: 1},
            {0: 2},
            {0: 3},
        ]

    def test_a_version_that_comes_back_counts_on(self, memory: memoryview) -> None:
        writer = ObservationWriter(memory)
        writer.block(STABLE).answered(200, 1000)
        writer.retire(STABLE)
        writer.retire(CANARY)
        assert live(memory) == {STABLE: False}
        writer.block(STABLE).answered(200, 1000)
        assert live(memory) == {STABLE: True}
        assert requests_by_code(blocks(memory)[STABLE]) == {200: 2}

    def test_more_versions_than_blocks_share_the_last(self, memory: memoryview) -> None:
        writer = ObservationWriter(memory)
        for number in range(obs.CAPACITY + 10):
            writer.block(Labels("digits", "pinned", str(number))).answered(200, 1000)
        read = blocks(memory)
        assert len(read) == obs.CAPACITY
        assert requests_by_code(read[Labels(obs.OVERFLOW, "", "")]) == {200: 11}
        first = Labels("digits", "pinned", "0")
        writer.block(first).answered(200, 1000)
        assert requests_by_code(blocks(memory)[first]) == {200: 2}
        writer.retire(Labels("digits", "pinned", str(obs.CAPACITY + 5)))
        assert live(memory)[Labels(obs.OVERFLOW, "", "")]


class TestLabels:
    @pytest.mark.parametrize(
        "version",
        ["x" * 740, "x" * 5000, "ü" * 400, "😀" * 300, '"' * 900, "\\" * 900, "\n" * 900, "\ud800" * 900],
    )
    def test_a_version_too_long_for_its_block_keeps_its_beginning(
        self, memory: memoryview, version: str
    ) -> None:
        longest = Labels("r" * 128, "v" * 128, version)
        other = longest._replace(version=version + "!")
        writer = ObservationWriter(memory)
        writer.block(longest).answered(200, 1000)
        writer.block(longest).answered(200, 1000)
        writer.block(other).answered(503, 1000)
        writer.block(STABLE).answered(404, 1000)
        first, second, third = read_blocks(memory)
        assert third.labels == STABLE, "the blocks behind it are still found"
        for read, code in ((first, {200: 2}), (second, {503: 1})):
            assert read.labels[:2] == longest[:2]
            assert read.labels.version[:40] == version[:40]
            assert len(read.labels.version) > 60
            assert requests_by_code(read.counts) == code
        assert first.labels != second.labels, "two versions stay two series"

    def test_all_that_fits_is_kept(self, memory: memoryview) -> None:
        labels = Labels("r" * 128, "v" * 128, "x" * (LABEL_LIMIT_BYTES - 128 - 128 - len('["", "", ""]')))
        ObservationWriter(memory).block(labels)
        assert list(blocks(memory)) == [labels]

    def test_names_that_can_never_fit_overflow(self, memory: memoryview) -> None:
        ObservationWriter(memory).block(Labels("r" * 2000, "v", "1"))
        assert list(blocks(memory)) == [Labels(obs.OVERFLOW, "", "")]

    @pytest.mark.parametrize("garbage", [b"{", b'["a"]', b"5", b"\xff\xfe", b"null"])
    def test_a_block_that_is_unreadable_is_passed_over(self, memory: memoryview, garbage: bytes) -> None:
        writer = ObservationWriter(memory)
        writer.block(STABLE).answered(200, 1000)
        writer.block(CANARY).answered(503, 1000)
        memory[8:16] = len(garbage).to_bytes(8, "little")
        memory[16 : 16 + len(garbage)] = garbage
        assert list(blocks(memory)) == [CANARY]


def counts_of(*latencies_ns: int, code: int = 200) -> Counts:
    memory = memoryview(mmap.mmap(-1, obs.SIZE_BYTES))
    block = ObservationWriter(memory).block(STABLE)
    for latency_ns in latencies_ns:
        block.answered(code, latency_ns)
        block.ran(1, 0, latency_ns, latency_ns)
    return next(read_blocks(memory)).counts


class TestAddingUp:
    @given(st.lists(st.integers(0, 10**10), max_size=5), st.lists(st.integers(0, 10**10), max_size=5))
    def test_two_workers_are_one_that_did_it_all(self, one: list[int], other: list[int]) -> None:
        merged = merge(counts_of(*one), counts_of(*other))
        whole = counts_of(*one, *other)
        whole[obs.LAST_MS] = max(one[-1:] + other[-1:], default=0)
        assert np.array_equal(merged[obs.CODE :], whole[obs.CODE :])

    def test_the_first_is_taken_as_it_is(self) -> None:
        counts = counts_of(5000)
        assert np.array_equal(merge(None, counts), counts)

    @pytest.mark.parametrize(
        ("q", "expected_s"), [(0.0, 0.001), (0.5, 0.05), (0.9, 0.09), (0.99, 0.099), (1.0, 0.1)]
    )
    def test_quantiles_are_off_by_two_per_cent_at_most(self, q: float, expected_s: float) -> None:
        counts = counts_of(*(number * 1_000_000 for number in range(1, 101)))
        found = quantile_s(counts, q)
        assert found is not None
        if q > 0:
            assert expected_s <= found * 1.000001
        assert found <= expected_s * 1.021
        assert quantile_s(counts, q, obs.ENGINE) == found

    def test_without_requests_there_is_no_quantile(self) -> None:
        assert quantile_s(counts_of(), 0.5) is None


class Workers:
    """Memories of workers that live; one may die."""

    def __init__(self, *memories: memoryview) -> None:
        self.memories = list(memories)
        self.writers = [ObservationWriter(memory) for memory in memories]
        self.ledger = Ledger(self._living)

    def die(self, index: int) -> None:
        self.ledger.bury(list(read_blocks(self.memories.pop(index))))
        del self.writers[index]

    def requests(self, *served: Labels) -> dict[Labels, int]:
        totals = self.ledger.totals(lambda labels: labels in served)
        return {labels: sum(requests_by_code(counts).values()) for labels, counts in totals.items()}

    def _living(self) -> list[obs.ObservedVersion]:
        return [block for memory in self.memories for block in read_blocks(memory)]


def two_workers() -> Workers:
    return Workers(*(memoryview(mmap.mmap(-1, obs.SIZE_BYTES)) for _ in range(2)))


class TestLedger:
    def test_the_workers_add_up(self) -> None:
        workers = two_workers()
        for writer in workers.writers:
            writer.block(STABLE).answered(200, 1000)
        workers.writers[0].block(CANARY).answered(503, 1000)
        assert workers.requests() == {STABLE: 2, CANARY: 1}
        assert workers.requests() == {STABLE: 2, CANARY: 1}, "a scrape changes nothing"

    def test_what_a_dead_worker_counted_is_kept(self) -> None:
        workers = two_workers()
        workers.writers[0].block(STABLE).answered(200, 1000)
        workers.writers[1].block(STABLE).answered(200, 1000)
        workers.die(0)
        assert workers.requests(STABLE) == {STABLE: 2}
        workers.writers[0].block(STABLE).answered(200, 1000)
        assert workers.requests(STABLE) == {STABLE: 3}
        workers.die(0)
        assert workers.requests(STABLE) == {STABLE: 3}, "no worker lives, the version is declared"

    def test_a_dead_worker_has_nothing_in_flight(self) -> None:
        workers = two_workers()
        for writer in workers.writers:
            writer.block(STABLE).limited(10)
            writer.block(STABLE).in_flight(3)
            writer.block(STABLE).rejected()
        slots = (obs.LIMIT, obs.IN_FLIGHT, obs.REJECTED)
        assert [workers.ledger.totals(bool)[STABLE][slot] for slot in slots] == [20, 6, 2]
        workers.die(0)
        assert [workers.ledger.totals(bool)[STABLE][slot] for slot in slots] == [10, 3, 2]

    def test_the_series_of_a_version_that_is_gone_go(self) -> None:
        workers = two_workers()
        for writer in workers.writers:
            writer.block(CANARY).answered(200, 1000)
            writer.block(CANARY).limited(10)
        workers.die(0)
        assert workers.requests() == {CANARY: 2}, "one worker has it live"
        workers.writers[0].retire(CANARY)
        assert workers.requests(CANARY) == {CANARY: 2}, "it is declared still"
        assert workers.ledger.totals(bool)[CANARY][obs.LIMIT] == 0, (
            "a version that is let in no more has none"
        )
        assert workers.requests() == {}
        # It comes back: the dead worker's counts are gone for good, no total jumps up.
        workers.writers[0].block(CANARY).answered(200, 1000)
        assert workers.requests(CANARY) == {CANARY: 2}

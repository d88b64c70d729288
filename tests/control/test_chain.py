from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from gateway.control.chain import chained, head_with
from gateway.control.file_store import FileStore
from gateway.control.redis_store import RedisStore
from gateway.control.store import HistoryRecord, Store
from tests.contracts.chain import CHANGED, ChainContract, Row, six_lines, verify
from tests.contracts.store import BAD, EMPTY, Opener, author, document
from tests.control.test_file_store import run
from tests.servers.redis import RedisServer

NUMBERS = {"epoch", "rev", "us"}
RECORD = HistoryRecord(type="put", epoch=1, rev=2, us=3, actor="ann", reason="because")


def test_every_field_is_covered() -> None:
    head = head_with(RECORD)
    for field in set(HistoryRecord.__struct_fields__) - {"head"}:
        assert head_with(msgspec.structs.replace(RECORD, **{field: CHANGED[field]})) != head, field


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "a", "sha256": "bc"}, {"type": "ab", "sha256": "c"}),
        ({"rev": 12, "us": 3}, {"rev": 1, "us": 23}),
        ({"actor": "a", "reason": "bc"}, {"actor": "ab", "reason": "c"}),
        ({"reason": '"],["', "actor": "a"}, {"reason": "", "actor": 'a"],["'}),
        ({"type": "1:a", "prev": ""}, {"type": "a", "prev": "1:"}),
    ],
)
def test_a_byte_that_moves_to_the_next_field_is_another_line(one: Row, other: Row) -> None:
    assert head_with(msgspec.structs.replace(RECORD, **one)) != head_with(
        msgspec.structs.replace(RECORD, **other)
    )


def test_the_same_line_has_the_same_head_in_every_release() -> None:
    """What was written by one must be verified by the next: this value never changes."""
    record = chained(msgspec.structs.replace(RECORD, changes=[{"route": "ü", "after": 33.3}]), "")
    assert record.head == "0af04885f009d35dad6b25d752c9f3678e8acb2c638af7ded685cfd4b625f5e1"


class TestInRedis(ChainContract):
    plain: redis.Redis
    prefix: str

    @pytest.fixture
    def opener(self, shared_redis: RedisServer, namespace: str) -> Opener:
        return lambda: RedisStore(shared_redis.url, namespace, "replica")

    @pytest.fixture(autouse=True)
    def _beside_the_store(self, shared_redis: RedisServer, namespace: str) -> Iterator[None]:
        self.prefix = f"{{turnout:{namespace}}}:"
        with redis.Redis(port=shared_redis.port) as self.plain:
            yield

    def rows(self) -> list[Row]:
        entries: Any = self.plain.xrange(self.prefix + "log")
        return [self._row(fields) for _, fields in entries]

    def rewrite(self, rows: list[Row]) -> None:
        self.plain.delete(self.prefix + "log")
        for row in rows:
            self.plain.xadd(self.prefix + "log", self._fields(row))

    def set_head(self, head: str) -> None:
        if head:
            self.plain.hset(self.prefix + "state", "head", head)
        else:
            self.plain.hdel(self.prefix + "state", "head")

    def lose_state(self) -> None:
        self.plain.delete(self.prefix + "state")

    def keep(self, monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
        monkeypatch.setattr("gateway.control.redis_ledger.LOG_KEPT", lines)

    @staticmethod
    def _row(fields: dict[bytes, bytes]) -> Row:
        row: Row = {name.decode(): value.decode() for name, value in fields.items()}
        return {
            **row,
            **{name: int(row[name]) for name in NUMBERS},
            "changes": json.loads(row["changes"]),
        }

    @staticmethod
    def _fields(row: Row) -> dict[Any, Any]:
        fields = {**row, "changes": msgspec.json.encode(row["changes"])}
        # A line from before the chain has no such fields.
        return {name: value for name, value in fields.items() if value != "" or name not in ("prev", "head")}

    async def test_a_foreign_entry_is_found(self, store: Store) -> None:
        await six_lines(store)
        foreign = self.plain.xadd(self.prefix + "log", {"hello": "world"})
        assert isinstance(foreign, bytes)
        assert f"entry {foreign.decode()} is no line of a history" in (await verify(store)).broken

    async def test_a_field_beside_the_known_ones_is_found(self, store: Store) -> None:
        await six_lines(store)
        rows = self.rows()
        rows[3]["note"] = "eve was here"
        self.rewrite(rows)
        assert "is no line of a history" in (await verify(store)).broken

    async def test_a_flushed_store_begins_a_chain_anew(self, store: Store) -> None:
        await six_lines(store)
        self.plain.delete(*(self.prefix + name for name in ("state", "deny", "log", "ops")))
        await store.put(document(), EMPTY, author("a"), [])
        verdict = await verify(store)
        assert (verdict.broken, verdict.lines, verdict.oldest) == ("", 1, "1.1")

    async def test_it_is_read_in_pages_up_to_where_it_ended_at_first(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.control.redis_ledger.PAGE", 2)
        await six_lines(store)
        ledger = await store.ledger()
        await store.undeny([BAD], author("g"), [])
        pages = [[line.record.op_id for line in page if line.record] async for page in ledger.pages]
        assert pages == [["a", "b"], ["c", "d"], ["e", "f"]]
        assert (await verify(store)).lines == 7


class TestInAFile(ChainContract):
    directory: Path

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        self.directory = tmp_path / "state"
        return lambda: FileStore(self.directory)

    @property
    def path(self) -> Path:
        return self.directory / "history.jsonl"

    def rows(self) -> list[Row]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def rewrite(self, rows: list[Row]) -> None:
        # A new file, as an editor leaves it.
        made = self.path.with_suffix(".new")
        made.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        made.replace(self.path)

    def set_head(self, head: str) -> None:
        path = self.directory / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "head": head}))

    def lose_state(self) -> None:
        (self.directory / "state.json").unlink()

    def keep(self, monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
        monkeypatch.setattr("gateway.control.history_file.HistoryFile.kept_lines", lines)

    async def test_an_unreadable_line_is_found(self, store: Store) -> None:
        await six_lines(store)
        raw = self.path.read_bytes().splitlines(keepends=True)
        self.path.write_bytes(b"".join([*raw[:3], b"{}\n", *raw[3:]]))
        assert "line 4 is no line of a history" in (await verify(store)).broken

    @pytest.mark.parametrize(
        "change",
        [
            "store.put(document(100), Revision(1, 1), author('killed'), [])",
            "store.deny({BAD: '2'}, author('killed'), [])",
            "store.reject(author('killed'), 'no')",
        ],
    )
    async def test_a_killed_writer_leaves_the_chain_whole(self, store: Store, change: str) -> None:
        await store.put(document(), EMPTY, author("a"), [])
        killed = run(
            self.directory,
            f"Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nasyncio.run({change})\n",
        )
        assert killed.returncode == -9, killed.stderr
        assert [row["op_id"] for row in self.rows()] == ["a", "killed"]
        assert [record.op_id for record in await store.history()] == ["a"]
        verdict = await verify(store)
        assert (verdict.broken, verdict.lines) == ("", 1)
        await store.deny({BAD: "2"}, author("b"), [])
        verdict = await verify(store)
        assert (verdict.broken, verdict.lines) == ("", 2)

    async def test_a_compacted_file_is_whole(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(store, FileStore)
        monkeypatch.setattr(store._history, "_kept_lines", 10)
        revision = EMPTY
        for n in range(30):
            revision = await store.put(document(n), revision, author(str(n)), [])
        verdict = await verify(store)
        assert verdict.broken == "" and 10 <= verdict.lines < 30

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from gateway.control.file_store import FileStore
from gateway.control.store import Store, StoreUnavailable
from gateway.routing.state import Revision, StateError
from tests.contracts.chain import verify
from tests.contracts.store import EMPTY, Opener, StoreContract, author, document, holding

CHILD = """
import asyncio, os, resource, signal, sys
from pathlib import Path
from gateway.control.file_store import FileStore
from gateway.control.store import Conflict, StoreUnavailable
from gateway.routing.state import Revision
from tests.contracts.store import BAD, author, document

directory = Path(sys.argv[1])
store = FileStore(directory)
"""


def run(directory: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD + program, str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestFileStore(StoreContract):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return lambda: FileStore(tmp_path / "state")

    async def damage(self, store: Store) -> None:
        assert isinstance(store, FileStore)
        raw = store.state_path.read_bytes()
        store.state_path.write_bytes(raw.replace(b"r/fraud@1", b"r/fraud@9"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_only_the_owner_can_read_what_it_writes(directory: Path) -> None:
    store = FileStore(directory)
    await store.put(document(), EMPTY, author("a"), [])
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


async def test_a_writer_killed_between_history_and_state_changed_nothing(directory: Path) -> None:
    store = FileStore(directory)
    await store.put(document(), EMPTY, author("a"), [])
    killed = run(
        directory,
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(store.put(document(100), Revision(1, 1), author('killed'), []))\n",
    )
    assert killed.returncode == -9, killed.stderr
    lines = (directory / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["op_id"] for line in lines] == ["a", "killed"]

    held = await store.read()
    assert held is not None and held.revision == Revision(1, 1)
    assert [record.op_id for record in await store.history()] == ["a"]

    assert await store.put(document(200), Revision(1, 1), author("b"), []) == Revision(1, 2)
    assert [record.op_id for record in await FileStore(directory).history()] == ["b", "a"]
    # The killed writer tries again, finds itself forgotten, and is told of the conflict.
    retried = run(
        directory,
        "try: asyncio.run(store.put(document(100), Revision(1, 1), author('killed'), []))\n"
        "except Conflict as conflict: print(conflict.current)\n",
    )
    assert retried.stdout.strip() == "1.2", retried.stderr
    assert not list(directory.glob(".*.tmp-*")), "what the killed writer left is swept"


async def test_a_writer_killed_at_the_very_first_change_leaves_an_empty_store(directory: Path) -> None:
    killed = run(
        directory,
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(store.put(document(), Revision(0, 0), author('killed'), []))\n",
    )
    assert killed.returncode == -9, killed.stderr
    store = FileStore(directory)
    assert await store.read() is None
    assert await store.history() == []
    revision = await store.put(document(), EMPTY, author("a"), [])
    assert [record.op_id for record in await store.history()] == ["a"]
    assert await store.put(document(), EMPTY, author("a"), []) == revision


async def test_half_a_line_of_history_is_cut_off(directory: Path) -> None:
    store = FileStore(directory)
    await store.put(document(), EMPTY, author("a"), [])
    with (directory / "history.jsonl").open("ab") as file:
        file.write(b'{"type":"put","epoch":1,"rev":2')
    assert [record.op_id for record in await store.history()] == ["a"]
    await store.put(document(100), Revision(1, 1), author("b"), [])
    assert [record.op_id for record in await FileStore(directory).history()] == ["b", "a"]


# The first limit stops the history's line, the second one the state behind it.
@pytest.mark.parametrize("spare_bytes", [20, 600])
async def test_a_full_disk_changes_nothing_and_says_so(directory: Path, spare_bytes: int) -> None:
    store = FileStore(directory)
    await store.put(document(), EMPTY, author("a"), [])
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    full = run(
        directory,
        f"limit = (directory / 'history.jsonl').stat().st_size + {spare_bytes}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "big = document(100)\n"
        "big = type(big)(routes=big.routes, manifest_sha256='x' * 5000)\n"
        "try: asyncio.run(store.put(big, Revision(1, 1), author('full'), []))\n"
        "except StoreUnavailable as error: print(error)\n",
    )
    assert "no space left for the state in" in full.stdout and "--state-dir" in full.stdout, full.stderr
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert await store.put(document(100), Revision(1, 1), author("full"), []) == Revision(1, 2)


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    with pytest.raises(StoreUnavailable, match="state"):
        await FileStore(tmp_path / "state").put(document(), EMPTY, author("a"), [])


def test_two_processes_at_once_lose_no_change(directory: Path) -> None:
    program = (
        "async def main():\n"
        "    done = 0\n"
        "    while done < 25:\n"
        "        held = await store.read()\n"
        "        expect = held.revision if held else Revision(0, 0)\n"
        "        try: await store.put(document(done), expect, author(f'{os.getpid()}-{done}'), [])\n"
        "        except Conflict: continue\n"
        "        done += 1\n"
        "asyncio.run(main())\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD + program, str(directory)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for child in children:
        _, stderr = child.communicate(timeout=60)
        assert child.returncode == 0, stderr.decode()
    lines = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    assert [line["rev"] for line in lines] == list(range(1, 51))
    assert len({line["op_id"] for line in lines}) == 50
    assert asyncio.run(verify(FileStore(directory))).broken == ""


async def test_a_damaged_file_is_kept_aside_and_a_new_epoch_begins(directory: Path) -> None:
    store = FileStore(directory)
    await store.put(document(), EMPTY, author("a"), [])
    store.state_path.write_bytes(b"{ half a docum")
    with pytest.raises(StateError):
        await store.put(document(100), Revision(1, 1), author("b"), [])
    with pytest.raises(StateError):
        await store.deny({}, author("c"), [])
    with pytest.raises(StateError, match="turnout restore"):
        await store.put(document(100), EMPTY, author("d"), [])
    assert (await store.restore(holding(Revision(1, 1)), EMPTY, author("e"), [])) == Revision(2, 1)
    assert (directory / "state.json.damaged-1").read_bytes() == b"{ half a docum"
    assert [record.op_id for record in await store.history()] == ["e", "a"], "what was committed stays"
    assert (await verify(store)).broken == ""


async def test_the_history_is_bounded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(directory)
    monkeypatch.setattr(store._history, "_kept_lines", 10)
    revision = EMPTY
    for n in range(50):
        revision = await store.put(document(n), revision, author(str(n)), [])
    assert revision == Revision(1, 50)
    assert len((directory / "history.jsonl").read_text().splitlines()) < 20
    assert (await store.history())[0].op_id == "49"
    assert await store.put(document(), EMPTY, author("45"), []) == Revision(1, 46)


async def test_a_lock_that_is_never_released_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    store = FileStore(directory)
    await store.put(document(), EMPTY, author("a"), [])
    monkeypatch.setattr("gateway.control.file_lock.LOCK_TIMEOUT_S", 0.05)
    handle = os.open(directory / "lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(StoreUnavailable, match="lock"):
        await store.put(document(), Revision(1, 1), author("b"), [])
    os.close(handle)
    await store.put(document(), Revision(1, 1), author("b"), [])


async def test_the_event_loop_is_never_blocked(directory: Path) -> None:
    store = FileStore(directory)
    with blockbuster_ctx():
        watch = store.watch()
        await anext(watch)
        await store.put(document(), EMPTY, author("a"), [])
        await anext(watch)
        await store.reject(author("b"), "no")
        await store.read()
        await store.history()
        await watch.aclose()

"""Large files in parts, from a real server that honours ranges, or does not, or lies about them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.control.cached_version import CachedVersion
from gateway.control.parallel_fetch import CONNECTIONS, SPAN_BYTES, divided
from gateway.control.weights import WeightsCache
from registry_client.errors import IntegrityError, Unavailable
from tests.control.onnx_models import noise, tiny
from tests.servers.http_files import FileServer, HttpRegistry, Reply, described
from tests.servers.weights import cache_root, left, reopen, weights

__all__ = ["cache_root", "reopen", "weights"]

MIB = 2**20
SIZE = 3 * SPAN_BYTES - 5
NAME = "weights.bin"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {"model.onnx": tiny(NAME), NAME: noise(SIZE, 7)}


def ranges(server: FileServer) -> list[str]:
    return sorted(wanted for path, wanted, _ in server.asked if path == NAME)


def honest_ranges(start: int = 0) -> list[str]:
    return sorted(f"bytes={span.start}-{span.end - 1}" for span in divided(start, SIZE))


async def fetch(
    cache: WeightsCache,
    server: FileServer,
    files: dict[str, bytes],
    *,
    checksums: bool = True,
    read_s: float = 5.0,
) -> CachedVersion:
    client = HttpRegistry(server.url, described(files, checksums=checksums), read_s=read_s)
    try:
        return await cache.ensure(client, client.version)
    finally:
        await client.aclose()


def assert_whole(cached: CachedVersion, files: dict[str, bytes]) -> None:
    assert {file.path: (cached.path / file.path).read_bytes() for file in cached.files} == files
    assert {path.name for path in cached.path.parent.iterdir()} == {"files", "manifest.json"}


def broken_once(fault: Callable[[Reply], Reply], start: int) -> Callable[[Reply, str], Reply]:
    """`fault` on the first answer that begins at `start`."""
    done = []

    def apply(reply: Reply, wanted: str) -> Reply:
        if reply.status != 206 or reply.start != start or done:
            return reply
        done.append(True)
        return fault(reply)

    return apply


def without_the_second(reply: Reply, wanted: str) -> Reply:
    ours = reply.status == 206 and reply.start == SPAN_BYTES
    return replace(reply, content=b"", declared_bytes=SPAN_BYTES) if ours else reply


async def test_a_large_file_comes_in_parts_and_a_small_one_whole(
    weights: WeightsCache, files: dict[str, bytes]
) -> None:
    async with FileServer(files) as server:
        assert_whole(await fetch(weights, server, files), files)
    assert ranges(server) == honest_ranges()
    assert [wanted for path, wanted, _ in server.asked if path == "model.onnx"] == [""]
    # All but the first name the state of the file that the first was of.
    assert [bool(condition) for path, _, condition in server.asked if path == NAME] == [False, True, True]


async def test_parts_come_side_by_side(weights: WeightsCache, files: dict[str, bytes]) -> None:
    """The first part hangs until it is given up: the others are there before."""
    hang = broken_once(
        lambda reply: replace(reply, content=reply.content[:MIB], declared_bytes=SPAN_BYTES, hang=True), 0
    )
    async with FileServer(files, fault=hang) as server:
        assert_whole(await fetch(weights, server, files, read_s=2.0), files)
    first, *others, resumed = [wanted for path, wanted, _ in server.asked if path == NAME]
    assert sorted([first, *others]) == honest_ranges()
    assert resumed == f"bytes={MIB}-{SPAN_BYTES - 1}"
    assert 1 < len(others) + 1 <= CONNECTIONS


@pytest.mark.parametrize("etags", [True, False])
async def test_a_source_without_ranges_is_asked_once(
    weights: WeightsCache, files: dict[str, bytes], etags: bool
) -> None:
    async with FileServer(files, ranges=False, etags=etags) as server:
        assert_whole(await fetch(weights, server, files), files)
    assert ranges(server) == [f"bytes=0-{SPAN_BYTES - 1}"]


async def test_parts_that_nothing_ties_together_are_not_mixed(
    weights: WeightsCache, files: dict[str, bytes]
) -> None:
    """No digest and no ETag: a file replaced meanwhile would go unnoticed, so the rest is one stream."""
    async with FileServer(files, etags=False) as server:
        assert_whole(await fetch(weights, server, files, checksums=False), files)
    assert ranges(server) == sorted([f"bytes=0-{SPAN_BYTES - 1}", f"bytes={SPAN_BYTES}-"])


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda reply: replace(reply, content_range=f"bytes 0-{MIB}/{SIZE}"), id="another start"),
        pytest.param(lambda reply: replace(reply, content_range=f"bytes {SPAN_BYTES}-{SIZE}/{SIZE}"), id="too far"),
        pytest.param(lambda reply: replace(reply, content_range="bytes"), id="nonsense"),
        pytest.param(lambda reply: replace(reply, content=reply.content[:-1], content_range=
                     f"bytes {SPAN_BYTES}-{2 * SPAN_BYTES - 1}/{SIZE}"), id="another length"),
    ],
)  # fmt: skip
async def test_a_lying_content_range_ends_the_parts(
    weights: WeightsCache, files: dict[str, bytes], lie: Callable[[Reply], Reply]
) -> None:
    async with FileServer(files, fault=broken_once(lie, SPAN_BYTES)) as server:
        assert_whole(await fetch(weights, server, files), files)
    assert ranges(server) == sorted([*honest_ranges(), ""])


async def test_a_file_that_changes_between_the_parts_is_fetched_anew(
    weights: WeightsCache, files: dict[str, bytes]
) -> None:
    """Without digests nothing else would tell: the parts of two releases must not end up in one file."""
    newer = noise(SIZE, 8)
    server = FileServer(dict(files))

    def change(reply: Reply, wanted: str) -> Reply:
        server.files[NAME] = newer  # what is asked from now on is answered from the new file
        return reply

    server.fault = broken_once(lambda reply: change(reply, ""), 0)
    async with server:
        cached = await fetch(weights, server, files, checksums=False)
    assert (cached.path / NAME).read_bytes() == newer
    assert ranges(server).count("") == 1


async def test_a_wrong_byte_in_any_part_is_an_integrity_error(
    weights: WeightsCache, cache_root: Path, files: dict[str, bytes]
) -> None:
    def flip(reply: Reply) -> Reply:
        return replace(reply, content=reply.content[:-1] + bytes([reply.content[-1] ^ 1]))

    async with FileServer(files, fault=broken_once(flip, 2 * SPAN_BYTES)) as server:
        with pytest.raises(IntegrityError, match="was promised"):
            await fetch(weights, server, files)
    assert left(cache_root, "quarantine") and not left(cache_root, "versions")


async def test_what_came_before_a_break_is_not_fetched_again(
    weights: WeightsCache, reopen: Callable[..., WeightsCache], files: dict[str, bytes]
) -> None:
    """The second part breaks again and again without a byte; the others are kept for the next attempt."""

    async with FileServer(files, fault=without_the_second) as server:
        with pytest.raises(Unavailable):
            await fetch(weights, server, files)
        before = len(server.asked)
        server.fault = lambda reply, _: reply
        assert_whole(await fetch(reopen(), server, files), files)
        again = [wanted for path, wanted, _ in server.asked[before:] if path == NAME]
    assert "" not in ranges(server)
    assert f"bytes={SPAN_BYTES}-{2 * SPAN_BYTES - 1}" in again
    assert f"bytes=0-{SPAN_BYTES - 1}" not in again


FETCHER = """
import asyncio, sys
from pathlib import Path
from gateway.control.weights import WeightsCache
from tests.servers.http_files import HttpRegistry
from registry_client.models import ModelFile

async def main(url, cache, *files):
    described = tuple(ModelFile(path=p, size_bytes=int(n)) for p, n in (f.split("=") for f in files))
    client = HttpRegistry(url, described, read_s=60)
    await WeightsCache(Path(cache)).ensure(client, client.version)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_fetch_that_was_killed_goes_on_where_it_was(
    reopen: Callable[..., WeightsCache], cache_root: Path, files: dict[str, bytes]
) -> None:
    """The last part hangs; the process is killed when the others are noted as done."""
    hang = broken_once(lambda reply: replace(reply, content=b"", declared_bytes=5, hang=True), 2 * SPAN_BYTES)
    async with FileServer(files, fault=hang) as server:
        sizes = [f"{path}={len(content)}" for path, content in files.items()]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FETCHER, server.url, str(cache_root), *sizes
        )

        def noted() -> bool:
            notes = [path.read_text() for path in cache_root.glob("partial/*/missing/*.json")]
            return any(f'"spans":[{{"start":{2 * SPAN_BYTES},"end":{SIZE}}}]' in note for note in notes)

        async with asyncio.timeout(30):
            while not noted():
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        before = len(server.asked)
        assert_whole(await fetch(reopen(), server, files, checksums=False), files)
        again = [wanted for path, wanted, _ in server.asked[before:] if path == NAME]
    assert again == [f"bytes={2 * SPAN_BYTES}-{SIZE - 1}"]


async def test_a_note_about_another_file_is_not_believed(
    weights: WeightsCache, reopen: Callable[..., WeightsCache], cache_root: Path, files: dict[str, bytes]
) -> None:
    """The file was replaced, the note was not: what it says is there, is not."""
    async with FileServer(files, fault=without_the_second) as server:
        with pytest.raises(Unavailable):
            await fetch(weights, server, files, checksums=False)
        (path,) = cache_root.glob(f"partial/*/files/{NAME}")
        other = cache_root / "other"
        other.write_bytes(bytes(SIZE))
        other.rename(path)
        server.fault = lambda reply, _: reply
        assert_whole(await fetch(reopen(), server, files, checksums=False), files)

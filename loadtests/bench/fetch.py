"""How long a version takes from its registry into the cache, verified, against curl writing the same bytes.

    python -m loadtests.bench.fetch [--mib 1024] [--rounds 5] [--rate 25m]

Serves a file of random bytes from an nginx of its own on loopback, and alternates curl and the weights cache,
each into a fresh file, with and without the wait for the disk. Then both once more with each connection limited
to `--rate`, nginx' `limit_rate`. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.control.weights import WeightsCache
from registry_client.models import Digest, ModelFile
from tests import models
from tests.servers.gateway import wait_for
from tests.servers.http_files import HttpRegistry

CONFIGURATION = """
daemon off; worker_processes 1; pid {root}/pid; error_log {root}/errors;
events {{}}
http {{
  access_log off; sendfile on;
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  server {{
    listen unix:{root}/probe; listen 127.0.0.1:{port};
    location / {{ root {root}/files; }}
    location /limited/ {{ alias {root}/files/; limit_rate {rate}; }}
  }}
}}
"""


@contextmanager
def served(root: Path, port: int, rate: str) -> Iterator[str]:
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        raise SystemExit("nginx is not installed: it is what serves the file")
    (root / "conf").write_text(CONFIGURATION.format(root=root, port=port, rate=rate))
    process = subprocess.Popen([nginx, "-e", str(root / "errors"), "-c", str(root / "conf")])
    try:
        wait_for((root / "probe").exists, 10)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def write_files(directory: Path, mib: int) -> tuple[ModelFile, ...]:
    models.save(models.mlp(4, 4, 2), directory)
    sha256 = hashlib.sha256()
    with (directory / "weights.bin").open("wb") as file:
        for _ in range(mib):
            block = os.urandom(2**20)
            file.write(block)
            sha256.update(block)
    small = (directory / "model.onnx").read_bytes()
    return (
        ModelFile(path="model.onnx", size_bytes=len(small), digest=Digest("sha256", hashlib.sha256(small).hexdigest())),
        ModelFile(path="weights.bin", size_bytes=mib * 2**20, digest=Digest("sha256", sha256.hexdigest())),
    )  # fmt: skip


def by_curl(url: str, scratch: Path, *, durable: bool) -> float:
    target = scratch / "curl"
    started = time.perf_counter()
    subprocess.run(["curl", "-sf", "-o", target, f"{url}/weights.bin"], check=True)
    if durable:
        with target.open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def by_cache(url: str, scratch: Path, files: tuple[ModelFile, ...]) -> float:
    async def fetch() -> float:
        client = HttpRegistry(url, files, read_s=30)
        cache = WeightsCache(scratch / "cache")
        started = time.perf_counter()
        await cache.ensure(client, client.version)
        seconds = time.perf_counter() - started
        await client.aclose()
        await cache.aclose()
        return seconds

    seconds = asyncio.run(fetch())
    shutil.rmtree(scratch / "cache")
    return seconds


def compare(title: str, rounds: int, curl: Callable[[], float], cache: Callable[[], float]) -> None:
    pairs = [(curl(), cache()) for _ in range(rounds)]
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{title:34} curl {theirs:6.2f} s   fetch and verify {ours:6.2f} s   ratio {ratio:5.2f}", flush=True
    )


def without_disk(cache: Callable[[], float]) -> Callable[[], float]:
    """As long as it runs nothing waits for the disk, as curl does not."""

    def run() -> float:
        kept = os.fsync, os.fdatasync
        os.fsync = os.fdatasync = lambda _: None  # type: ignore[assignment]
        try:
            return cache()
        finally:
            os.fsync, os.fdatasync = kept

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", default="25m", help="bytes a second of one connection, as nginx writes it")
    parser.add_argument("--port", type=int, default=18098)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnout-fetch-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        files = write_files(root / "files", arguments.mib)
        with served(root, arguments.port, arguments.rate) as url:
            rounds = arguments.rounds
            cache = lambda: by_cache(url, root, files)  # noqa: E731
            print(f"{arguments.mib} MiB over loopback, medians of {rounds} rounds")
            compare(
                "without waiting for the disk",
                rounds,
                lambda: by_curl(url, root, durable=False),
                without_disk(cache),
            )
            compare("until it is on the disk", rounds, lambda: by_curl(url, root, durable=True), cache)
            limited = f"{url}/limited"
            compare(f"{arguments.rate}B/s a connection", 1, lambda: by_curl(limited, root, durable=False),
                    lambda: by_cache(limited, root, files))  # fmt: skip


if __name__ == "__main__":
    main()

"""Fetches in a process of its own, that may be killed or run out of disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from registry_client.adapters.directory import publish
from tests.control.onnx_models import noise, tiny


def publish_large(tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.mkdir()
    (source / "model.onnx").write_bytes(tiny("weights.bin"))
    (source / "weights.bin").write_bytes(noise(4 * 2**20))
    publish(tmp_path / "models", "large", source)


CHILD = """
import asyncio, json, os, resource, signal, sys
from pathlib import Path
from gateway.control.partial_file import PartialFile
from gateway.control.weights import CacheFull, WeightsCache
from registry_client import open_registry

offsets = []

async def main():
    client = open_registry("local", "directory", {"path": sys.argv[2]})
    real = client.open
    def counted(version, file, *, offset=0):
        offsets.append(offset)
        return real(version, file, offset=offset)
    client.open = counted
    cache = WeightsCache(Path(sys.argv[1]))
    version = await client.resolve("large", "1")
    return await cache.ensure(client, version)

"""
COUNTING = """
print(json.dumps({"digest": asyncio.run(main()).digest, "opens": len(offsets), "offsets": offsets}))
"""
KILLED_AT_2_MIB = """
real_append = PartialFile.append
def append(self, content):
    real_append(self, content)
    if self.size_bytes >= 2 * 2**20:
        os.kill(os.getpid(), signal.SIGKILL)
PartialFile.append = append
asyncio.run(main())
"""
LIMITED = """
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
try:
    asyncio.run(main())
except CacheFull as error:
    print(error)
"""


def start_fetch(root: Path, tmp_path: Path, program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + program, str(root), str(tmp_path / "models")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

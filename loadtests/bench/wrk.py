"""Runs wrk with requests made beforehand, and reads what it saw."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.machine import BenchError

_MARK = "turnout-bench "
_SCRIPT = """
local requests, last, turn = {{}}, 0, 0
local file = assert(io.open({path}, "rb"))
for length in string.gmatch({lengths}, "%d+") do
  last = last + 1
  requests[last] = file:read(tonumber(length))
end
file:close()

function request()
  turn = turn % last + 1
  return requests[turn]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '{mark}{{"requests":%d,"duration_us":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d,' ..
    '"bad_status":%d,"broken":%d,"timeouts":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90),
    latency:percentile(99), latency.max, e.status, e.connect + e.read + e.write, e.timeout))
end
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one run of wrk saw. Latencies are of a closed loop: a connection asks when it has its answer."""

    requests: int
    duration_us: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    bad_status: int = 0
    broken: int = 0
    timeouts: int = 0

    @property
    def per_s(self) -> float:
        return self.requests / self.duration_us * 1e6


class Script:
    """A Lua script that sends these requests in turn, for as long as `directory` is there."""

    def __init__(self, directory: Path, name: str, requests: Sequence[bytes]) -> None:
        self.path = directory / f"{name}.lua"
        blob = directory / f"{name}.requests"
        blob.write_bytes(b"".join(requests))
        lengths = " ".join(str(len(request)) for request in requests)
        self.path.write_text(
            _SCRIPT.format(path=json.dumps(str(blob)), lengths=json.dumps(lengths), mark=_MARK)
        )

    def command(self, address: str, *, connections: int, seconds: int, core: int) -> list[str]:
        return [
            *("taskset", "--cpu-list", str(core), "wrk", "--threads", "1"),
            *("--connections", str(connections), "--duration", f"{seconds}s", "--timeout", "10s"),
            *("--script", str(self.path), f"http://{address}/"),
        ]

    def run(self, address: str, *, connections: int, seconds: int, core: int) -> Load:
        """Raises `BenchError` where an answer was none; no answer in this time is a load without requests."""
        command = self.command(address, connections=connections, seconds=seconds, core=core)
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
        load = parse(ran.stdout + ran.stderr)
        if load.bad_status or load.broken or load.timeouts:
            raise BenchError(f"{address} did not answer every request with 2xx: {load}")
        return load


def parse(output: str) -> Load:
    """Reads the line that the script prints at the end. Raises `BenchError` with wrk's own words if none."""
    line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise BenchError(f"wrk told no figures: {output.strip()[-500:]}")
    return Load(**json.loads(line.removeprefix(_MARK)))

"""The load test against a gateway of its own: the quickstart's manifest, free ports, state that is thrown away.

    make load
    python -m loadtests.quickstart -u 20 -t 60s

Whatever is given goes to locust. The gateway and locust share this machine's cores: compare versions with
it, not gateways.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "quickstart" / "turnout.yaml"
READY = re.compile(r"turnout is ready: data (http://\S+)  admin (http://\S+)")
STOP_S = 45.0
DEFAULTS = ("--headless", "--only-summary", "-u", "20", "-r", "20", "-t", "20s")


@contextmanager
def gateway(directory: Path) -> Iterator[tuple[str, str]]:
    """Its two addresses, once it is ready."""
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(CONFIG)]
    command += ["--port", "0", "--grpc-port", "0", "--admin-port", "0"]
    command += ["--state-dir", str(directory / "state"), "--cache-dir", str(directory / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            ready = next((match for line in process.stdout if (match := READY.match(line))), None)
            if ready is None:
                sys.exit("the gateway did not get ready: what it says is above")
            yield ready[1], ready[2]
        finally:
            process.terminate()
            process.wait(STOP_S)


def main() -> int:
    with tempfile.TemporaryDirectory() as directory, gateway(Path(directory)) as (data, admin):
        locust = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py")]
        # What is given last wins.
        load = subprocess.run([*locust, "-H", data, *DEFAULTS, *sys.argv[1:]], cwd=ROOT)
        routes = [sys.executable, "-m", "gateway", "--admin", admin, "get", "routes"]
        print("\nThe same, as the gateway counted:", flush=True)
        subprocess.run(routes, cwd=ROOT)
    return load.returncode


if __name__ == "__main__":
    sys.exit(main())

"""What is decoded first by several threads at once: msgspec crashes the process where it does not know the type."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, threading
sys.setswitchinterval(1e-6)
import msgspec
from gateway.routing import state
raw = state.encode_in_force(state.EMPTY)
start = threading.Barrier(4)
def decode():
    start.wait()
    msgspec.json.decode(b'{"variants": {}, "fallback": "a"}', type=state.Route)
    state.decode_envelope(raw)
threads = [threading.Thread(target=decode) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
PROCESSES = 12
"""One of three to five crashed."""


def test_threads_that_decode_a_state_for_the_first_time_at_once() -> None:
    codes = [subprocess.run([sys.executable, "-c", SCRIPT], timeout=30).returncode for _ in range(PROCESSES)]
    assert codes == [0] * PROCESSES

from __future__ import annotations

import hashlib

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.control.redis_sha256 import SHA256
from tests.servers.redis import RedisServer

EDGES = [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000]
"""About the ends of a block, and of what leaves room for the length in it."""


@pytest.mark.parametrize("length", EDGES)
def test_about_the_ends_of_blocks(shared_redis: RedisServer, length: int) -> None:
    for byte in (b"\x00", b"\xff", b"x"):
        assert in_redis(shared_redis, byte * length) == hashlib.sha256(byte * length).hexdigest()


# The server lives for the whole session; each example is a call of its own.
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
@example(b"abc")
def test_it_is_sha_256(shared_redis: RedisServer, text: bytes) -> None:
    assert in_redis(shared_redis, text) == hashlib.sha256(text).hexdigest()


def in_redis(server: RedisServer, text: bytes) -> str:
    with redis.Redis(port=server.port) as plain:
        found = plain.eval(f"{SHA256} return sha256(ARGV[1])", 0, text)
    assert isinstance(found, bytes)
    return found.decode()

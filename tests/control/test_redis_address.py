from __future__ import annotations

import pytest

from gateway.control.redis_address import RedisAddress, parse_address


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://u:s3cret@h:7000/2", "redis://h:7000/2"),
        ("redis://h", "redis://h"),
        ("redis://", "redis://localhost"),
        ("rediss://:s3cret@h?ssl_ca_certs=/s3cret", "rediss://h"),
        ("unix:///run/redis?db=3", "unix:///run/redis"),
        (
            "redis+sentinel://u:s3cret@a:1,b,[::1]:3/svc/2?sentinel_password=s3cret",
            "redis+sentinel://a:1,b,[::1]:3/svc/2",
        ),
    ],
)
def test_what_is_printed_of_it(url: str, masked: str) -> None:
    address = parse_address(url)
    assert address.masked == masked
    assert "s3cret" not in repr(address)


def test_a_service_under_sentinel() -> None:
    address = parse_address(
        "rediss+sentinel://ann:p%40ss@a:1,b,[::1]:3/svc/2"
        "?sentinel_username=eve&sentinel_password=p%2Fss&ssl_ca_certs=/ca.pem"
    )
    assert address.service == "svc"
    assert address.sentinels == (("a", 1), ("b", 26379), ("::1", 3))
    tls = {"ssl_ca_certs": "/ca.pem"}
    assert address.options == {"username": "ann", "password": "p@ss", "db": 2, "host": "placeholder", **tls}
    assert address.sentinel_options == {"username": "eve", "password": "p/ss", **tls}


def test_without_credentials_for_them_sentinels_get_none() -> None:
    address = parse_address("redis+sentinel://ann:pass@a/svc")
    assert address.sentinel_options == {}
    assert isinstance(address, RedisAddress)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://u:s3cret@a",
        "redis+sentinel://u:s3cret@a/",
        "redis+sentinel://u:s3cret@a/svc/x",
        "redis+sentinel://u:s3cret@a:s3cret/svc",
        "redis+sentinel://u:s3cret@a/svc?sentinel_pasword=s3cret",
        "redis://u:s3cret@h?socket_timeout=1",
        "redis://u:s3cret@h?sentinel_password=s3cret",
        "redis://u:s3cret@h?ssl_ca_certs=/ca.pem",
        "sentinel://u:s3cret@h",
    ],
)
def test_an_unusable_one_is_an_error_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="unreadable") as error:
        parse_address(url)
    assert "s3cret" not in str(error.value)


def test_a_cluster_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"one slot.*redis://") as error:
        parse_address("redis+cluster://u:s3cret@h")
    assert "s3cret" not in str(error.value)

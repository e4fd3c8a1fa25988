from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from trioproxy import Listener, ServerConf


def made(settings: Mapping[str, Any]) -> ServerConf:
    return ServerConf(**settings)


def test_the_defaults_are_those_of_the_documentation() -> None:
    conf = ServerConf()
    assert {
        "connect_timeout": 5,
        "read_timeout": 60,
        "write_timeout": 60,
        "idle_timeout": 60,
        "header_timeout": 15,
        "body_timeout": 60,
        "upstream_idle_timeout": 55,
        "drain_timeout": 2,
        "drain_bytes": 262144,
        "logging_timeout": 1,
        "dns_timeout": 5,
        "max_header_bytes": 65536,
        "max_header_fields": 128,
        "max_target_bytes": 16384,
        "max_body_bytes": None,
        "max_response_header_bytes": 131072,
        "max_response_header_fields": 256,
        "max_attempts": 16,
        "max_sessions": 10000,
        "pool_size": 128,
        "grace": 30,
        "http1_codec": "auto",
        "access_log": "off",
        "log_level": "info",
    }.items() <= attrs.asdict(conf).items()


def test_a_conf_is_frozen_and_compares_by_value() -> None:
    assert ServerConf() == ServerConf()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ServerConf().grace = 1  # type: ignore[misc]  # the mistake under test


TIMEOUTS = [name for name in attrs.fields_dict(ServerConf) if name.endswith("_timeout")]
COUNTS = [
    "drain_bytes",
    "max_header_bytes",
    "max_header_fields",
    "max_target_bytes",
    "max_response_header_bytes",
    "max_response_header_fields",
    "max_attempts",
    "max_sessions",
    "pool_size",
]


@pytest.mark.parametrize("wrong", [-1, math.inf, math.nan, True, "1"])
def test_a_rate_is_a_number_of_bytes_a_second(wrong: object) -> None:
    assert ServerConf(min_receive_rate=0.5).min_receive_rate == 0.5
    with pytest.raises(ValueError, match="min_receive_rate="):
        made({"min_receive_rate": wrong})


@pytest.mark.parametrize("name", TIMEOUTS)
def test_a_timeout_is_above_zero_and_inf_means_no_limit(name: str) -> None:
    for good in (0.1, 3, math.inf):
        assert getattr(made({name: good}), name) == good
    for bad in (0, -1, math.nan, "5", None, True):
        with pytest.raises(ValueError, match=rf"^{name}=.*seconds above 0 .*math.inf") as caught:
            made({name: bad})
        assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_a_whole_number_of_a_useful_size(name: str) -> None:
    assert getattr(made({name: 1000}), name) == 1000
    for bad in (-1, 1.5, "5", None, True):
        with pytest.raises(ValueError, match=rf"^{name}=.*a whole number, \d+ or more, is right"):
            made({name: bad})


@pytest.mark.parametrize("bad", [0, -1])
def test_no_attempts_at_all_is_a_mistake(bad: int) -> None:
    with pytest.raises(ValueError, match=f"max_attempts={bad}: a whole number, 1 or more"):
        ServerConf(max_attempts=bad)


@pytest.mark.parametrize("name", ["max_body_bytes", "max_connections"])
def test_an_optional_limit_may_be_none(name: str) -> None:
    assert getattr(made({name: None}), name) is None
    assert getattr(made({name: 7}), name) == 7
    for bad in (-1, 1.5, "5", True):
        with pytest.raises(ValueError, match=rf"^{name}=.* or None for no limit"):
            made({name: bad})


def test_grace_may_be_nothing() -> None:
    assert ServerConf(grace=0).grace == 0
    assert ServerConf(grace=math.inf).grace == math.inf
    for bad in (-1, "5", True):
        with pytest.raises(ValueError, match=r"grace=.*seconds, 0 or more"):
            made({"grace": bad})


@pytest.mark.parametrize(
    ("name", "bad", "right"),
    [
        ("http1_codec", "httptools", "one of auto, h11 is right"),
        ("access_log", "xml", "one of off, common, json is right"),
        ("log_level", "loud", "one of debug, info, warning, error, critical is right"),
        ("log_level", 10, "one of debug"),
        ("server_name", "two words", "a word of visible ASCII is right"),
        ("server_name", "a\r\nb: c", "a word of visible ASCII is right"),
        ("server_name", "", "a word of visible ASCII is right"),
        ("refuse_underscores", 1, "True or False is right"),
        ("allow_trace", None, "True or False is right"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_right_ones(name: str, bad: object, right: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=.*{right}"):
        made({name: bad})


def test_a_log_level_is_taken_in_either_case() -> None:
    assert ServerConf(log_level="WARNING").log_level == "WARNING"


def test_every_setting_is_documented() -> None:
    for name in attrs.fields_dict(ServerConf):
        assert f"      {name}: " in (ServerConf.__doc__ or "")


@pytest.mark.parametrize(
    ("address", "host", "port", "path"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, None),
        ("localhost:0", "localhost", 0, None),
        ("[::1]:65535", "::1", 65535, None),
        ("[::]:1", "::", 1, None),
        ("unix:/run/x.sock", None, 0, "/run/x.sock"),
        ("unix:relative:with colon", None, 0, "relative:with colon"),
    ],
)
def test_a_listener_reads_its_address(
    address: str, host: str | None, port: int, path: str | None
) -> None:
    listener = Listener.parse(address)
    assert listener == Listener(address)
    assert (listener.address, listener.host, listener.port, listener.path) == (
        address,
        host,
        port,
        path,
    )


def test_a_listener_takes_text_alone() -> None:
    port: Any = 8080
    with pytest.raises(ValueError, match=r"^8080 is not a bind address"):
        Listener.parse(port)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "8080",
        ":8080",
        "localhost",
        "localhost:",
        "localhost:x",
        "localhost:-1",
        "localhost:65536",
        "localhost:\u0661",
        "localhost:" + "9" * 5000,
        "::1:80",
        "[]:80",
        "[::1]",
        "[localhost]:80",
        "http://localhost:80",
        "a b:80",
        "u@a:80",
        "unix:",
    ],
)
def test_a_listener_refuses_and_says_what_is_right(address: str) -> None:
    with pytest.raises(ValueError, match=r"host:port, \[v6\]:port or unix:PATH is right"):
        Listener(address)

"""Security fields of responses."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from tests._support.matrix import H1_TLS, H2_TLS, Exchange, Pairing
from tests.modules._world import PLAIN, open_modules, some_pairings
from trioproxy.modules import ForwardingFields, SecurityHeaders

HSTS = "strict-transport-security"
ALL = SecurityHeaders(
    hsts_include_subdomains=True,
    hsts_preload=True,
    content_security_policy="default-src 'self'",
    content_security_policy_report_only="img-src 'none'",
    permissions_policy="camera=()",
    cross_origin_opener_policy="same-origin",
    cross_origin_embedder_policy="require-corp",
    cross_origin_resource_policy="same-site",
    remove=["Server", "x-powered-by"],
)


@some_pairings
async def test_all_fields_are_added_and_some_removed(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    fields = [("server", "Apache/1.3"), ("X-Powered-By", "PHP/4"), ("x-powered-by", "more")]
    async with open_modules(pairing, ALL, fields=fields) as world:
        answer = await world.exchange()
    got = {name.decode(): value.decode() for name, value in answer.fields}
    for name in ("date", "content-length", "connection"):
        got.pop(name, None)
    expected = {
        "x-content-type-options": "nosniff",
        "x-frame-options": "SAMEORIGIN",
        "referrer-policy": "strict-origin-when-cross-origin",
        "content-security-policy": "default-src 'self'",
        "content-security-policy-report-only": "img-src 'none'",
        "permissions-policy": "camera=()",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-embedder-policy": "require-corp",
        "cross-origin-resource-policy": "same-site",
    }
    if pairing.down.tls:
        expected[HSTS] = "max-age=31536000; includeSubDomains; preload"
    assert got == expected


@pytest.mark.parametrize("override", [False, True])
async def test_the_origin_s_own_stay_unless_told(override: bool, autojump_clock: MockClock) -> None:
    fields = [("X-FRAME-OPTIONS", "DENY"), (HSTS, "max-age=5"), ("referrer-policy", "origin")]
    module = SecurityHeaders(override=override)
    async with open_modules(Pairing(H1_TLS, H2_TLS), module, fields=fields) as world:
        answer = await world.exchange()
    assert answer.get("x-frame-options") == ("SAMEORIGIN" if override else "DENY")
    assert answer.get(HSTS) == ("max-age=31536000" if override else "max-age=5")


async def test_tls_that_a_trusted_proxy_ends_counts(autojump_clock: MockClock) -> None:
    modules = (ForwardingFields(trusted=["203.0.113.0/24"]), SecurityHeaders())
    told = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https")]
    async with open_modules(PLAIN, *modules) as world:
        assert (await world.exchange(fields=told)).get(HSTS) == "max-age=31536000"
        assert (await world.exchange()).get(HSTS) is None
    async with open_modules(PLAIN, *modules, address="192.0.2.1:5") as world:
        assert (await world.exchange(fields=told)).get(HSTS) is None


async def test_informational_responses_are_left_alone(autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(103, [("link", "</a>")])
        await exchange.respond(200)

    async with open_modules(PLAIN, SecurityHeaders(), origins=origin) as world:
        exchange = await (await world.gateway.connect()).request()
        assert (await exchange.message()).get("x-content-type-options") == "nosniff"
        (early,) = await exchange.informational()
        assert [name for name, _ in early.fields] == [b"link"]


async def test_frame_ancestors_are_a_policy_of_their_own(autojump_clock: MockClock) -> None:
    module = SecurityHeaders(
        frame_ancestors="'self' https://a.example", frame_options=None, hsts_max_age=None
    )
    async with open_modules(PLAIN, module) as world:
        answer = await world.exchange()
    assert answer.get("content-security-policy") == "frame-ancestors 'self' https://a.example"
    assert answer.get("x-frame-options") is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hsts_max_age": -1}, "hsts_max_age=-1"),
        ({"hsts_max_age": True}, "hsts_max_age=True"),
        ({"hsts_preload": True}, "hsts_preload=True: hsts_max_age"),
        ({"frame_options": "deny"}, "frame_options='deny'"),
        ({"referrer_policy": "never"}, "referrer_policy='never'"),
        ({"referrer_policy": 5}, "referrer_policy=5"),
        ({"content_security_policy": "a\r\nb: c"}, "content_security_policy="),
        ({"permissions_policy": "\xe9"}, "permissions_policy="),
        ({"permissions_policy": " "}, "permissions_policy="),
        ({"frame_ancestors": "a; script-src *"}, "frame_ancestors="),
        ({"frame_ancestors": "a", "content_security_policy": "b"}, "part of that"),
        ({"cross_origin_opener_policy": "none"}, "cross_origin_opener_policy='none'"),
        ({"remove": "Server"}, "'Server': several"),
        ({"remove": ["a b"]}, "remove='a b'"),
        ({"override": None}, "override=None"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SecurityHeaders(**options)

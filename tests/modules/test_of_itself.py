"""A request that the proxy makes of itself was rewritten and let on already: it is made of such a one."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.modules._world import PLAIN, open_modules
from trioproxy import HttpPeer, Session
from trioproxy.modules import (
    ApiKeyAuth,
    BasicAuth,
    BearerJwt,
    ForwardAuth,
    ForwardingFields,
    HttpModuleBuilder,
    PathPrefix,
    RequestId,
    RewriteCookies,
    RewriteLocation,
)

SECRET = {"kty": "oct", "k": "c2VjcmV0IG9mIGF0IGxlYXN0IDMyIGJ5dGVzLCBpdCBpcyE"}


@pytest.fixture(autouse=True)
def _of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "is_subrequest", lambda _self: True)


@pytest.mark.parametrize(
    "module",
    [
        ApiKeyAuth(keys=["key"], header="x-key", owner_field="x-user"),
        BasicAuth(users={"a": "b"}, realm="r", user_field="x-user"),
        BearerJwt(keys=SECRET, algorithms=["HS256"], forward={"sub": "x-user"}),
        ForwardAuth(peer=HttpPeer("nobody.test", 80), to_origin=["x-user"]),
    ],
    ids=lambda module: type(module).__name__,
)
async def test_it_needs_no_credentials_and_keeps_what_was_told(
    module: HttpModuleBuilder, autojump_clock: MockClock
) -> None:
    async with open_modules(PLAIN, module) as world:
        assert (await world.exchange(fields=[("x-user", "ann")])).status == 200
        assert world.last().get("x-user") == "ann"


async def test_it_is_rewritten_no_second_time(autojump_clock: MockClock) -> None:
    modules = (
        ForwardingFields(trusted=["203.0.113.0/24"], via="gate", forwarded=True),
        RequestId(),
        PathPrefix(strip="/app"),
        RewriteLocation(),
        RewriteCookies(domains={"*": None}),
    )
    sent = [
        ("x-forwarded-for", "1.1.1.1, 203.0.113.9"),
        ("via", "1.1 gate"),
        ("forwarded", "for=1.1.1.1, for=203.0.113.9"),
        ("x-request-id", "abc"),
    ]
    answered = [("location", "/x"), ("set-cookie", "a=b; Path=/; Domain=x")]
    async with open_modules(PLAIN, *modules, fields=answered) as world:
        answer = await world.exchange("GET", "/below", fields=sent)
    assert answer.status == 200
    assert [answer.get(name) for name, _ in answered] == [value for _, value in answered]
    request = world.last()
    assert request.start == b"GET /below HTTP/1.1"
    assert [request.get(name) for name, _ in sent] == [value for _, value in sent]

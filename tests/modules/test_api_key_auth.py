"""Keys in a field, in the query, in a cookie."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests._support.matrix import Pairing
from tests._support.recording import Message
from tests.modules._world import PLAIN, open_modules, some_pairings
from trioproxy import RequestHeader, Session
from trioproxy.modules import ApiKeyAuth, ApiKeyAuthModule

KEYS = {"ann": "key-of-ann", "bob": "key-of-bob"}


def target_of(request: Message) -> str:
    pseudo = getattr(request, "pseudo", None)
    return str(pseudo[":path"]) if pseudo else request.start.split(b" ")[1].decode()


@some_pairings
async def test_a_key_in_a_field_lets_on(pairing: Pairing, autojump_clock: MockClock) -> None:
    owners: list[str | None] = []

    def request_filter(session: Session, _ctx: object) -> bool:
        module = session.downstream_modules_ctx.get(ApiKeyAuthModule)
        assert module is not None
        owners.append(module.owner)
        return False

    module = ApiKeyAuth(keys=KEYS, header="X-Api-Key", owner_field="X-Owner")
    hooks = {"request_filter": request_filter}
    async with open_modules(pairing, module, hooks=hooks) as world:
        fields = [("x-api-key", "key-of-bob"), ("x-owner", "root")]
        answer = await world.exchange("POST", fields=fields, body=b"data")
        assert answer.status == 200
        assert world.last().get("x-api-key") is None
        assert world.last().get("x-owner") == "bob"
        assert world.last().body == b"data"
        refused = await world.exchange("POST", fields=[("x-api-key", "key-of-eve")], body=b"data")
        assert refused.status == 401
        assert refused.get("www-authenticate") == 'ApiKey realm="api"'
        assert refused.get("cache-control") == "no-store"
        assert (await world.exchange("HEAD")).status == 401
        assert len(world.asked) == 1
    assert owners == ["bob"]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("key-of-ann", 200),
        ("Key-of-ann", 401),
        ("key-of-an", 401),
        ("key-of-annx", 401),
        ("key-of-ann, key-of-bob", 401),
        ('"key-of-ann"', 401),
        ("", 401),
        ("x" * 5000, 401),
        ("\xff\xfe", 401),
    ],
)
async def test_only_the_very_key_is_good(
    value: str, status: int, autojump_clock: MockClock
) -> None:
    module = ApiKeyAuth(keys=list(KEYS.values()), header="x-api-key")
    async with open_modules(PLAIN, module) as world:
        fields = [(b"X-API-KEY", value.encode("latin-1"))]
        assert (await world.exchange(fields=fields)).status == status


@pytest.mark.parametrize(
    ("options", "target", "fields"),
    [
        ({"header": "x-api-key"}, "/", [("x-api-key", "key-of-ann")] * 2),
        ({"header": "x-api-key"}, "/", [("x-api-key", "key-of-ann"), ("X-Api-Key", "")]),
        ({"query": "key"}, "/?key=key-of-ann&key=key-of-ann", []),
        ({"query": "key"}, "/?key=key-of-ann&a=1&%6bey", []),
        ({"cookie": "key"}, "/", [("cookie", "key=key-of-ann; key=b")]),
        ({"cookie": "key"}, "/", [("cookie", "key=key-of-ann"), ("cookie", "a=b; key=c")]),
    ],
)
async def test_a_key_that_comes_twice_is_refused(
    options: dict[str, Any],
    target: str,
    fields: list[tuple[str, str]],
    autojump_clock: MockClock,
) -> None:
    async with open_modules(PLAIN, ApiKeyAuth(keys=KEYS, **options)) as world:
        answer = await world.exchange("GET", target, fields=fields)
        assert (answer.status, answer.get("cache-control")) == (400, "no-store")
        assert not world.asked


@pytest.mark.parametrize(
    ("target", "remains"),
    [
        ("/a?key=key-of-ann", "/a"),
        ("/a?b=1&key=key-of-ann&c=%20+&d", "/a?b=1&c=%20+&d"),
        ("/a?%6B%65y=key%2Dof%2dann&keys=1", "/a?keys=1"),
        ("/a?key=key-of-ann&&x", "/a?&x"),
    ],
)
@pytest.mark.parametrize("remove", [True, False])
async def test_a_key_in_the_query(
    target: str, remains: str, remove: bool, autojump_clock: MockClock
) -> None:
    module = ApiKeyAuth(keys=KEYS, query="key", remove=remove)
    async with open_modules(PLAIN, module) as world:
        assert (await world.exchange("GET", target)).status == 200
        assert target_of(world.last()) == (remains if remove else target)
        assert (await world.exchange("GET", "/a?KEY=key-of-ann")).status == 401
        assert (await world.exchange("GET", "/a?key=no")).status == 401
        assert (await world.exchange("GET", "/a#?key=key-of-ann")).status in (400, 401)


@pytest.mark.parametrize(
    ("cookies", "remains"),
    [
        (["key=key-of-ann"], None),
        (["a=1; key=key-of-ann; b=2"], "a=1; b=2"),
        (["a=1", "key=key-of-ann", "b=2"], "a=1; b=2"),
        (['key="key-of-ann";a="x y"'], 'a="x y"'),
        (["key=key-of-ann; KEY=2; akey=3"], "KEY=2; akey=3"),
    ],
)
async def test_a_key_in_a_cookie(
    cookies: list[str], remains: str | None, autojump_clock: MockClock
) -> None:
    module = ApiKeyAuth(keys=KEYS, cookie="key")
    async with open_modules(PLAIN, module) as world:
        fields = [("cookie", each) for each in cookies]
        assert (await world.exchange(fields=fields)).status == 200
        assert world.last().get("cookie") == remains
        assert (await world.exchange(fields=[("cookie", "key")])).status == 401
        assert (await world.exchange(fields=[("cookie", "a=key=key-of-ann")])).status == 401


async def test_a_key_behind_a_scheme(autojump_clock: MockClock) -> None:
    module = ApiKeyAuth(keys=["s\xe9cret"], header="Authorization", scheme="ApiKey")
    async with open_modules(PLAIN, module) as world:
        for value, status in [
            ("apikey s\xe9cret", 200),
            ("s\xe9cret", 401),
            ("Bearer s\xe9cret", 401),
            ("ApiKey", 401),
        ]:
            fields = [(b"authorization", value.encode("utf-8"))]
            assert (await world.exchange(fields=fields)).status == status
        assert world.last().get("authorization") is None


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("returned", "owner"), [("ann", "ann"), (True, ""), (False, None), (None, None), (1, None)]
)
async def test_a_function_tells_whose_it_is(
    kind: str, returned: Any, owner: str | None, autojump_clock: MockClock
) -> None:
    def check(key: str) -> Any:
        assert key == "the key"
        return returned

    async def check_async(key: str) -> Any:
        await trio.sleep(1)
        return check(key)

    module = ApiKeyAuth(
        keys=check if kind == "def" else check_async, header="x-key", owner_field="x-owner"
    )
    async with open_modules(PLAIN, module) as world:
        answer = await world.exchange(fields=[("x-key", "the key")])
        assert answer.status == (401 if owner is None else 200)
        if owner is not None:
            assert world.last().get("x-owner") == owner


async def test_a_function_that_fails_lets_nobody_on(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def check(_key: str) -> bool:
        raise OSError("no database")

    async with open_modules(PLAIN, ApiKeyAuth(keys=check, header="x-key")) as world:
        assert (await world.exchange(fields=[("x-key", "hush")])).status == 500
        assert not world.asked
    assert "no database" in caplog.text
    assert "hush" not in caplog.text


async def test_no_log_has_the_key(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_args: object) -> Any:
        raise ValueError("boom")

    module = ApiKeyAuth(keys=KEYS, query="key")
    async with open_modules(PLAIN, module, hooks={"request_filter": fails}) as world:
        answer = await world.exchange("GET", "/path?key=key-of-ann&a=1")
        assert answer.status == 500
    assert "GET /path" in caplog.text
    assert "key-of-ann" not in caplog.text
    assert "key-of-ann" not in repr(module)


async def test_some_requests_need_no_key_and_cannot_bring_an_owner(
    autojump_clock: MockClock,
) -> None:
    def guarded(session: Session) -> bool:
        return session.req_header().path != "/open"

    module = ApiKeyAuth(keys=KEYS, header="x-key", owner_field="x-owner", applies=guarded)
    async with open_modules(PLAIN, module) as world:
        fields = [("x-owner", "root"), ("connection", "x-owner")]
        assert (await world.exchange("GET", "/open", fields=fields)).status == 200
        assert world.last().get("x-owner") is None
        assert (await world.exchange(fields=fields)).status == 401
        fields.append(("x-key", "key-of-ann"))
        assert (await world.exchange(fields=fields)).status == 200
        assert world.last().get("x-owner") == "ann"


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#\\?")))
def test_nothing_but_the_key_leaves_the_query(text: str) -> None:
    module = ApiKeyAuth(keys=KEYS, query="key")
    request = RequestHeader("GET", f"/?{text}")
    found = module.find(request)
    module.take_out(request)
    assert module.find(request) == []
    if not found:
        assert request.target == f"/?{text}".encode()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "one of them is right"),
        ({"header": "a", "query": "b"}, "one of them is right"),
        ({"header": "a b"}, "header='a b'"),
        ({"query": ""}, "query=''"),
        ({"cookie": "a=b"}, "cookie='a=b'"),
        ({"query": "a", "scheme": "b"}, "it goes with header"),
        ({"header": "a", "keys": []}, "at least one key"),
        ({"header": "a", "keys": "secret"}, "several are right"),
        ({"header": "a", "keys": [""]}, "no text of 1 to"),
        ({"header": "a", "keys": ["secret" * 500]}, "no text of 1 to"),
        ({"header": "a", "keys": {"a\r\nb": "secret"}}, "keys has the name"),
        ({"header": "a", "realm": "\n"}, "realm="),
        ({"header": "a", "owner_field": ":"}, "owner_field=':'"),
        ({"header": "a", "remove": None}, "remove=None"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as raised:
        ApiKeyAuth(**({"keys": KEYS} | options))
    assert "secret" not in str(raised.value)

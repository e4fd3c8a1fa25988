"""Users and passwords (RFC 7617)."""

from __future__ import annotations

import base64
import importlib.util
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests._support.matrix import Pairing
from tests.modules._world import PLAIN, open_modules, some_pairings
from trioproxy import Session
from trioproxy.modules import BasicAuth, BasicAuthModule, _basic_auth, hash_password
from trioproxy.modules._basic_auth import read_credentials

USERS = {"ann": "open: sesame", "bj\xf6rn": "p\xe5ss"}


def basic(user: str, password: str, encoding: str = "utf-8") -> list[tuple[str, str]]:
    text = base64.b64encode(f"{user}:{password}".encode(encoding)).decode()
    return [("authorization", f"Basic {text}")]


@some_pairings
async def test_a_user_is_let_on(pairing: Pairing, autojump_clock: MockClock) -> None:
    users: list[str | None] = []

    def request_filter(session: Session, _ctx: object) -> bool:
        module = session.downstream_modules_ctx.get(BasicAuthModule)
        assert module is not None
        users.append(module.user)
        return False

    module = BasicAuth(users=USERS, realm='the "den"', user_field="X-User")
    hooks = {"request_filter": request_filter}
    async with open_modules(pairing, module, hooks=hooks) as world:
        fields = [("x-user", "root"), *basic("bj\xf6rn", "p\xe5ss")]
        answer = await world.exchange("POST", fields=fields, body=b"data")
        assert answer.status == 200
        assert (world.last().get("x-user") or "").encode("latin-1").decode() == "bj\xf6rn"
        assert world.last().get("authorization") is None
        assert world.last().body == b"data"
        for wrong in ([], basic("ann", "no"), basic("eve", "open: sesame"), basic("ann", "")):
            answer = await world.exchange("POST", fields=wrong, body=b"data")
            assert answer.status == 401
            told = r'Basic realm="the \"den\"", charset="UTF-8"'
            assert answer.get("www-authenticate") == told
            assert answer.get("cache-control") == "no-store"
        assert len(world.asked) == 1
    assert users == ["bj\xf6rn"]


async def test_a_user_is_let_on_behind_a_refusal_on_the_same_connection(
    autojump_clock: MockClock,
) -> None:
    async with open_modules(PLAIN, BasicAuth(users=USERS, realm="r")) as world:
        client = await world.gateway.connect()
        assert (await client.exchange()).status == 401
        assert (await client.exchange(fields=basic("ann", "open: sesame"))).status == 200


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic ",
        "Bearer YW5uOm9wZW46IHNlc2FtZQ==",
        "YW5uOm9wZW46IHNlc2FtZQ==",
        "Basic YW5u",  # no colon
        "Basic YW5uOm9wZW46IHNlc2FtZQ== x",
        "Basic YW5uOm9wZW46IHNlc2FtZQ==, Basic YW5uOm9wZW46IHNlc2FtZQ==",
        "Basic *W5uOm9wZW46IHNlc2FtZQ==",
        "Basic YW5uOm9wZW46IHNlc2FtZQ=====",
        "Basic " + base64.b64encode(b"ann:open: sesame\n").decode(),
        "Basic " + base64.b64encode(b"ann\0:open: sesame").decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Basic " + base64.b64encode("bj\xf6rn:p\xe5ss".encode("latin-1")).decode(),
        "Basic " + "QUFB" * 2000,
        "Basic Og==",
    ],
)
async def test_what_are_no_credentials_of_a_user_is_401(
    value: str, autojump_clock: MockClock
) -> None:
    async with open_modules(PLAIN, BasicAuth(users=USERS, realm="r")) as world:
        assert (await world.exchange(fields=[("authorization", value)])).status == 401
        assert not world.asked


@pytest.mark.parametrize(
    "value", ["basic YW5uOm9wZW46IHNlc2FtZQ==", "BASIC  YW5uOm9wZW46IHNlc2FtZQ"]
)
async def test_case_and_padding_do_not_matter(value: str, autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, BasicAuth(users=USERS, realm="r")) as world:
        assert (await world.exchange(fields=[("Authorization", value)])).status == 200


async def test_two_fields_are_one_too_many(autojump_clock: MockClock) -> None:
    good = basic("ann", "open: sesame")
    async with open_modules(PLAIN, BasicAuth(users=USERS, realm="r")) as world:
        for fields in (good * 2, [*good, ("AUTHORIZATION", "Bearer x")]):
            answer = await world.exchange(fields=fields)
            assert (answer.status, answer.get("cache-control")) == (400, "no-store")
        assert not world.asked


async def test_ways_to_type_a_name_are_one(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, BasicAuth(users={"bjo\u0308rn": "\xe5"}, realm="r")) as world:
        assert (await world.exchange(fields=basic("bj\xf6rn", "a\u030a"))).status == 200


async def test_no_other_spelling_of_the_name_s_field_goes_on(autojump_clock: MockClock) -> None:
    module = BasicAuth(users=USERS, realm="r", user_field="X-User")
    async with open_modules(PLAIN, module) as world:
        fields = [("X_User", "root"), ("x_USER", "root"), *basic("ann", "open: sesame")]
        assert (await world.exchange(fields=fields)).status == 200
    told = [pair for pair in world.last().fields if b"user" in pair[0]]
    assert told == [(b"x-user", b"ann")]


@pytest.mark.parametrize("user", [" ann", "ann ", "ann"])
async def test_a_name_with_blanks_around_it_is_not_told_as_another_one(
    user: str, autojump_clock: MockClock
) -> None:
    for field, status in ((None, 200), ("X-User", 200 if user == "ann" else 401)):
        module = BasicAuth(users=lambda user, password: True, realm="r", user_field=field)
        async with open_modules(PLAIN, module) as world:
            assert (await world.exchange(fields=basic(user, "open"))).status == status


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_function_tells(kind: str, autojump_clock: MockClock) -> None:
    def check(user: str, password: str) -> bool:
        return (user, password) == ("ann", "a:b")

    async def check_async(user: str, password: str) -> bool:
        await trio.sleep(1)
        return check(user, password)

    module = BasicAuth(users=check if kind == "def" else check_async, realm="r", remove=False)
    async with open_modules(PLAIN, module) as world:
        assert (await world.exchange(fields=basic("ann", "a:b"))).status == 200
        assert world.last().get("authorization") == basic("ann", "a:b")[0][1]
        assert (await world.exchange(fields=basic("ann", "a"))).status == 401


async def test_some_requests_need_no_password_and_cannot_bring_a_name(
    autojump_clock: MockClock,
) -> None:
    def guarded(session: Session) -> bool:
        return session.req_header().path != "/open"

    module = BasicAuth(users=USERS, realm="r", user_field="x-user", applies=guarded)
    async with open_modules(PLAIN, module) as world:
        assert (await world.exchange("GET", "/open", fields=[("x-user", "root")])).status == 200
        assert world.last().get("x-user") is None
        assert (await world.exchange("GET", "/shut")).status == 401


# -- hashed passwords ----------------------------------------------------------------------------


@pytest.fixture
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_basic_auth, "_N", 2**4)


@pytest.mark.usefixtures("_cheap")
def test_a_hash_is_salted_and_says_how_it_was_made() -> None:
    one, two = hash_password("secret"), hash_password("secret")
    assert one != two
    assert one.startswith("scrypt$4$8$5$")


def test_the_cost_of_a_hash_is_what_is_recommended() -> None:
    # OWASP's minimum for r=8: N=2^17 with p=1, or 2^14 with p=5; a gateway checks each request.
    assert hash_password("x").startswith("scrypt$14$8$5$")


@pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="the oracle")
@pytest.mark.usefixtures("_cheap")
def test_a_hash_is_that_of_another_library() -> None:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    _, cost, r, p, salt, made = hash_password("s\xe9cret").split("$")
    oracle = Scrypt(base64.b64decode(salt), 32, 2 ** int(cost), int(r), int(p))
    assert oracle.derive("s\xe9cret".encode()) == base64.b64decode(made)


@pytest.mark.usefixtures("_cheap")
async def test_hashed_passwords_are_checked_in_a_thread_and_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[str] = []
    scrypt = _basic_auth._scrypt

    def count(password: str, *rest: Any) -> bytes:
        counted.append(password)
        return scrypt(password, *rest)

    users = {"ann": hash_password("one"), "bob": hash_password("two")}
    monkeypatch.setattr(_basic_auth, "_scrypt", count)
    async with open_modules(PLAIN, BasicAuth(users=users, realm="r")) as world:
        assert (await world.exchange(fields=basic("ann", "one"))).status == 200
        assert (await world.exchange(fields=basic("ann", "one"))).status == 200
        assert counted == ["one"]
        assert (await world.exchange(fields=basic("bob", "one"))).status == 401
        assert (await world.exchange(fields=basic("ann", "two"))).status == 401
        assert (await world.exchange(fields=basic("ann", "two"))).status == 401
        # A name that there is not takes as long.
        assert (await world.exchange(fields=basic("eve", "one"))).status == 401
        assert counted == ["one", "one", "two", "two", "one"]


@pytest.mark.usefixtures("_cheap")
async def test_what_is_remembered_is_bounded_and_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_basic_auth, "REMEMBERED", 2)
    users = {f"user{number}": hash_password("x") for number in range(4)}
    module = BasicAuth(users=users, realm="r")
    for user in users:
        assert await module.is_right(user, "x")
    assert len(module._good) == 2
    monkeypatch.setattr(_basic_auth, "REMEMBERED_FOR", -1.0)
    module._good.clear()
    assert await module.is_right("user0", "x")
    assert not await module.is_right("user0", "y")


def test_one_kind_of_passwords_alone() -> None:
    with pytest.raises(ValueError, match="all passwords hashed or none"):
        BasicAuth(users={"a": "scrypt$4$8$1$AAAA$" + "A" * 43 + "=", "b": "x"}, realm="r")


@pytest.mark.parametrize(
    "text",
    [
        "scrypt$",
        "scrypt$14$8$1$AAAA$AAAA",
        "scrypt$99$8$1$AAAA$" + "A" * 43 + "=",
        "scrypt$20$64$1$AAAA$" + "A" * 43 + "=",
        "scrypt$14$0$1$AAAA$" + "A" * 43 + "=",
    ],
)
def test_a_broken_hash_is_told_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="'a' is no hash") as raised:
        BasicAuth(users={"a": text}, realm="r")
    assert text not in str(raised.value)


@given(st.binary(max_size=40))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    found = read_credentials(f"Basic {base64.b64encode(data).decode()}")
    if found is not None:
        assert b":" in data
        assert ":" not in found[0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"users": {}}, "users: a mapping"),
        ({"users": "ann:x"}, "users: a mapping"),
        ({"users": {"a:b": "secret"}}, "users has 'a:b'"),
        ({"users": {"a\n": "secret"}}, "users has"),
        ({"users": {"a": ""}}, "password of 'a'"),
        ({"users": {"a": 5}}, "password of 'a'"),
        ({"realm": ""}, "realm=''"),
        ({"realm": "a\r\nb"}, "realm="),
        ({"user_field": "a b"}, "user_field='a b'"),
        ({"applies": True}, "applies=True"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as raised:
        BasicAuth(**({"users": USERS, "realm": "r"} | options))
    assert "secret" not in str(raised.value)


def test_nothing_shows_a_password() -> None:
    shown = repr(BasicAuth(users=USERS, realm="r"))
    assert "sesame" not in shown

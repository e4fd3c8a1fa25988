"""JSON Web Tokens: made by PyJWT, verified by the module, and attacks on that."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import importlib
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import Exchange, Pairing
from tests._support.recording import ORIGIN, Message
from tests.modules._world import PLAIN, World, open_modules, some_pairings
from trioproxy import ErrorType, HttpPeer, Session
from trioproxy._clock import stopped_clock
from trioproxy.modules import BearerJwt, BearerJwtModule, Jwks, _jwks, _jwt

NOW = 1_700_000_000
SECRET = "a shared secret of at least 32 bytes"
KEYS = "keys.test"


@functools.cache
def rsa_key(_number: int = 0) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> str:
    made = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return str(made.decode())


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    """Return the JWK that PyJWT makes of a key."""
    name = {rsa.RSAPrivateKey: "RSA", ec.EllipticCurvePrivateKey: "EC"}
    kind: Any = next((value for cls, value in name.items() if isinstance(key, cls)), "OKP")
    algorithm: Any = {
        "RSA": jwt.algorithms.RSAAlgorithm,
        "EC": jwt.algorithms.ECAlgorithm,
        "OKP": jwt.algorithms.OKPAlgorithm,
    }[kind]
    found: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {name: each for name, each in found.items() if name != "key_ops"} | more


def oct_jwk(secret: str, **more: Any) -> dict[str, Any]:
    return {"kty": "oct", "k": b64(secret.encode()), **more}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(
    key: Any = None, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **claims: Any
) -> str:
    """Return a token of PyJWT's making."""
    whole = {"sub": "ann", "iss": "https://iss.test", "aud": "me", "exp": NOW + 60} | claims
    whole = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(whole, rsa_key() if key is None else key, algorithm, headers)


def by_hand(header: Any, claims: Any, secret: bytes | None = None) -> str:
    """Return a token of any header and claims, signed by HMAC or with a made-up signature."""
    parts = [
        b64(each if isinstance(each, bytes) else json.dumps(each).encode())
        for each in (header, claims)
    ]
    text = ".".join(parts)
    mac = hmac.digest(secret, text.encode(), hashlib.sha256) if secret is not None else b"x" * 32
    return f"{text}.{b64(mac)}"


def builder(**options: Any) -> BearerJwt:
    made: dict[str, Any] = {
        "keys": pem(rsa_key()),
        "algorithms": ["RS256"],
        "issuer": "https://iss.test",
        "audience": "me",
    }
    return BearerJwt(**(made | options))


def bearing(text: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {text}")]


def challenged(answer: Message) -> str:
    assert answer.get("cache-control") == "no-store"
    return answer.get("www-authenticate") or ""


@pytest.fixture(autouse=True)
def _moment() -> Any:
    with stopped_clock(NOW):
        yield


# -- good tokens -------------------------------------------------------------------------------


@some_pairings
async def test_a_good_token_lets_on_and_its_claims_are_told(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[Mapping[str, Any] | None] = []

    def request_filter(session: Session, _ctx: object) -> bool:
        module = session.downstream_modules_ctx.get(BearerJwtModule)
        assert module is not None
        seen.append(module.claims)
        return False

    module = builder(forward={"sub": "X-User", "admin": "X-Admin", "n": "X-N"}, remove=True)
    forged = [("x-user", "root"), ("X-N", "6"), ("x-admin", "true")]
    forged = [(name.lower(), value) for name, value in forged]
    async with open_modules(pairing, module, hooks={"request_filter": request_filter}) as world:
        made = token(sub="ann é", admin=False)
        answer = await world.exchange("POST", fields=[*forged, *bearing(made)], body=b"data")
        assert answer.status == 200
        request = world.last()
        assert request.body == b"data"
        assert request.get("authorization") is None
        assert (request.get("x-user") or "").encode("latin-1").decode() == "ann é"
        assert (request.get("x-admin"), request.get("x-n")) == ("false", None)
        answer = await world.exchange(fields=forged)
        assert answer.status == 401
        assert challenged(answer) == 'Bearer realm="api"'
        assert len(world.asked) == 1
    assert seen[0] is not None
    assert seen[0]["sub"] == "ann é"


@pytest.mark.parametrize(
    ("algorithm", "key", "given"),
    [
        ("RS256", rsa_key, lambda: pem(rsa_key())),
        ("RS512", rsa_key, lambda: jwk(rsa_key(), kid="a", use="sig", alg="RS512")),
        ("PS256", rsa_key, lambda: {"keys": [jwk(ec_key()), jwk(rsa_key())]}),
        ("ES256", ec_key, lambda: [pem(rsa_key()), pem(ec_key())]),
        ("EdDSA", ed_key, lambda: jwk(ed_key(), key_ops=["verify"])),
        ("HS256", lambda: SECRET, lambda: oct_jwk(SECRET)),
        ("HS512", lambda: SECRET * 2, lambda: oct_jwk(SECRET * 2)),
    ],
)
async def test_every_kind_of_key_verifies(
    algorithm: str, key: Any, given: Any, autojump_clock: MockClock
) -> None:
    module = builder(keys=given(), algorithms=[algorithm])
    async with open_modules(PLAIN, module) as world:
        good = token(key(), algorithm)
        assert (await world.exchange(fields=bearing(good))).status == 200
        assert (await world.exchange(fields=bearing(good + "A"))).status == 401
        assert (await world.exchange(fields=[("authorization", f"bEaReR  {good}")])).status == 200


# -- bad ones ----------------------------------------------------------------------------------


async def refused(module: BearerJwt, text: str) -> tuple[int, str]:
    """Return the status and the reason with which a token is refused; 200 where it is not."""
    async with open_modules(PLAIN, module) as world:
        answer = await world.exchange(fields=bearing(text))
        told = challenged(answer) if answer.status != 200 else ""
        assert (answer.status == 200) == bool(world.asked)
        return answer.status, told.partition('error_description="')[2].rstrip('"')


@pytest.mark.parametrize(
    ("claims", "options", "reason"),
    [
        ({"exp": NOW}, {}, "the token has expired"),
        ({"exp": NOW - 5}, {"leeway": 5}, "the token has expired"),
        ({"exp": NOW - 4}, {"leeway": 5}, None),
        ({"exp": None}, {}, "the token does not say when it expires"),
        ({"exp": None}, {"require_exp": False}, None),
        ({"nbf": NOW + 1}, {}, "the token is not valid yet"),
        ({"nbf": NOW + 1}, {"leeway": 1}, None),
        ({"iss": "https://other.test"}, {}, "the token is of another issuer"),
        ({"iss": None}, {}, "the token is of another issuer"),
        ({"iss": None}, {"issuer": None}, None),
        ({"iss": "b"}, {"issuer": ["a", "b"]}, None),
        ({"aud": "you"}, {}, "the token is for another audience"),
        ({"aud": ["you", "me"]}, {}, None),
        ({"aud": []}, {}, "the token is for another audience"),
        ({"aud": None}, {}, "the token is for another audience"),
        ({"aud": None}, {"audience": None}, None),
        ({}, {"audience": None}, "the token is for another audience"),
        ({"aud": "meat"}, {}, "the token is for another audience"),
        ({"aud": "m"}, {}, "the token is for another audience"),
    ],
)
async def test_claims_decide(
    claims: dict[str, Any], options: dict[str, Any], reason: str | None, autojump_clock: MockClock
) -> None:
    status, told = await refused(builder(**options), token(**claims))
    assert (status, told) == ((200, "") if reason is None else (401, reason))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": "soon"},
        {"exp": True},
        {"exp": math.inf},
        {"exp": math.nan},
        {"exp": [NOW + 60]},
        {"exp": 10**400},
        {"exp": NOW + 60, "nbf": "1"},
        {"exp": NOW + 60, "nbf": {}},
        {"exp": NOW + 60, "nbf": True},
        {"exp": NOW + 60, "iat": "then"},
        {"exp": NOW + 60, "aud": {"me": 1}},
        {"exp": NOW + 60, "aud": ["me", 5]},
        {"exp": NOW + 60, "aud": 5},
        {"exp": NOW + 60, "iss": ["https://iss.test"]},
        [],
        "me",
        5,
        b"{",
        b"\xff",
        b"[" * 3000,
        b'{"exp": ' + b"9" * 5000 + b"}",
    ],
)
async def test_malformed_claims_are_refused_though_they_are_signed(
    claims: Any, autojump_clock: MockClock
) -> None:
    if isinstance(claims, dict):
        claims = {"iss": "https://iss.test", "aud": "me"} | claims
    module = builder(keys=oct_jwk(SECRET), algorithms=["HS256"])
    text = by_hand({"alg": "HS256"}, claims, SECRET.encode())
    assert (await refused(module, text))[0] == 401


GOOD = {"iss": "https://iss.test", "aud": "me", "exp": NOW + 60}


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "nOnE"},
        {},
        {"alg": None},
        {"alg": ["HS256"]},
        {"alg": "HS384"},
        {"alg": "RS256"},
        {"alg": "HS256", "kid": 5},
        {"alg": "HS256", "kid": ["a"]},
        {"alg": "HS256", "crit": ["b64"], "b64": False},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "b64": False},
        {"alg": "HS256", "kid": "other"},
        [],
        "HS256",
        b"[" * 3000,
        b'{"alg": "HS256"',
    ],
)
async def test_a_header_that_is_not_taken_is_refused_though_it_is_signed(
    header: Any, autojump_clock: MockClock
) -> None:
    module = builder(keys=oct_jwk(SECRET, kid="mine"), algorithms=["HS256"])
    assert (await refused(module, by_hand({"alg": "HS256"}, GOOD, SECRET.encode())))[0] == 200
    assert (await refused(module, by_hand(header, GOOD, SECRET.encode())))[0] == 401


async def test_a_token_without_a_signature_is_none(autojump_clock: MockClock) -> None:
    unsigned = jwt.encode(GOOD, "", "none")
    module = builder()
    assert (await refused(module, unsigned))[0] == 401
    assert (await refused(module, unsigned + "AAAA"))[0] == 401
    header, claims, _ = token().split(".")
    assert (await refused(module, f"{header}.{claims}."))[0] == 401
    assert (await refused(module, f"{header}.{claims}"))[0] == 401
    with pytest.raises(ValueError, match="algorithms has 'none'"):
        builder(algorithms=["RS256", "none"])


@pytest.mark.parametrize("form", ["pem", "stripped", "der", "modulus"])
async def test_the_public_key_is_no_shared_secret(form: str, autojump_clock: MockClock) -> None:
    public = rsa_key().public_key()
    secret = {
        "pem": pem(rsa_key()).encode(),
        "stripped": pem(rsa_key()).strip().encode(),
        "der": public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "modulus": jwk(rsa_key())["n"].encode(),
    }[form]
    forged = by_hand({"alg": "HS256"}, GOOD, secret)
    # Whether HS256 is taken beside RS256 or not: the key is of the other kind.
    assert (await refused(builder(), forged))[0] == 401
    both = builder(keys=[pem(rsa_key()), oct_jwk(SECRET)], algorithms=["RS256", "HS256"])
    assert (await refused(both, forged))[0] == 401
    assert (await refused(both, by_hand({"alg": "HS256"}, GOOD, SECRET.encode())))[0] == 200


async def test_a_key_that_the_token_brings_along_is_not_looked_at(
    autojump_clock: MockClock,
) -> None:
    evil = rsa_key(1)
    headers = {"jwk": jwk(evil), "jku": "https://evil.test/keys", "x5u": "https://evil.test/x"}
    assert (await refused(builder(), token(evil, headers=headers)))[0] == 401
    assert (await refused(builder(), token(headers=headers)))[0] == 200


@pytest.mark.parametrize(
    "kid",
    ["../../../../dev/null", "/etc/passwd", "' UNION SELECT 'x", "a\0", "http://evil.test", ""],
)
async def test_the_name_of_a_key_is_only_compared(kid: str, autojump_clock: MockClock) -> None:
    module = builder(keys={"keys": [jwk(rsa_key(), kid="mine")]})
    assert (await refused(module, token(headers={"kid": kid})))[0] == 401
    assert (await refused(module, by_hand({"alg": "RS256", "kid": kid}, GOOD, b"")))[0] == 401
    assert (await refused(module, token(headers={"kid": "mine"})))[0] == 200


async def test_a_key_for_something_else_verifies_nothing(autojump_clock: MockClock) -> None:
    for more in ({"use": "enc"}, {"key_ops": ["sign"]}, {"key_ops": "verify"}):
        with pytest.raises(ValueError, match="no key that can verify"):
            builder(keys=jwk(rsa_key(), **more))
    module = builder(keys=jwk(rsa_key(), alg="PS256"))
    assert (await refused(module, token()))[0] == 401


async def test_a_token_that_is_too_long_is_not_looked_at(autojump_clock: MockClock) -> None:
    text = token(filler="x" * 10000)
    assert await refused(builder(), text) == (401, "the token is too long")
    assert (await refused(builder(max_token_bytes=20000), text))[0] == 200


async def test_two_fields_are_one_too_many(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, builder()) as world:
        answer = await world.exchange(fields=bearing(token()) * 2)
        assert answer.status == 400
        assert 'error="invalid_request"' in challenged(answer)
        assert not world.asked


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("Basic YTpi", 401),
        ("Bearer", 400),
        ("Bearer ", 400),
        ("Bearer a b", 400),
        ("Bearer a, Bearer b", 400),
        ("Bearertoken", 401),
        ("Bearer x", 401),
        ("Bearer a.b.c", 401),
        ("Bearer =.=.=", 401),
    ],
)
async def test_what_is_no_token_is_told_apart(
    value: str, status: int, autojump_clock: MockClock
) -> None:
    async with open_modules(PLAIN, builder()) as world:
        answer = await world.exchange(fields=[("authorization", value)])
    assert answer.status == status
    assert challenged(answer).startswith('Bearer realm="api"')


async def test_a_token_in_the_query_is_none(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, builder()) as world:
        target = f"/path?access_token={token()}"
        assert (await world.exchange("GET", target)).status == 401


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"scope": "read write"}, 200),
        ({"scp": ["write", "read"]}, 200),
        ({"scope": "read"}, 403),
        ({"scope": "reading writer"}, 403),
        ({}, 403),
        ({"scope": 5}, 403),
        ({"scope": {"read": 1, "write": 1}}, 403),
    ],
)
async def test_scopes_are_asked_for(
    claims: dict[str, Any], status: int, autojump_clock: MockClock
) -> None:
    module = builder(scopes=["read", "write"])
    async with open_modules(PLAIN, module) as world:
        answer = await world.exchange(fields=bearing(token(**claims)))
    assert answer.status == status
    if status == 403:
        assert 'scope="read write", error="insufficient_scope"' in challenged(answer)


# Blanks around a field's value are none of it: " root" would be told as root.
@pytest.mark.parametrize(
    "value", ["a\r\nx-admin: 1", "a\0", "\ud800", ["a"], {"a": 1}, " root", "root "]
)
async def test_a_claim_cannot_make_a_field_of_its_own(
    value: Any, autojump_clock: MockClock
) -> None:
    module = builder(forward={"name": "X-Name"})
    assert await refused(module, token(name=value)) == (401, "a claim cannot be told to the origin")


async def test_connection_cannot_take_away_what_the_origin_is_told(
    autojump_clock: MockClock,
) -> None:
    module = builder(forward={"sub": "X-User"})
    async with open_modules(PLAIN, module) as world:
        await world.exchange(fields=[("connection", "x-user"), *bearing(token())])
        assert world.last().get("x-user") == "ann"


async def test_a_request_that_needs_no_token_cannot_bring_claims(
    autojump_clock: MockClock,
) -> None:
    def guarded(session: Session) -> bool:
        return session.req_header().path != "/open"

    module = builder(forward={"sub": "X-User"}, applies=guarded)
    async with open_modules(PLAIN, module) as world:
        answer = await world.exchange("GET", "/open", fields=[("x-user", "root")])
        assert answer.status == 200
        assert world.last().get("x-user") is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_changed_token_is_taken(data: st.DataObject) -> None:
    module = builder()
    good = token()
    at = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_."))
    text = good[:at] + other + good[at + 1 :]
    if data.draw(st.booleans()):
        text = text[:at] + text[at + 1 :]

    async def verify() -> Any:
        return await module.verify(None, text)  # type: ignore[arg-type]  # keys are given

    with contextlib.suppress(_jwt._Refused):
        claims = trio.run(verify)
        # It was taken: then only such bits of base64 have changed as mean nothing.
        parts, goods = text.split("."), good.split(".")
        assert claims["sub"] == "ann"
        assert [base64.urlsafe_b64decode(each + "==") for each in parts] == [
            base64.urlsafe_b64decode(each + "==") for each in goods
        ]


# -- key sets ------------------------------------------------------------------------------------


class KeyServer:
    """Answers with a set of keys, and counts."""

    def __init__(self) -> None:
        self.keys: list[Any] = [jwk(rsa_key(), kid="a")]
        self.fields: list[tuple[str, str]] = []
        self.status = 200
        self.body: bytes | None = None
        self.asked: list[Message] = []
        self.gate = trio.Event()
        self.gate.set()

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(await exchange.message())
        await self.gate.wait()
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        await exchange.respond(self.status, self.fields, body)


def with_keys(pairing: Pairing = PLAIN, **options: Any) -> Any:
    """Return a gateway whose keys come from a server, that server and the module."""
    server = KeyServer()
    url = f"{pairing.up.scheme}://{KEYS}/keys?x=1"

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [], b"hello")

    module = builder(keys=Jwks(url, **options))
    opened = open_modules(pairing, module, origins={str(ORIGIN.host): origin, KEYS: server})
    return server, module, opened


def reach(world: World, module: BearerJwt) -> None:
    """Let the module's keys be fetched over the network in memory."""
    keys = module.keys
    assert isinstance(keys, Jwks)
    object.__setattr__(keys, "peer", world.gateway.peer(HttpPeer(KEYS, 80)))


async def status_of(world: World, text: str) -> int:
    return (await world.exchange(fields=bearing(text))).status


def named(kid: str, key: Any = None) -> str:
    return token(key, headers={"kid": kid})


@some_pairings
async def test_a_set_is_fetched_once_for_all(pairing: Pairing, autojump_clock: MockClock) -> None:
    server, module, opened = with_keys(pairing)
    async with opened as world:
        reach(world, module)
        server.gate = trio.Event()
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append(await status_of(world, named("a")))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            server.gate.set()
        assert statuses == [200] * 5
        assert await status_of(world, named("a")) == 200
        assert await status_of(world, token()) == 200  # without a name, the keys of its kind
    (request,) = server.asked
    start = "/keys?x=1"
    assert request.get("accept") == "application/jwk-set+json, application/json"
    assert start.encode() in request.start or start in str(getattr(request, "pseudo", ""))


async def test_an_unknown_key_has_the_set_fetched_anew_but_not_too_often(
    autojump_clock: MockClock,
) -> None:
    server, module, opened = with_keys(min_interval=30)
    async with opened as world:
        reach(world, module)
        assert await status_of(world, named("a")) == 200
        for _ in range(5):
            assert await status_of(world, named("evil")) == 401
        assert len(server.asked) == 1
        await trio.sleep(31)
        server.keys = [jwk(rsa_key(1), kid="b")]
        assert await status_of(world, named("b", rsa_key(1))) == 200
        assert len(server.asked) == 2
        assert await status_of(world, named("a")) == 401  # it is gone
        assert len(server.asked) == 2


async def test_who_comes_while_a_new_key_is_fetched_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    server, module, opened = with_keys()
    async with opened as world:
        reach(world, module)
        assert await status_of(world, named("a")) == 200
        await trio.sleep(60)
        server.keys.append(jwk(rsa_key(1), kid="b"))
        server.gate = trio.Event()
        statuses: list[int] = []

        async def ask(kid: str, key: Any) -> None:
            statuses.append(await status_of(world, named(kid, key)))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, "b", rsa_key(1))
            await wait_all_tasks_blocked()
            assert await status_of(world, named("a")) == 200  # who knows its key does not wait
            server.gate.set()
        assert statuses == [200] * 3
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ([], 100.0),
        ([("cache-control", "max-age=500")], 500.0),
        ([("cache-control", "max-age=5")], 30.0),
        ([("cache-control", "no-store")], 30.0),
        ([("cache-control", "max-age=99999999999")], 900.0),
        ([("cache-control", "max-age=x")], 30.0),
    ],
)
async def test_a_set_is_kept_as_long_as_it_says(
    fields: list[tuple[str, str]],
    seconds: float,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_jwks, "LONGEST_FRESH", 900.0)
    server, module, opened = with_keys(ttl=100, min_interval=30)
    server.fields = fields
    async with opened as world:
        reach(world, module)
        assert await status_of(world, named("a")) == 200
        await trio.sleep(seconds - 1)
        assert await status_of(world, named("a")) == 200
        assert len(server.asked) == 1
        await trio.sleep(2)
        assert await status_of(world, named("a")) == 200
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, None),
        (302, None),
        (200, b"{"),
        (200, b"[" * 5000),
        (200, b'{"keys": []}'),
        (200, b'{"keys": {"a": 1}}'),
        (200, b'"keys"'),
        (200, b"x" * 300_000),
    ],
)
async def test_old_keys_are_used_where_new_ones_cannot_be_had(
    status: int,
    body: bytes | None,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, module, opened = with_keys(ttl=100, max_stale=1000)
    async with opened as world:
        reach(world, module)
        assert await status_of(world, named("a")) == 200
        server.status, server.body = status, body
        await trio.sleep(200)
        assert await status_of(world, named("a")) == 200
        assert await status_of(world, named("a")) == 200
        assert len(server.asked) == 2  # not for each request
        assert "could not be fetched" in caplog.text
        await trio.sleep(1000)
        answer = await world.exchange(fields=bearing(named("a")))
        assert (answer.status, answer.get("retry-after")) == (503, "5")
        assert answer.get("cache-control") == "no-store"
        server.status, server.body = 200, None
        await trio.sleep(60)
        assert await status_of(world, named("a")) == 200


async def test_without_any_key_nothing_passes(autojump_clock: MockClock) -> None:
    server, module, opened = with_keys(timeout=3)
    async with opened as world:
        reach(world, module)
        server.gate = trio.Event()
        started = trio.current_time()
        assert await status_of(world, named("a")) == 503
        assert trio.current_time() - started >= 3
        assert await status_of(world, named("a")) == 503
        assert len(server.asked) == 1
        server.gate.set()
        await trio.sleep(6)
        assert await status_of(world, named("a")) == 200


async def test_a_key_server_that_is_not_there_is_503(autojump_clock: MockClock) -> None:
    module = builder(keys=Jwks(f"http://{KEYS}/"))
    origins: Any = {str(ORIGIN.host): ErrorType.ConnectRefused, KEYS: ErrorType.ConnectRefused}
    async with open_modules(PLAIN, module, origins=origins) as world:
        reach(world, module)
        assert await status_of(world, named("a")) == 503


async def test_a_client_that_leaves_while_keys_are_fetched_holds_nobody_up(
    autojump_clock: MockClock,
) -> None:
    server, module, opened = with_keys()
    async with opened as world:
        reach(world, module)
        server.gate = trio.Event()
        client = await world.gateway.connect()
        await client.request(fields=bearing(named("a")))
        await wait_all_tasks_blocked()
        assert len(server.asked) == 1
        client.close()
        await wait_all_tasks_blocked()
        server.gate.set()
        assert await status_of(world, named("a")) == 200
        assert len(server.asked) == 2


async def test_nobody_waits_while_a_set_that_is_old_is_renewed(
    autojump_clock: MockClock,
) -> None:
    server, module, opened = with_keys(ttl=100)
    async with opened as world:
        reach(world, module)
        assert await status_of(world, named("a")) == 200
        await trio.sleep(200)
        server.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(status_of, world, named("a"))  # this one has it renewed
            await wait_all_tasks_blocked()
            assert len(server.asked) == 2
            assert await status_of(world, named("a")) == 200
            server.gate.set()
        assert len(server.asked) == 2


async def test_only_so_many_keys_are_read_and_tried(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    is_signed = BearerJwt._is_signed

    def count(self: BearerJwt, *args: Any) -> bool:
        nonlocal tried
        tried += 1
        return is_signed(self, *args)

    monkeypatch.setattr(BearerJwt, "_is_signed", count)
    server, module, opened = with_keys()
    server.keys = [jwk(rsa_key(1), kid=f"k{number}") for number in range(100)]
    async with opened as world:
        reach(world, module)
        assert await status_of(world, token()) == 401
        assert tried == 4
        assert await status_of(world, named("k63", rsa_key(1))) == 200
        assert await status_of(world, named("k64", rsa_key(1))) == 401


def test_a_key_is_for_the_algorithms_of_its_kind() -> None:
    key = _jwks.read_pem(pem(rsa_key()).encode())
    fitting = {name for name in _jwks.KINDS if key.fits(name, None)}
    assert fitting == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    assert not key.fits("none", None)


async def test_keys_that_are_not_understood_are_passed_over(autojump_clock: MockClock) -> None:
    server, module, opened = with_keys()
    broken = {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "a"}
    server.keys = [5, {"kty": "PQ"}, broken, {"kty": "oct", "k": "eA"}, jwk(rsa_key(), x5t="x")]
    async with opened as world:
        reach(world, module)
        assert await status_of(world, token()) == 200


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"algorithms": []}, "at least one"),
        ({"algorithms": "RS256"}, "several are right"),
        ({"algorithms": ["rs256"]}, "algorithms has 'rs256'"),
        ({"algorithms": ["RS256", "HS256"]}, "no key is of kind oct"),
        ({"algorithms": ["ES256"]}, "no key is of kind EC"),
        ({"keys": Jwks("https://k.test/"), "algorithms": ["HS256"]}, "public keys"),
        ({"keys": "secret"}, "keys: a PEM text is right"),
        ({"keys": b"secret"}, "keys: a PEM text is right"),
        ({"keys": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"}, "has no key"),
        ({"keys": oct_jwk("short")}, "no key that can verify"),
        ({"keys": []}, "PEM texts, JWKs"),
        ({"keys": 5}, "PEM texts, JWKs"),
        ({"keys": {"keys": []}}, "no key that can verify"),
        ({"scopes": ["a b"]}, "scopes has 'a b'"),
        ({"scopes": ['a"']}, "scopes has"),
        ({"leeway": -1}, "leeway=-1"),
        ({"forward": {"sub": "a b"}}, "forward='a b'"),
        ({"forward": {5: "a"}}, "forward has 5"),
        ({"realm": 'a"\n'}, "realm="),
        ({"max_token_bytes": 0}, "max_token_bytes=0"),
        ({"applies": 5}, "applies=5"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as raised:
        builder(**options)
    assert "secret" not in str(raised.value).replace("shared secret", "")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "keys.test/x"}, "url="),
        ({"url": "ftp://keys.test/x"}, "url="),
        ({"url": "https://a:b@keys.test/x"}, "url="),
        ({"url": "https://keys.test/#x"}, "url="),
        ({"url": "https://keys.test/a b"}, "url="),
        ({"url": "https://keys.test:99999/"}, "url="),
        ({"peer": "keys.test"}, "peer="),
        ({"ttl": 0}, "ttl=0"),
        ({"min_interval": math.inf}, "min_interval=inf"),
        ({"timeout": True}, "timeout=True"),
        ({"max_bytes": 0}, "max_bytes=0"),
    ],
)
def test_a_wrong_option_of_a_set_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Jwks(**({"url": "https://keys.test/keys"} | options))


def test_a_missing_library_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("joserfc.jwk")
    for name in list(sys.modules):
        if name.partition(".")[0] == "joserfc":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r'pip install "trioproxy\[auth\]"'):
        builder()


def test_nothing_shows_a_key() -> None:
    module = builder(keys=oct_jwk(SECRET), algorithms=["HS256"])
    assert SECRET not in repr(module)
    assert b64(SECRET.encode()) not in repr(module)

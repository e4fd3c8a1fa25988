"""The CORS protocol of the Fetch standard."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests._support.matrix import Pairing
from tests._support.recording import Message
from tests.modules._world import PLAIN, open_modules, some_pairings
from trioproxy.modules import BasicAuth, Cors

APP = "https://app.example"
CORS = Cors(
    allow_origins=[APP, "https://*.dev.example", "http://localhost:3000"],
    allow_methods=["GET", "PUT"],
    allow_headers=["Content-Type", "X-Token"],
    allow_credentials=True,
    expose_headers=["X-Total"],
    max_age=60,
    allow_private_network=True,
)
VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


def asks(origin: str, method: str = "PUT", *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [("origin", origin), ("access-control-request-method", method), *more]


def allowed(answer: Message) -> dict[str, str]:
    start = "access-control-"
    found = [(name.decode(), value.decode()) for name, value in answer.fields]
    assert len(dict(found)) == len(found), found  # a browser takes none of two
    return {name.removeprefix(start): value for name, value in found if name.startswith(start)}


@some_pairings
async def test_a_preflight_is_answered_and_does_not_go_on(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async with open_modules(pairing, CORS) as world:
        answer = await world.exchange(
            "OPTIONS", fields=asks(APP, "PUT", ("access-control-request-headers", "x-token"))
        )
        assert (answer.status, answer.body) == (204, b"")
        assert allowed(answer) == {
            "allow-origin": APP,
            "allow-credentials": "true",
            "allow-methods": "GET, PUT",
            "allow-headers": "Content-Type, X-Token",
            "max-age": "60",
        }
        assert answer.get("vary") == f"{VARY}, Access-Control-Request-Private-Network"
        assert answer.get("cache-control") == "no-store"
        assert not world.asked
        assert (await world.exchange("OPTIONS", fields=[("origin", APP)])).status == 200
        assert (await world.exchange("OPTIONS")).status == 200
    assert len(world.asked) == 2


@some_pairings
async def test_a_response_says_who_may_read_it(pairing: Pairing, autojump_clock: MockClock) -> None:
    # What the origin server says of its own is dropped: two fields are none.
    fields = [("access-control-allow-origin", "*"), ("vary", "accept"), ("x-total", "5")]
    async with open_modules(pairing, CORS, fields=fields) as world:
        good = await world.exchange(fields=[("origin", APP)])
        bad = await world.exchange(fields=[("origin", "https://evil.example")])
        none = await world.exchange()
    assert allowed(good) == {
        "allow-origin": APP,
        "allow-credentials": "true",
        "expose-headers": "X-Total",
    }
    assert allowed(bad) == allowed(none) == {}
    assert good.body == bad.body == none.body == b"hello"
    for answer in (good, bad, none):
        assert answer.get("vary") == "accept, Origin"


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        (APP, True),
        ("https://a.dev.example", True),
        ("https://a.b-c.dev.example", True),
        ("http://localhost:3000", True),
        ("http://localhost", False),
        ("http://localhost:30000", False),
        ("http://app.example", False),
        ("https://APP.example", False),
        ("https://app.example:443", False),
        ("https://app.example/", False),
        ("https://app.example.evil.test", False),
        ("https://evilapp.example", False),
        ("https://dev.example", False),
        ("https://evildev.example", False),
        ("https://a.dev.example:8443", False),
        ("https://a.dev.example.evil.test", False),
        ("https://evil.test/.dev.example", False),
        ("https://evil.test#.dev.example", False),
        ("https://evil.test%2f.dev.example", False),
        ("https://evil.test@a.dev.example", False),
        ("https://.dev.example", False),
        ("https://a..dev.example", False),
        ("https://*.dev.example", False),
        ("https://a.devXexample", False),
        ("http://a.dev.example", False),
        ("null", False),
        ("*", False),
        (f"{APP}, https://b.example", False),
        (f"{APP} https://b.example", False),
        ("", False),
    ],
)
async def test_which_origins_may(origin: str, may: bool, autojump_clock: MockClock) -> None:
    assert await CORS.allows(origin) is may
    async with open_modules(PLAIN, CORS) as world:
        simple = await world.exchange(fields=[("origin", origin)])
        preflight = await world.exchange("OPTIONS", fields=asks(origin))
    assert allowed(simple).get("allow-origin") == (origin if may else None)
    assert preflight.status == 204
    assert bool(allowed(preflight)) is may


async def test_a_repeated_field_allows_nothing(autojump_clock: MockClock) -> None:
    twice = [("origin", APP), ("origin", APP)]
    async with open_modules(PLAIN, CORS) as world:
        assert allowed(await world.exchange(fields=twice)) == {}
        answer = await world.exchange("OPTIONS", fields=[*twice, *asks(APP)])
        assert allowed(answer) == {}
        fields = [*asks(APP), ("access-control-request-method", "GET")]
        assert allowed(await world.exchange("OPTIONS", fields=fields)) == {}
    assert len(world.asked) == 1


async def test_a_method_that_is_not_allowed_is_not_named(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, CORS) as world:
        answer = await world.exchange("OPTIONS", fields=asks(APP, "DELETE"))
    assert allowed(answer)["allow-methods"] == "GET, PUT"


async def test_a_private_network_is_reached_only_where_that_is_allowed(
    autojump_clock: MockClock,
) -> None:
    fields = asks(APP, "GET", ("access-control-request-private-network", "true"))
    async with open_modules(PLAIN, CORS) as world:
        answer = await world.exchange("OPTIONS", fields=fields)
        assert allowed(answer)["allow-private-network"] == "true"
    async with open_modules(PLAIN, Cors(allow_origins=[APP])) as world:
        answer = await world.exchange("OPTIONS", fields=fields)
        assert "allow-private-network" not in allowed(answer)
        assert answer.get("vary") == VARY


async def test_all_origins_get_one_answer(autojump_clock: MockClock) -> None:
    module = Cors(allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], max_age=None)
    async with open_modules(PLAIN, module) as world:
        answer = await world.exchange(fields=[("origin", "https://anybody.test")])
        # What a cache keeps of it is for pages of other origins as well.
        of_nobody = await world.exchange()
        preflight = await world.exchange("OPTIONS", fields=asks("null"))
    assert allowed(answer) == allowed(of_nobody) == {"allow-origin": "*"}
    assert answer.get("vary") is None
    assert allowed(preflight) == {"allow-origin": "*", "allow-methods": "*", "allow-headers": "*"}


async def test_vary_for_everything_stays(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, CORS, fields=[("vary", "*")]) as world:
        assert (await world.exchange(fields=[("origin", APP)])).get("vary") == "*"


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_function_chooses(kind: str, autojump_clock: MockClock) -> None:
    seen = []

    def choose(origin: str) -> bool:
        seen.append(origin)
        return origin.endswith(".example")

    async def choose_async(origin: str) -> bool:
        await trio.sleep(1)
        return choose(origin)

    module = Cors(allow_origins=choose if kind == "def" else choose_async)
    async with open_modules(PLAIN, module) as world:
        assert allowed(await world.exchange(fields=[("origin", APP)])) == {"allow-origin": APP}
        other = await world.exchange(fields=[("origin", "https://a.test")])
        assert allowed(other) == {}
        # What is no origin is not put to it.
        fooled = await world.exchange(fields=[("origin", "https://evil.test/?.example")])
        assert allowed(fooled) == {}
    assert seen == [APP, "https://a.test"]


async def test_a_refusal_by_another_module_can_be_read_by_the_page(
    autojump_clock: MockClock,
) -> None:
    auth = BasicAuth(users={"me": "secret"}, realm="r")
    async with open_modules(PLAIN, auth, CORS) as world:
        assert (await world.exchange("OPTIONS", fields=asks(APP))).status == 204
        answer = await world.exchange(fields=[("origin", APP)])
    assert answer.status == 401
    assert allowed(answer)["allow-origin"] == APP


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"allow_origins": ["*"], "allow_credentials": True}, "allow_origins has '\\*' and"),
        ({"allow_methods": ["*"], "allow_credentials": True}, "allow_methods has '\\*' and"),
        ({"allow_headers": ["*"], "allow_credentials": True}, "allow_headers has '\\*' and"),
        ({"expose_headers": ["*"], "allow_credentials": True}, "expose_headers has '\\*' and"),
        ({"allow_origins": ["null"], "allow_credentials": True}, "allow_origins has 'null' and"),
        ({"allow_origins": []}, "at least one origin"),
        ({"allow_origins": "https://a.example"}, "several are right"),
        ({"allow_origins": ["*", APP]}, "'\\*' stands by itself"),
        ({"allow_origins": ["a.example"]}, "has 'a.example'"),
        ({"allow_origins": ["https://a.example/"]}, "has 'https://a.example/'"),
        ({"allow_origins": ["https://A.example"]}, "lower case"),
        ({"allow_origins": ["https://a.example:443"]}, "own port"),
        ({"allow_origins": ["http://*.a.example:80"]}, "own port"),
        ({"allow_origins": ["https://*"]}, "has 'https://\\*'"),
        ({"allow_origins": ["https://a*.example"]}, "has 'https://a\\*.example'"),
        ({"allow_origins": [".*"]}, "has '\\.\\*'"),
        ({"allow_methods": ["a b"]}, "allow_methods has 'a b'"),
        ({"allow_headers": ["*", "a"]}, "stands by itself"),
        ({"expose_headers": ["a\r\nb"]}, "expose_headers has"),
        ({"max_age": -1}, "max_age=-1"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Cors(**{"allow_origins": [APP], **options})

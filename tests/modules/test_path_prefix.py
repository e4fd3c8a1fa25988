"""An origin that is a part of a site: its paths, what it says of its place, its cookies."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests._support.matrix import Exchange, Pairing
from tests._support.recording import ORIGIN, Message
from tests.modules._world import PLAIN, open_modules, some_pairings
from trioproxy import RequestHeader
from trioproxy.modules import PathPrefix, RewriteCookies, RewriteLocation
from trioproxy.modules._prefix import Mapping, climbs

APP = PathPrefix(strip="/app", add="/internal")
LOCATION = RewriteLocation(origins=["http://127.0.0.1:9000", "https://App.internal"])


def target_of(request: Message) -> str:
    pseudo = getattr(request, "pseudo", None)
    return str(pseudo[":path"]) if pseudo else request.start.split(b" ")[1].decode()


# -- the request ---------------------------------------------------------------------------------


@some_pairings
async def test_a_part_of_a_site_is_an_origin(pairing: Pairing, autojump_clock: MockClock) -> None:
    fields = [
        ("location", "http://127.0.0.1:9000/internal/new?x=/internal#y"),
        ("content-location", "/internal/here"),
        ("set-cookie", "a=b; Path=/internal; Domain=app.internal"),
        ("set-cookie", "c=d; path=/"),
    ]
    cookies = RewriteCookies(domains={"app.internal": "www.example"}, secure=True)
    modules = (PathPrefix(strip="/app", add="/internal", tell=True), LOCATION, cookies)
    async with open_modules(pairing, *modules, fields=fields, status=201) as world:
        answer = await world.exchange("POST", "/app/x%20y?q=/app", body=b"data")
        assert target_of(world.last()) == "/internal/x%20y?q=/app"
        assert world.last().get("x-forwarded-prefix") == "/app"
        assert world.last().body == b"data"
        assert (await world.exchange("GET", "/other")).status == 404
        assert (await world.exchange("GET", "/app/../other")).status == 400
        assert len(world.asked) == 1
    assert answer.get("location") == "/app/new?x=/internal#y"
    assert answer.get("content-location") == "/app/here"
    assert [value for name, value in answer.fields if name == b"set-cookie"] == [
        b"a=b; Path=/app; Domain=www.example; Secure",
        b"c=d; Path=/app; Secure",
    ]


@pytest.mark.parametrize(
    ("strip", "add", "path", "there"),
    [
        ("/app", "", "/app", "/"),
        ("/app", "", "/app/", "/"),
        ("/app", "", "/app/x", "/x"),
        ("/app", "", "/app//evil.test", "/evil.test"),
        ("/app", "", "/apple", None),
        ("/app", "", "/App", None),
        ("/app", "", "/", None),
        ("/app", "", "//app", None),
        ("/app", "", "/%61pp", None),
        ("/app", "/a/b", "/app", "/a/b"),
        ("/app", "/a/b", "/app/", "/a/b/"),
        ("/app", "/a/b", "/app/c", "/a/b/c"),
        ("", "/a", "/", "/a/"),
        ("", "/a", "/c", "/a/c"),
        ("", "", "/c", "/c"),
    ],
)
def test_paths_of_either_side(strip: str, add: str, path: str, there: str | None) -> None:
    assert Mapping(strip, add).to_origin(path) == there


@pytest.mark.parametrize(
    "path",
    [
        "/app/../x",
        "/app/..",
        "/app/./x",
        "/app/%2e%2e/x",
        "/app/.%2E/x",
        "/app/x/%2e%2e%2fy",
        "/app/..%2fx",
        "/app/%2e%2e%5cx",
        "/app/..;/x",
        "/app/..;a=b/x",
        "/app/x/..",
        "/..",
    ],
)
async def test_a_path_that_climbs_is_refused(path: str, autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, APP) as world:
        answer = await world.exchange("GET", path)
        assert (answer.status, answer.get("cache-control")) == (400, "no-store")
        assert not world.asked


@pytest.mark.parametrize("path", ["/app/...", "/app/a..b", "/app/..a", "/app/%2e%2ea", "/app/.x"])
async def test_dots_in_names_are_fine(path: str, autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, APP) as world:
        assert (await world.exchange("GET", path)).status == 200
        assert target_of(world.last()) == path.replace("/app", "/internal")


@given(st.lists(st.sampled_from([".", "..", "%2e", "%2E%2e", "a", "", ";", "%2f", "%5c"])))
def test_what_does_not_climb_stays_below(parts: list[str]) -> None:
    path = "/app/" + "/".join(parts)
    if climbs(path):
        return
    there = Mapping("/app", "/internal").to_origin(path)
    assert there is not None
    read = unquote(there).replace("\\", "/")
    assert urljoin("http://x", read).startswith("http://x/internal/")


async def test_every_attempt_asks_for_the_same_path(autojump_clock: MockClock) -> None:
    asked: list[Message] = []

    async def fails(exchange: Exchange) -> None:
        asked.append(await exchange.message())
        exchange.close()

    async def works(exchange: Exchange) -> None:
        asked.append(await exchange.message())
        await exchange.respond(200, [("location", "/internal/x")], b"ok")

    def retry(_peer: object, _session: object, e: Any, *_rest: object) -> Any:
        e.set_retry(True)
        return e

    origins = {str(ORIGIN.host): [fails, works]}
    hooks = {"error_while_proxy": retry}
    async with open_modules(PLAIN, APP, LOCATION, hooks=hooks, origins=origins) as world:
        answer = await world.exchange("GET", "/app/a")
    assert [target_of(each) for each in asked] == ["/internal/a"] * 2
    assert answer.get("location") == "/app/x"


async def test_the_whole_server_is_asked_without_a_path(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, APP) as world:
        assert (await world.exchange("OPTIONS", "*")).status == 200
        assert target_of(world.last()) == "*"


async def test_a_client_cannot_tell_the_prefix(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, APP) as world:
        await world.exchange("GET", "/app/", fields=[("x-forwarded-prefix", "/evil")])
        assert world.last().get("x-forwarded-prefix") is None


# -- Location ------------------------------------------------------------------------------------

STRIP = Mapping("/app", "")
SWAP = Mapping("/app", "/internal")


def located(
    url: str, mapping: Mapping, asked: str = "/app/a/b", public: str | None = None
) -> str | None:
    module = RewriteLocation(origins=LOCATION.origins, public_origin=public)
    path = mapping.to_origin(asked)
    assert path is not None
    request = RequestHeader("GET", path, [("host", "www.example:8080")])
    return module.public_url(url, request, asked, mapping)


@pytest.mark.parametrize(
    ("url", "made"),
    [
        ("http://127.0.0.1:9000", "/app/"),
        ("http://127.0.0.1:9000/", "/app/"),
        ("http://127.0.0.1:9000?q", "/app/?q"),
        ("HTTP://127.0.0.1:9000/x#y", "/app/x#y"),
        ("https://APP.INTERNAL/x", "/app/x"),
        ("https://app.internal:443/x", "/app/x"),
        ("//app.internal/x", "/app/x"),
        ("http://www.example:8080/x", "/app/x"),
        ("//www.example:8080/x", "/app/x"),
        ("/x?u=http://127.0.0.1:9000/", "/app/x?u=http://127.0.0.1:9000/"),
        # Those of others stay.
        ("http://127.0.0.1:9001/x", None),
        ("http://127.0.0.1/x", None),
        ("http://app.internal/x", None),
        ("https://app.internal.evil.test/x", None),
        ("https://app.internal@evil.test/x", None),
        ("http://user@127.0.0.1:9000/x", None),
        ("https://www.example/x", None),
        ("//evil.test/x", None),
        ("mailto:a@app.internal", None),
        ("javascript:alert(1)", None),
        ("http:x", None),
        ("", None),
    ],
)
def test_the_origin_s_own_urls_become_public(url: str, made: str | None) -> None:
    assert located(url, STRIP) == made
    if made is not None:
        public = "https://public.example"
        assert located(url, STRIP, public=public) == public + made


@pytest.mark.parametrize(
    ("url", "asked", "made"),
    [
        # It leads to the same place from either path.
        ("c", "/app/a/b", None),
        ("../c", "/app/a/b", None),
        ("?q", "/app/a/b", None),
        ("#f", "/app/a/b", None),
        ("./", "/app/a/b", None),
        # It would not: the public path has no slash where the origin's has.
        ("c", "/app", "/app/c"),
        ("./c?q#f", "/app", "/app/c?q#f"),
        # It climbs over the prefix, which the origin does not know of.
        ("../../c", "/app/a/b", "/app/c"),
        ("../../../c", "/app/a/b", "/app/c"),
    ],
)
def test_a_relative_reference_leads_to_the_same_place(
    url: str, asked: str, made: str | None
) -> None:
    assert located(url, STRIP, asked) == made
    path = STRIP.to_origin(asked)
    assert path is not None
    meant = urljoin("http://x" + path, url).removeprefix("http://x")
    public = urljoin("http://x" + asked, url if made is None else made)
    assert public.removeprefix("http://x") == "/app" + meant


@pytest.mark.parametrize(
    ("url", "made"),
    [
        ("/internal/x", "/app/x"),
        ("/internal", "/app"),
        ("/internally", None),
        ("/x", None),
        ("http://127.0.0.1:9000/x", None),
        ("c", None),
        ("../../../c", None),
    ],
)
def test_what_is_not_below_the_origin_s_prefix_stays(url: str, made: str | None) -> None:
    assert located(url, SWAP) == made


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000/internal//evil.test",
        "/internal//evil.test",
        "http://127.0.0.1:9000/internal///evil.test",
    ],
)
def test_a_path_never_becomes_a_host(url: str) -> None:
    assert located(url, Mapping("", "/internal"), "/a") == "/evil.test"


@pytest.mark.parametrize("url", ["/internal/\\evil.test", "/internal/\t/evil.test", "\\\\evil"])
async def test_what_browsers_read_in_their_own_way_is_left_alone(
    url: str, autojump_clock: MockClock
) -> None:
    modules = (PathPrefix(add="/internal"), LOCATION)
    async with open_modules(PLAIN, *modules, fields=[("location", url)], status=302) as world:
        assert (await world.exchange()).get("location") == url


@pytest.mark.parametrize(
    ("value", "made"),
    [
        ("5; url=http://127.0.0.1:9000/x", "5; url=/app/x"),
        ("0;URL='/x'", "0;URL='/app/x'"),
        ('0.5, Url = "/x"', '0.5, Url = "/app/x"'),
        ("5 url=/x", "5 url=/app/x"),
        ("5", "5"),
        ("5; url=https://other.test/", "5; url=https://other.test/"),
        ("5; url='/x", "5; url='/x"),
        ("5; url=", "5; url="),
        ("x; url=/y", "x; url=/y"),
        ("5" + " " * 3000 + "url" + " " * 3000, "5" + " " * 3000 + "url"),
    ],
)
async def test_refresh(value: str, made: str, autojump_clock: MockClock) -> None:
    modules = (PathPrefix(strip="/app"), LOCATION)
    async with open_modules(PLAIN, *modules, fields=[("refresh", value)]) as world:
        assert (await world.exchange("GET", "/app/a/b")).get("refresh") == made


async def test_without_a_prefix_the_host_alone_is_replaced(autojump_clock: MockClock) -> None:
    module = RewriteLocation(origins=["http://a.internal"], public_origin="https://www.example")
    fields = [("location", "http://a.internal/x"), ("content-location", "x")]
    async with open_modules(PLAIN, module, fields=fields, status=302) as world:
        answer = await world.exchange()
    assert answer.get("location") == "https://www.example/x"
    assert answer.get("content-location") == "x"


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=30))
def test_no_url_breaks_the_rewriting(url: str) -> None:
    for mapping in (STRIP, SWAP, Mapping()):
        made = located(url, mapping, "/app/a/b")
        assert made is None or (made.startswith("/") and not made.startswith("//"))


# -- cookies -------------------------------------------------------------------------------------


def cookie(value: str, mapping: Mapping = SWAP, **options: Any) -> str:
    return RewriteCookies(**options).rewritten(value.encode("latin-1"), mapping).decode("latin-1")


@pytest.mark.parametrize(
    ("value", "made"),
    [
        ("a=b", "a=b"),
        ("a=b; Path=/internal", "a=b; Path=/app"),
        ("a=b; Path=/internal/", "a=b; Path=/app/"),
        ("a=b;PATH=/internal/x;Secure", "a=b; Path=/app/x;Secure"),
        ("a=b; Path=/internal; path=/internal/y", "a=b; Path=/app; Path=/app/y"),
        ("a=b; Path=/", "a=b; Path=/app"),
        ("a=b; Path=/other", "a=b; Path=/other"),
        ("a=b; Path=/internally", "a=b; Path=/internally"),
        ("a=b; Path=", "a=b; Path="),
        ("a=b; Path", "a=b; Path"),
        ("a=b; Path=internal", "a=b; Path=internal"),
        ("__Host-a=b; Path=/; Secure", "__Host-a=b; Path=/; Secure"),
        ("__host-a=b; Path=/; Secure", "__host-a=b; Path=/; Secure"),
        (
            'a="Path=/internal"; Max-Age=5; Partitioned',
            'a="Path=/internal"; Max-Age=5; Partitioned',
        ),
        ("Path=/internal", "Path=/internal"),
        ("\xe4=\xff; x", "\xe4=\xff; x"),
    ],
)
def test_the_path_of_a_cookie(value: str, made: str) -> None:
    assert cookie(value) == made


@pytest.mark.parametrize(
    ("path", "made"), [("/", "/app"), ("/x", "/app/x"), ("/x/", "/app/x/"), ("//", "/app")]
)
def test_the_path_of_a_cookie_of_an_origin_without_a_prefix(path: str, made: str) -> None:
    assert cookie(f"a=b; Path={path}", STRIP) == f"a=b; Path={made}"
    assert cookie(f"a=b; Path={path}", Mapping()) in (f"a=b; Path={path}", "a=b; Path=/")


@pytest.mark.parametrize(
    ("domains", "value", "made"),
    [
        ({"a.internal": "www.example"}, "c=d; Domain=a.internal", "c=d; Domain=www.example"),
        ({"A.Internal": "www.example"}, "c=d; domain=.a.INTERNAL", "c=d; Domain=www.example"),
        ({"a.internal": None}, "c=d; Domain=a.internal; Secure", "c=d; Secure"),
        ({"a.internal": "x.test"}, "c=d; Domain=b.internal", "c=d; Domain=b.internal"),
        ({"a.internal": "x.test"}, "c=d; Domain=b.a.internal", "c=d; Domain=b.a.internal"),
        ({"*": "x.test"}, "c=d; Domain=b.internal", "c=d; Domain=x.test"),
        ({"*": None, "b": "x.test"}, "c=d; Domain=b", "c=d; Domain=x.test"),
        ({"*": None}, "c=d; Domain=", "c=d; Domain="),
        ({"*": "x.test"}, "__Host-c=d; Domain=b", "__Host-c=d; Domain=b"),
    ],
)
def test_the_domain_of_a_cookie(domains: dict[str, str | None], value: str, made: str) -> None:
    assert cookie(value, domains=domains) == made


@pytest.mark.parametrize(
    ("options", "value", "made"),
    [
        ({"secure": True}, "a=b; SECURE; HttpOnly", "a=b; HttpOnly; Secure"),
        ({"secure": False}, "a=b; Secure", "a=b"),
        ({"secure": False}, "__Secure-a=b; Secure", "__Secure-a=b; Secure"),
        ({"secure": False}, "__Host-a=b; Secure; Path=/", "__Host-a=b; Secure; Path=/"),
        ({"http_only": True}, "a=b; httponly; x", "a=b; x; HttpOnly"),
        ({"http_only": False}, "a=b; HttpOnly", "a=b"),
        ({"same_site": "Lax"}, "a=b; SameSite=None; Secure", "a=b; Secure; SameSite=Lax"),
        (
            {"same_site": "None", "secure": True},
            "a=b; samesite=strict",
            "a=b; Secure; SameSite=None",
        ),
        ({}, "a=b; secure; SameSite=x", "a=b; secure; SameSite=x"),
    ],
)
def test_the_flags_of_a_cookie(options: dict[str, Any], value: str, made: str) -> None:
    assert cookie(value, **options) == made


@given(st.binary(max_size=40))
def test_what_names_a_cookie_stays_byte_for_byte(value: bytes) -> None:
    module = RewriteCookies(domains={"*": None}, secure=True, same_site="Lax")
    made = module.rewritten(value, SWAP)
    assert made.split(b";")[0] == value.split(b";")[0]
    assert module.rewritten(made, Mapping()) == made


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (PathPrefix, {"strip": "app"}, "strip='app'"),
        (PathPrefix, {"strip": "/app/"}, "strip='/app/'"),
        (PathPrefix, {"strip": "/a?b"}, "strip='/a\\?b'"),
        (PathPrefix, {"add": "/a/../b"}, "add='/a/../b'"),
        (PathPrefix, {"add": "/a/%2e%2e/b"}, "add="),
        (PathPrefix, {"add": "//a"}, "add='//a'"),
        (PathPrefix, {"add": "/a b"}, "add='/a b'"),
        (PathPrefix, {"tell": 1}, "tell=1"),
        (RewriteLocation, {"origins": "http://a"}, "several are right"),
        (RewriteLocation, {"origins": ["a.test"]}, "origins has 'a.test'"),
        (RewriteLocation, {"origins": ["http://a.test/x"]}, "origins has"),
        (RewriteLocation, {"public_origin": "https://a/"}, "public_origin='https://a/'"),
        (RewriteLocation, {"public_origin": "https://a\r\n"}, "public_origin="),
        (RewriteCookies, {"domains": {"a b": None}}, "domains has 'a b'"),
        (RewriteCookies, {"domains": {"a": "b; Secure"}}, "domains has 'b; Secure' for 'a'"),
        (RewriteCookies, {"domains": {"a": "*"}}, "domains has '\\*'"),
        (RewriteCookies, {"secure": 1}, "secure=1"),
        (RewriteCookies, {"same_site": "lax"}, "same_site='lax'"),
        (RewriteCookies, {"same_site": "None"}, "same_site='None': secure=True"),
    ],
)
def test_a_wrong_option_is_named(kind: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kind(**options)

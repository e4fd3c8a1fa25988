"""The ready-made policy behind a whole proxy: what a client gets, and what the origin is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests._support.recording import ORIGIN, CutError, Gateway, Message, Wire, open_gateway
from trioproxy import CachingProxy, HttpPeer, Session, _clock
from trioproxy.cache import CacheKey, DiskStorage, MemoryStorage, SharedCache, SharedPolicy, Storage

NOW = 1.5e9
#: The dates of an hour before it and of ten thousand seconds before it.
HOUR_AGO = "Fri, 14 Jul 2017 01:40:00 GMT"
LONG_AGO = "Thu, 13 Jul 2017 23:53:20 GMT"
#: What an origin does that closes the connection instead of answering.
GONE = b""


def says(*fields: str, status: str = "200 OK", body: str | None = "one") -> bytes:
    """Return a response of the origin."""
    lines = [f"HTTP/1.1 {status}", *fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", body or ""]).encode("latin-1")


@attrs.frozen
class Ask:
    """A request, what the origin says to it, and what the client gets."""

    #: None: the origin is not asked at all.
    origin: bytes | None
    status: int = 200
    body: bytes | None = b"one"
    fields: tuple[str, ...] = ()
    method: str = "GET"
    path: str = "/a"
    #: Seconds that have passed before.
    after: float = 0.0
    #: Fields of the response; None: there is none of that name.
    gets: dict[str, str | None] = attrs.field(factory=dict)
    #: Fields of the request that the origin sees.
    asks: dict[str, str | None] = attrs.field(factory=dict)

    def request(self) -> bytes:
        """Return the bytes of the request."""
        fields = list(self.fields)
        if self.method in ("POST", "PUT"):
            fields.append("Content-Length: 0")
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: site.test", *fields, "", ""]
        return "\r\n".join(lines).encode("latin-1")


FRESH = says("Cache-Control: max-age=60")
TAGGED = says("Cache-Control: max-age=60", 'ETag: "v1"')
CHUNKED = TAGGED.replace(b"Content-Length: 3\r\n\r\none", b"") + (
    b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"
)
DATED = says("Cache-Control: max-age=60", f"Last-Modified: {LONG_AGO}")
UNCHANGED = says("Cache-Control: max-age=60", 'ETag: "v1"', status="304 Not Modified", body=None)
GONE_FOR_GOOD = says("Cache-Control: max-age=60", status="410 Gone", body="gone")
OTHER = says("Cache-Control: max-age=60", body="two")
NEWER = says("Cache-Control: max-age=60", 'ETag: "v2"', body="two")
VARIES = says("Cache-Control: max-age=60", "Vary: Foo", 'ETag: "v1"')
WHILE = says("Cache-Control: max-age=60, stale-while-revalidate=60", 'ETag: "v1"')
HIT = Ask(None)

ROWS: dict[str, list[Ask]] = {
    # -- what is stored, and for how long
    "a fresh response answers, with its age": [
        Ask(FRESH, gets={"age": None, "cache-status": "trioproxy;fwd=uri-miss;stored"}),
        Ask(None, after=7, gets={"age": "7", "cache-status": "trioproxy;hit;ttl=53"}),
    ],
    "a stale response without validators is fetched anew": [
        Ask(FRESH),
        Ask(OTHER, after=60, body=b"two", asks={"if-none-match": None}),
        Ask(None, after=59, body=b"two"),
    ],
    "an Age that came with it counts": [
        Ask(says("Cache-Control: max-age=60", "Age: 50")),
        Ask(None, after=9, gets={"age": "59"}),
        Ask(OTHER, after=1, body=b"two"),
    ],
    "s-maxage stands before max-age": [
        Ask(says("Cache-Control: max-age=1, s-maxage=60")),
        Ask(None, after=59),
        Ask(OTHER, after=1, body=b"two"),
    ],
    "Expires counts from Date": [
        Ask(says("Expires: Fri, 14 Jul 2017 02:41:00 GMT")),
        Ask(None, after=59),
        Ask(OTHER, after=1, body=b"two"),
    ],
    "a broken Expires has passed": [Ask(says("Expires: 0")), Ask(OTHER, body=b"two")],
    "a tenth of the time since Last-Modified": [
        Ask(says(f"Last-Modified: {LONG_AGO}")),
        Ask(None, after=999),
        Ask(OTHER, after=1, body=b"two", asks={"if-modified-since": LONG_AGO}),
    ],
    "nothing that says nothing": [Ask(says()), Ask(OTHER, body=b"two")],
    "no status by heuristics that RFC 9110 does not name": [
        Ask(says(f"Last-Modified: {LONG_AGO}", status="403 No"), 403),
        Ask(OTHER, body=b"two"),
    ],
    "an unknown status that says how long": [
        Ask(says("Cache-Control: max-age=60", status="599 What"), 599),
        Ask(None, 599),
    ],
    "a 204, which has no content": [
        Ask(says("Cache-Control: max-age=60", status="204 No Content", body=None), 204, b""),
        Ask(None, 204, b"", after=59),
    ],
    "a response of no bytes": [
        Ask(says("Cache-Control: max-age=60", body=""), body=b""),
        Ask(None, body=b""),
    ],
    "nothing private": [Ask(says("Cache-Control: private, max-age=60")), Ask(OTHER, body=b"two")],
    "nothing that is not to be stored": [
        Ask(says("Cache-Control: max-age=60, no-store")),
        Ask(OTHER, body=b"two"),
    ],
    "no-cache is asked about each time": [
        Ask(says("Cache-Control: no-cache", 'ETag: "v1"')),
        Ask(UNCHANGED, asks={"if-none-match": '"v1"'}),
    ],
    "nothing with a cookie": [
        Ask(says("Cache-Control: max-age=60", "Set-Cookie: a=b"), gets={"set-cookie": "a=b"}),
        Ask(OTHER, body=b"two"),
    ],
    "nothing of one user's": [
        Ask(FRESH, fields=("Authorization: Basic YQ==",)),
        Ask(OTHER, body=b"two"),
    ],
    "what is public though a user asked": [
        Ask(
            says("Cache-Control: max-age=60, public"),
            fields=("Authorization: Basic YQ==",),
        ),
        HIT,
    ],
    "a targeted field stands before Cache-Control": [
        Ask(says("Cache-Control: no-store", "CDN-Cache-Control: max-age=60")),
        Ask(None, after=59),
        Ask(OTHER, after=1, body=b"two"),
    ],
    "nothing for a client that says no-store": [
        Ask(FRESH, fields=("Cache-Control: no-store",)),
        Ask(OTHER, body=b"two"),
        Ask(None, body=b"two"),
    ],
    # -- validation
    "a 304 freshens what is stored": [
        Ask(TAGGED),
        Ask(
            UNCHANGED.replace(b"\r\n\r\n", b"\r\nX-New: yes\r\n\r\n"),
            after=60,
            asks={"if-none-match": '"v1"'},
            gets={"x-new": "yes", "cache-status": "trioproxy;fwd=stale"},
        ),
        Ask(None, after=59, gets={"x-new": "yes"}),
    ],
    "a 304 for another tag serves once and freshens nothing": [
        Ask(TAGGED),
        Ask(UNCHANGED.replace(b"v1", b"v2"), after=60),
        Ask(OTHER, body=b"two"),
    ],
    "a 200 takes the place of what is stale": [
        Ask(TAGGED),
        Ask(OTHER, after=60, body=b"two", asks={"if-none-match": '"v1"'}),
        Ask(None, body=b"two"),
    ],
    # -- the client's conditions and ranges
    "a client's tag on a hit": [
        Ask(TAGGED),
        Ask(None, 304, b"", fields=('If-None-Match: W/"v1"',), gets={"etag": '"v1"'}),
        Ask(None, fields=('If-None-Match: "v2"',)),
        Ask(None, 412, b"", fields=('If-Match: "v2"',)),
    ],
    "a client's date on a hit": [
        Ask(DATED),
        Ask(None, 304, b"", fields=(f"If-Modified-Since: {HOUR_AGO}",)),
        Ask(None, 412, b"", fields=("If-Unmodified-Since: Thu, 13 Jul 2017 00:00:00 GMT",)),
    ],
    "a client's tag on a miss is kept from the origin": [
        Ask(TAGGED, 304, b"", fields=('If-None-Match: "v1"',), asks={"if-none-match": None}),
        HIT,
    ],
    "a client's tag on what is stale": [
        Ask(TAGGED),
        Ask(UNCHANGED, 304, b"", after=60, fields=('If-None-Match: "v1"',)),
        HIT,
    ],
    "a client's newer tag on what is stale": [
        Ask(TAGGED),
        Ask(
            NEWER,
            304,
            b"",
            after=60,
            fields=('If-None-Match: "v2"',),
            asks={"if-none-match": '"v1"'},
        ),
        Ask(None, body=b"two"),
    ],
    "conditions and ranges only of a 200": [
        Ask(GONE_FOR_GOOD, 410, b"gone"),
        Ask(None, 410, b"gone", fields=("If-None-Match: *", "Range: bytes=0-0")),
    ],
    "what was learnt of a key is unlearnt": [
        Ask(says("Cache-Control: private")),
        Ask(
            says("Content-Range: bytes 0-0/3", status="206 P", body="o"),
            206,
            b"o",
            fields=("Range: bytes=0-0",),
            asks={"range": "bytes=0-0"},
        ),
        Ask(UNCHANGED, 304, b"", fields=('If-None-Match: "v1"',), asks={"if-none-match": '"v1"'}),
        Ask(FRESH),
        HIT,
    ],
    "a part of a hit": [
        Ask(TAGGED),
        Ask(
            None,
            206,
            b"ne",
            fields=("Range: bytes=1-",),
            gets={"content-range": "bytes 1-2/3", "content-length": "2"},
        ),
        Ask(None, 206, b"e", fields=("Range: bytes=-1", 'If-Range: "v1"')),
        Ask(None, fields=("Range: bytes=-1", 'If-Range: "v2"')),
        Ask(None, 416, b"", fields=("Range: bytes=3-",), gets={"content-range": "bytes */3"}),
    ],
    "a part of a hit whose length the origin did not say": [
        Ask(CHUNKED),
        Ask(None, fields=("Range: bytes=x",), gets={"content-length": None}),
        Ask(
            None,
            206,
            b"ne",
            fields=("Range: bytes=1-",),
            gets={"content-range": "bytes 1-2/3", "content-length": "2"},
        ),
        Ask(None, 304, b"", fields=("Range: bytes=1-", 'If-None-Match: "v1"')),
        Ask(None, 416, b"", fields=("Range: bytes=3-",), gets={"content-range": "bytes */3"}),
    ],
    "a part of a miss stores the whole": [
        Ask(TAGGED, 206, b"o", fields=("Range: bytes=0-0",), asks={"range": None}),
        HIT,
    ],
    "no part from the origin": [
        Ask(says("Cache-Control: max-age=60", "Content-Range: bytes 0-2/9", status="206 P"), 206),
        Ask(OTHER, body=b"two"),
    ],
    "a part of what was stale": [
        Ask(TAGGED),
        Ask(UNCHANGED, 206, b"n", after=60, fields=("Range: bytes=1-1",), asks={"range": None}),
        Ask(NEWER, 206, b"w", after=60, fields=("Range: bytes=1-1",), asks={"range": None}),
        Ask(None, body=b"two"),
    ],
    "HEAD from a stored GET": [
        Ask(TAGGED),
        Ask(None, 200, b"", method="HEAD", gets={"content-length": "3", "age": "0"}),
    ],
    "HEAD fills as GET": [
        Ask(TAGGED, 200, b"", method="HEAD", gets={"content-length": "3"}),
        HIT,
    ],
    # -- what the client says of caching
    "no-cache asks the origin though it is fresh": [
        Ask(TAGGED),
        Ask(UNCHANGED, fields=("Cache-Control: no-cache",), asks={"if-none-match": '"v1"'}),
        HIT,
    ],
    "max-age=0 asks the origin though it is fresh": [
        Ask(TAGGED),
        Ask(OTHER, body=b"two", fields=("Cache-Control: max-age=0",)),
        Ask(None, body=b"two"),
    ],
    "max-age is the oldest that a client takes": [
        Ask(TAGGED),
        Ask(None, after=10, fields=("Cache-Control: max-age=10",)),
        Ask(UNCHANGED, after=1, fields=("Cache-Control: max-age=10",)),
    ],
    "min-fresh looks ahead": [
        Ask(TAGGED),
        Ask(None, after=10, fields=("Cache-Control: min-fresh=50",)),
        Ask(UNCHANGED, after=1, fields=("Cache-Control: min-fresh=50",)),
    ],
    "max-stale takes what is stale": [
        Ask(TAGGED),
        Ask(
            None,
            after=70,
            fields=("Cache-Control: max-stale=10",),
            gets={"age": "70", "cache-status": "trioproxy;hit;ttl=-10;detail=forced"},
        ),
        Ask(UNCHANGED, after=1, fields=("Cache-Control: max-stale=10",)),
    ],
    "only-if-cached": [
        Ask(None, 504, None, fields=("Cache-Control: only-if-cached",)),
        Ask(FRESH),
        Ask(None, fields=("Cache-Control: only-if-cached",)),
        Ask(None, 504, None, after=60, fields=("Cache-Control: only-if-cached",)),
    ],
    "only-if-cached asks no origin, whatever was learnt of the key": [
        Ask(says("Cache-Control: no-store")),
        Ask(None, 504, None, fields=("Cache-Control: only-if-cached",)),
        Ask(WHILE),
        Ask(None, after=70, fields=("Cache-Control: only-if-cached",)),
        Ask(None, 504, None, after=50, fields=("Cache-Control: only-if-cached",)),
    ],
    "no-cache takes nothing stale, even while it is renewed or for an origin that is gone": [
        Ask(WHILE),
        Ask(GONE, 502, b"", fields=("Cache-Control: no-cache",)),
        HIT,
        Ask(UNCHANGED, after=70, fields=("Cache-Control: no-cache",)),
    ],
    "stale-while-revalidate is not for who says max-age": [
        Ask(WHILE),
        Ask(UNCHANGED, after=70, fields=("Cache-Control: max-age=100",)),
    ],
    "an unknown directive is none": [Ask(FRESH), Ask(None, fields=("Cache-Control: what=0",))],
    # -- stale answers
    "stale for an origin that is gone": [
        Ask(TAGGED),
        Ask(
            GONE,
            after=3600,
            gets={"age": "3600", "cache-status": "trioproxy;hit;ttl=-3540;detail=stale"},
        ),
    ],
    "stale for an origin that says 503": [
        Ask(TAGGED),
        Ask(says(status="503 Busy"), after=3600),
    ],
    "not for a 500, unless the response says so": [
        Ask(TAGGED),
        Ask(says(status="500 Oh", body="oh"), 500, b"oh", after=60),
    ],
    "for a 500 where the response says so": [
        Ask(says("Cache-Control: max-age=60, stale-if-error=60", 'ETag: "v1"')),
        Ask(says(status="500 Oh", body="oh"), after=60),
        Ask(says(status="500 Oh", body="oh"), 500, b"oh", after=60),
    ],
    "never with must-revalidate": [
        Ask(says("Cache-Control: max-age=60, must-revalidate", 'ETag: "v1"')),
        Ask(GONE, 502, b"", after=60),
    ],
    "never with s-maxage": [
        Ask(says("Cache-Control: s-maxage=60", 'ETag: "v1"')),
        Ask(GONE, 502, b"", after=60),
    ],
    "never after a day": [Ask(TAGGED), Ask(GONE, 502, b"", after=86400 + 61)],
    "a part of what is stale, for an origin that is gone": [
        Ask(TAGGED),
        Ask(GONE, 206, b"n", after=60, fields=("Range: bytes=1-1",)),
    ],
    "another answer takes the place of what is stale": [
        Ask(TAGGED),
        Ask(GONE_FOR_GOOD, 410, b"gone", after=60),
        Ask(None, 410, b"gone"),
    ],
    # -- variants
    "variants by the field that Vary names": [
        Ask(says("Cache-Control: max-age=60", "Vary: Foo"), fields=("Foo: 1",)),
        Ask(
            says("Cache-Control: max-age=60", "Vary: Foo", body="two"),
            body=b"two",
            fields=("Foo: 2",),
        ),
        Ask(None, fields=("Foo: 1",)),
        Ask(None, body=b"two", fields=("Foo: 2",)),
        Ask(says("Vary: Foo", body="three"), body=b"three"),
    ],
    "each variant is validated by itself": [
        Ask(VARIES, fields=("Foo: 1",)),
        Ask(VARIES.replace(b"one", b"two").replace(b"v1", b"v2"), body=b"two", fields=("Foo: 2",)),
        Ask(
            UNCHANGED.replace(b"v1", b"v2"),
            body=b"two",
            after=60,
            fields=("Foo: 2",),
            asks={"if-none-match": '"v2"'},
        ),
        Ask(None, body=b"two", fields=("Foo: 2",)),
        Ask(UNCHANGED, fields=("Foo: 1",), asks={"if-none-match": '"v1"'}),
        Ask(None, fields=("Foo: 1",)),
        Ask(None, body=b"two", fields=("Foo: 2",)),
    ],
    "a change takes all variants": [
        Ask(VARIES, fields=("Foo: 1",)),
        Ask(VARIES.replace(b"one", b"two"), body=b"two", fields=("Foo: 2",)),
        Ask(says(), method="PUT", after=1),
        Ask(VARIES, fields=("Foo: 1",)),
        Ask(VARIES.replace(b"one", b"new"), body=b"new", fields=("Foo: 2",)),
        Ask(None, fields=("Foo: 1",)),
    ],
    "Vary: * is never reused": [
        Ask(says("Cache-Control: max-age=60", "Vary: *")),
        Ask(OTHER, body=b"two"),
    ],
    "the order of weights is no variant": [
        Ask(
            says("Cache-Control: max-age=60", "Vary: Accept-Language"),
            fields=("Accept-Language: en, de;q=0.5",),
        ),
        Ask(None, fields=("Accept-Language: de;q=0.5 ,EN",)),
    ],
    # -- methods
    "a method that changes something": [
        Ask(FRESH),
        Ask(says(), method="POST"),
        Ask(OTHER, body=b"two"),
    ],
    "a method that nobody knows": [
        Ask(FRESH),
        Ask(says(), method="M-SEARCH"),
        Ask(OTHER, body=b"two"),
    ],
    "a failed change changes nothing": [
        Ask(FRESH),
        Ask(says(status="500 Oh"), 500, method="PUT"),
        HIT,
    ],
    "Location, within the origin": [
        Ask(FRESH),
        Ask(FRESH, path="/b"),
        Ask(says("Location: /a"), method="POST", path="/c"),
        Ask(None, path="/b"),
        Ask(OTHER, body=b"two"),
    ],
    "a POST that says that it is the target": [
        Ask(says("Cache-Control: max-age=60", "Content-Location: /a"), method="POST"),
        HIT,
        Ask(OTHER, body=b"two", method="POST"),
    ],
    "a method that changes nothing": [Ask(FRESH), Ask(says(), method="OPTIONS"), HIT],
    "a query is part of the key": [Ask(FRESH), Ask(OTHER, body=b"two", path="/a?b")],
    # -- fields
    "fields of one hop are not stored": [
        Ask(says("Cache-Control: max-age=60", "Connection: x-hop", "X-Hop: 1", "X-Stay: 1")),
        Ask(None, gets={"x-hop": None, "x-stay": "1"}),
    ],
}


@attrs.define(eq=False)
class Origin:
    """Says what the row has it say, and keeps what it was asked."""

    answer: bytes | None = None
    asked: list[Message] = attrs.field(factory=list)

    async def __call__(self, wire: Wire) -> None:
        """Serve a connection."""
        while True:
            try:
                self.asked.append(await wire.message())
            except CutError:
                return
            if not self.answer:
                return
            await wire.send(self.answer)


@attrs.define
class Clock:
    """The wall clock, set by hand."""

    now: float = NOW

    def __call__(self) -> float:
        """Return what it shows."""
        return self.now


@attrs.define(eq=False)
class Cached(CachingProxy[None]):
    """The ready-made policy and nothing else."""

    def new_ctx(self) -> None:
        """Return nothing."""

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        """Return the one origin."""
        return ORIGIN


@contextmanager
def clock_at(moment: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Have the wall clock stand still."""
    clock = Clock(moment)
    with monkeypatch.context() as patch:
        patch.setattr(_clock, "_source", clock)
        patch.setattr(_clock, "_cached_second", 0)
        yield clock


async def check(ask: Ask, gateway: Gateway, origin: Origin) -> None:
    """Make one request, and hold to the row what the client gets and what the origin is asked."""
    origin.answer = ask.origin
    origin.asked.clear()
    response = await gateway.exchange(ask.request(), bodiless=ask.method == "HEAD")
    await trio.testing.wait_all_tasks_blocked()
    assert (response.status, bool(origin.asked)) == (ask.status, ask.origin is not None), response
    if ask.body is not None:
        assert response.body == ask.body
    for name, value in ask.gets.items():
        assert response.get(name) == value, response
    for name, value in ask.asks.items():
        assert origin.asked[0].get(name) == value


async def check_row(asks: list[Ask], shared: SharedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the requests of a row one after the other."""
    origin = Origin()
    with clock_at(NOW, monkeypatch) as clock:
        async with open_gateway(Cached(shared_cache=shared), origin) as gateway:
            for ask in asks:
                clock.now += ask.after
                await check(ask, gateway, origin)


@pytest.mark.parametrize("name", ROWS)
async def test_the_ready_made_policy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await check_row(ROWS[name], SharedCache(storage=MemoryStorage(2**20)), monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "a 204, which has no content",
        "a 304 freshens what is stored",
        "a part of a hit",
        "a method that changes something",
        "variants by the field that Vary names",
    ],
)
async def test_the_ready_made_policy_on_disk(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage: Storage = DiskStorage(tmp_path, 2**24)
    await check_row(ROWS[name], SharedCache(storage=storage), monkeypatch)
    await storage.aclose()


async def test_a_cookie_is_stored_where_the_policy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asks = [
        Ask(says("Cache-Control: max-age=60", "Set-Cookie: a=b"), gets={"set-cookie": "a=b"}),
        Ask(None, gets={"set-cookie": "a=b"}),
    ]
    shared = SharedCache(storage=MemoryStorage(2**20), policy=SharedPolicy(store_set_cookie=True))
    await check_row(asks, shared, monkeypatch)


async def test_a_stale_response_is_served_while_it_is_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    origin = Origin(WHILE)
    with clock_at(NOW, monkeypatch) as clock:
        shared = SharedCache(storage=MemoryStorage(2**20))
        async with open_gateway(Cached(shared_cache=shared), origin) as gateway:
            gateway.services.nursery = gateway.nursery
            await check(Ask(WHILE), gateway, origin)
            clock.now += 70
            detail = "trioproxy;hit;ttl=-10;detail=stale-updating"
            asks: dict[str, str | None] = {"if-none-match": '"v1"'}
            await check(
                Ask(OTHER, asks=asks, gets={"age": "70", "cache-status": detail}), gateway, origin
            )
            await check(Ask(None, body=b"two"), gateway, origin)
            clock.now += 60
            # It has no window of its own: nobody gets it stale.
            await check(Ask(FRESH), gateway, origin)


@pytest.mark.parametrize(
    ("fields", "said"),
    [(("Cache-Control: no-cache",), "max-age=60"), ((), "no-cache"), ((), "s-maxage=0")],
)
async def test_requests_that_each_want_a_validation_share_those_that_come_after_them(
    fields: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Message] = []
    goes_on = trio.Event()
    bodies: list[bytes] = []

    async def origin(wire: Wire) -> None:
        while True:
            try:
                asked.append(await wire.message())
            except CutError:
                return
            number = len(asked)
            if number > 1:
                await goes_on.wait()
            tag = f'ETag: "{number}"'
            await wire.send(says(f"Cache-Control: {said}", tag, body=f"{number}"))

    async def come() -> None:
        bodies.append((await gateway.exchange(Ask(None, fields=fields).request())).body)

    shared = SharedCache(storage=MemoryStorage(2**20))
    with clock_at(NOW, monkeypatch) as clock:
        async with open_gateway(Cached(shared_cache=shared), origin) as gateway:
            await gateway.exchange(HIT.request())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come)
                await trio.testing.wait_all_tasks_blocked()
                clock.now += 10
                # The first was sent before these came: they do not take what it brings.
                for _ in range(5):
                    nursery.start_soon(come)
                await trio.testing.wait_all_tasks_blocked()
                assert len(asked) == 2
                goes_on.set()
            assert sorted(bodies) == [b"2"] + [b"3"] * 5
            assert len(asked) == 3


async def test_who_lets_nothing_be_stored_neither_waits_nor_has_others_wait() -> None:
    asked: list[Message] = []

    async def origin(wire: Wire) -> None:
        asked.append(await wire.message())
        await wire.more()  # no answer: all there is to see is who asks

    ask = Ask(None, fields=("Cache-Control: no-store",)).request()
    shared = SharedCache(storage=MemoryStorage(2**20))
    async with open_gateway(Cached(shared_cache=shared), origin) as gateway:
        for request, count in ((ask, 1), (ask, 2), (HIT.request(), 3), (HIT.request(), 3)):
            await gateway.connect().send(request)
            await trio.testing.wait_all_tasks_blocked()
            assert len(asked) == count


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_an_origin_that_closes_a_pooled_connection_costs_no_request(method: str) -> None:
    asked: list[tuple[int, bytes]] = []
    content = b"abc" if method == "PUT" else b""

    async def closes_on_reuse(wire: Wire) -> None:
        asked.append((wire.number, (await wire.message()).body))
        await wire.send(says())
        asked.append((wire.number, (await wire.message()).body))

    async def serves(wire: Wire) -> None:
        asked.append((wire.number, (await wire.message()).body))
        await wire.send(says())
        await wire.more()

    shared = SharedCache(storage=MemoryStorage(2**20))
    outcomes = {ORIGIN.name: [closes_on_reuse, serves]}
    async with open_gateway(Cached(shared_cache=shared), outcomes) as gateway:
        await gateway.exchange(Ask(None, path="/warm").request())
        fields = (
            f"Host: site.test\r\nContent-Length: {len(content)}" if content else "Host: site.test"
        )
        request = f"{method} /a HTTP/1.1\r\n{fields}\r\n\r\n".encode() + content
        response = await gateway.exchange(request, bodiless=method == "HEAD")
        assert response.status == 200
        assert asked == [(0, b""), (0, content), (1, content)]


@attrs.define
class PerUser(Cached):
    """Keys of its own."""

    def cache_key_callback(self, session: Session, ctx: None) -> CacheKey:
        return CacheKey(b"users", (session.get_header("user") or "").encode())


async def test_an_unsafe_method_drops_what_a_key_of_the_users_own_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    origin = Origin()
    shared = SharedCache(storage=MemoryStorage(2**20))
    with clock_at(NOW, monkeypatch):
        async with open_gateway(PerUser(shared_cache=shared), origin) as gateway:
            for ask in (
                Ask(FRESH, fields=("User: a",)),
                Ask(FRESH, fields=("User: b",)),
                Ask(says(), method="POST", fields=("User: a",)),
                Ask(OTHER, fields=("User: a",), body=b"two"),
                Ask(None, fields=("User: b",)),
            ):
                await check(ask, gateway, origin)

"""A scenario with a cache: what is stored where, who asks for it how, and what the origin does.

It prints as the code that makes it, as `Scenario` does.
"""

from __future__ import annotations

from typing import Literal

import attrs

from ._making import Choose, _link
from ._network import PLAIN, Link
from ._repr import Value
from ._scenario import Http2, Stop

#: A range of bytes: first and last, either may be left out as in the field.
Range = tuple[int | None, int | None]


@attrs.frozen(repr=False)
class Deed(Value):
    """What the origin does with one request for a resource.

    Attributes:
      status: Of the response; a condition that holds makes 304 of 200.
      wait: Seconds before the response.
      cut: Bytes of the response behind which the origin leaves, None for all.
      pause: Seconds between the halves of the content.
      reset: Whether it leaves by a reset.
    """

    status: int = 200
    wait: float = 0.0
    cut: int | None = None
    pause: float = 0.0
    reset: bool = False


@attrs.frozen(repr=False)
class Resource(Value):
    """Something that the origin has.

    Attributes:
      blocks: How long it is, in pieces of some 20 bytes.
      chunked: How its content is framed.
      max_age: Of Cache-Control, None for none.
      s_maxage: Of Cache-Control, None for none.
      behind: stale-while-revalidate, None for none.
      error: stale-if-error, None for none.
      flags: Other directives.
      age: Of the field Age, 0 for none.
      etag: Its validator: ``"strong"``, ``"weak"`` or none.
      modified: Whether Last-Modified is said.
      vary: Whether it has variants by the field X-Kind; ``"*"`` for by anything.
      changes: Seconds after which it is another one, 0 for never.
      ranges: Whether the origin honours a range.
      deeds: What happens to the first requests for it; nothing happens to later ones.
    """

    blocks: int = 4
    chunked: bool = False
    max_age: int | None = None
    s_maxage: int | None = None
    behind: int | None = None
    error: int | None = None
    flags: tuple[
        Literal["no-store", "no-cache", "private", "must-revalidate", "proxy-revalidate"], ...
    ] = ()
    age: int = 0
    etag: Literal["strong", "weak"] | None = None
    modified: bool = False
    vary: Literal["x-kind", "*"] | None = None
    changes: float = 0.0
    ranges: bool = False
    deeds: tuple[Deed, ...] = ()


@attrs.frozen(repr=False)
class Ask(Value):
    """A request of a client.

    Attributes:
      of: The number of the resource.
      method: GET, HEAD, or what changes the resource.
      status: What the origin says to a method that changes the resource.
      kind: The field X-Kind.
      control: A directive of Cache-Control.
      seconds: Its value, where it has one.
      ranges: The ranges that it asks for.
      condition: A condition, by what the client had last: ``"etag"``, ``"star"``, ``"since"``,
        ``"match"`` or ``"if-range"``.
      wait: Seconds before it asks.
      slow: Seconds between the head and the content of the answer.
      quits: Seconds after which the client goes away whatever happens.
    """

    of: int = 0
    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE"] = "GET"
    status: int = 204
    kind: str = ""
    control: (
        Literal["no-cache", "no-store", "only-if-cached", "max-age", "max-stale", "min-fresh"]
        | None
    ) = None
    seconds: int = 0
    ranges: tuple[Range, ...] = ()
    condition: Literal["etag", "star", "since", "match", "if-range"] | None = None
    wait: float = 0.0
    slow: float = 0.0
    quits: float | None = None


@attrs.frozen(repr=False)
class CacheClient(Value):
    """A client; it connects again where its connection ends.

    Attributes:
      asks: What it asks, one after another.
      start: Seconds before it connects.
      link: Its first way to the proxy; later ones are plain.
      http2: How it speaks HTTP/2, None for HTTP/1. It then asks without waiting for answers, on one
        connection, and ``Ask.slow`` does not count.
    """

    asks: tuple[Ask, ...] = ()
    start: float = 0.0
    link: Link = PLAIN
    http2: Http2 | None = None


@attrs.frozen(repr=False)
class CacheScenario(Value):
    """All that happens in a run with a cache.

    Attributes:
      clients: Who asks.
      resources: What the origin has.
      store: Bytes that the store takes.
      longest: The most content that is stored, None for what the store takes.
      lock_age: Seconds for which one request may fill for others, None for no lock.
      patience: Seconds that a request waits for such a lock.
      on_error: Seconds for which stale responses are served where the origin is out of reach.
      origin_links: The ways to the origin, by the order of connections.
      connects: What comes of attempts to connect, in order.
      stop: How the server stops, or None.
      fail_operation: The number of the stream operation of the proxy that fails; 0 for none.
      seed: Of the order of tasks.
    """

    clients: tuple[CacheClient, ...] = ()
    resources: tuple[Resource, ...] = (Resource(),)
    store: int = 65536
    longest: int | None = None
    lock_age: float | None = 3.0
    patience: float = 5.0
    on_error: float = 0.0
    origin_links: tuple[Link, ...] = ()
    connects: tuple[Literal["ok", "refused", "hang"], ...] = ()
    stop: Stop | None = None
    fail_operation: int = 0
    seed: int = 0

    def makes_sense(self) -> bool:
        """Tell whether all that is asked for is there."""
        asks = [ask for client in self.clients for ask in client.asks]
        return all(ask.of < len(self.resources) for ask in asks)

    def script(self, step: int = 0, deed: str = "cancel") -> str:
        """Return a program that runs this scenario and checks it; see `run_cached`."""
        more = f", step={step}, deed={deed!r}" if step else ""
        return f"from trioproxy.testing import *\n\ncheck_cached(run_cached({self!r}{more}))\n"


# -- making one up -------------------------------------------------------------------------------


def _deed(choose: Choose) -> Deed:
    if choose((True, False)):
        return Deed()
    return Deed(
        status=choose((200, 200, 200, 404, 500, 503, 503)),
        wait=choose((0.0, 0.0, 0.1, 2.0, 30.0)),
        cut=choose((None, None, None, 0, 100, 300, 340, 700, 1000, 20000)),
        pause=choose((0.0, 0.0, 0.5, 4.0)),
        reset=choose((False, True)),
    )


def _deeds(choose: Choose) -> tuple[Deed, ...]:
    kind = choose(("calm", "calm", "odd", "odd", "odd", "down"))
    if kind == "calm":
        return ()
    if kind == "odd":
        return tuple(_deed(choose) for _ in range(choose((2, 5, 12))))
    down: Deed = choose((Deed(503), Deed(500), Deed(cut=0), Deed(cut=340)))
    before: int = choose((1, 2))
    return (Deed(),) * before + (down,) * 12


def _resource(choose: Choose) -> Resource:
    etag = choose((None, "strong", "strong", "weak"))
    return Resource(
        blocks=choose((0, 1, 4, 4, 50, 700, 4000)),
        chunked=choose((False, False, True)),
        max_age=choose((10, 10, 10, 3, 60, 0, None)),
        s_maxage=choose((None, None, None, None, 5)),
        behind=choose((None, None, 5, 30)),
        error=choose((None, None, 5, 5, 100)),
        flags=choose(
            (
                *((),) * 9,
                ("no-store",),
                ("no-cache",),
                ("private",),
                ("must-revalidate",),
                ("proxy-revalidate",),
            )
        ),
        age=choose((0, 0, 0, 4)),
        etag=etag,
        modified=choose((False, False, True)),
        vary=choose((None,) * 6 + ("x-kind",) * 5 + ("*",)),
        changes=choose((0.0, 0.0, 7.0, 1.3)),
        ranges=choose((False, True)),
        deeds=_deeds(choose),
    )


_RANGES: tuple[tuple[Range, ...], ...] = (
    ((0, 9),),
    ((5, None),),
    ((None, 7),),
    ((999999, None),),
    ((0, 3), (20, 29)),
    ((50, 60), (None, 1)),
)


def _ask(choose: Choose, resources: int) -> Ask:
    method = choose(("GET",) * 20 + ("HEAD", "HEAD", "POST", "PUT", "DELETE"))
    of = choose((0, 0, 0, *range(resources)))
    wait = choose((0.0,) * 5 + (0.2, 1.0, 1.0, 4.0, 11.0, 50.0))
    if method not in ("GET", "HEAD"):
        return Ask(of, method, status=choose((204, 200, 303, 500)), wait=wait)
    control = choose(
        (None,) * 16
        + ("no-cache", "no-store", "only-if-cached", "max-age", "max-stale", "min-fresh")
    )
    return Ask(
        of,
        method,
        kind=choose(("", "", "a", "b")),
        control=control,
        seconds=choose((0, 1, 5, 100)) if control in ("max-age", "max-stale", "min-fresh") else 0,
        ranges=choose(((), (), (), *_RANGES)),
        condition=choose((None,) * 12 + ("etag", "etag", "star", "since", "match", "if-range")),
        wait=wait,
        slow=choose((0.0,) * 6 + (0.5, 3.0)),
        quits=choose((None,) * 9 + (0.0, 0.05, 1.0)),
    )


def make_cache_scenario(choose: Choose, seed: int = 0) -> CacheScenario:
    """Make up a scenario with a cache.

    Args:
      choose: Chooses one of some values, the first of which is the simplest.
      seed: Of the order of tasks.
    """
    resources = tuple(_resource(choose) for _ in range(choose((1, 1, 2, 3))))
    clients = tuple(
        CacheClient(
            tuple(_ask(choose, len(resources)) for _ in range(choose((1, 3, 5, 8)))),
            start=choose((0.0, 0.0, 0.0, 0.1, 3.0)),
            link=_link(choose) if choose((False, False, True)) else PLAIN,
            http2=choose((None, None, Http2(), Http2(window=700), Http2(stall=3.0))),
        )
        for _ in range(choose((1, 2, 3, 5)))
    )
    calm = choose((True, True, False))
    return CacheScenario(
        clients,
        resources,
        store=choose((65536, 1 << 20, 4000, 16384)),
        longest=choose((None, None, None, 1000)),
        lock_age=choose((3.0, 3.0, 0.3, None)),
        patience=choose((5.0, 5.0, 0.5)),
        on_error=choose((0.0, 0.0, 1000.0)),
        origin_links=() if calm else tuple(_link(choose) for _ in range(choose((1, 2, 4)))),
        connects=()
        if calm
        else tuple(choose(("ok", "ok", "refused", "hang")) for _ in range(choose((0, 1, 3)))),
        stop=Stop(choose((0.0, 0.5, 6.0, 30.0)), choose(("drain", "cancel")))
        if choose((False,) * 9 + (True,))
        else None,
        fail_operation=choose((0,) * 9 + (3, 8, 20)),
        seed=seed,
    )

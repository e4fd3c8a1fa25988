"""A scenario: everything that clients, origins, links and filters will do, as one frozen value.

It prints as the code that makes it, so that a failing one is its own bug report.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import attrs

from ._network import PLAIN, Fault, Link, Path
from ._repr import Value

T = TypeVar("T")


#: Bytes in a block.
BLOCK = 16
#: What a party of a connection speaks.
Speaks = Literal["h1", "h1-tls", "h2c", "h2-tls", "stranger"]


@attrs.frozen(repr=False)
class Change(Value):
    """New SETTINGS of a party.

    Attributes:
      frames: How many frames it has received then.
      window: The initial window of streams, None to leave it.
      streams: The streams that it allows, None to leave that.
    """

    frames: int = 0
    window: int | None = None
    streams: int | None = None


@attrs.frozen(repr=False)
class GoAway(Value):
    """A party's GOAWAY.

    Attributes:
      frames: How many frames it has received then.
      code: The error code.
      last: The last stream that it takes, None for all that it has seen.
      leaves: Whether it goes at once, and not when its streams are over.
    """

    frames: int = 0
    code: int = 0
    last: int | None = None
    leaves: bool = False


@attrs.frozen(repr=False)
class Http2(Value):
    """How a party behaves on an HTTP/2 connection.

    Attributes:
      window: The initial window that it gives streams.
      more: What it adds to the connection's window in the beginning.
      streams: The streams that it allows; an origin's matter.
      pad: Bytes of padding in each DATA frame, where the window has room.
      piece: Bytes of content in a DATA frame.
      stall: Seconds in which it gives no credit.
      stalls: What gets none then: ``"all"``, or only a ``"stream"`` or the ``"connection"``.
      deaf: Whether PING is left unanswered.
      rude: Whether SETTINGS are left without an acknowledgement.
      greedy: Whether a client opens more streams than it may.
      connect: Whether an origin takes extended CONNECT.
      changes: Its new SETTINGS, in order.
      goaway: Its GOAWAY, or None.
    """

    window: int = 65535
    more: int = 0
    streams: int | None = None
    pad: int = 0
    piece: int = 16384
    stall: float = 0.0
    stalls: Literal["all", "stream", "connection"] = "all"
    deaf: bool = False
    rude: bool = False
    greedy: bool = False
    connect: bool = False
    changes: tuple[Change, ...] = ()
    goaway: GoAway | None = None


@attrs.frozen(repr=False)
class Reset(Value):
    """A client's RST_STREAM.

    Attributes:
      frames: How many frames of the stream it has received then.
      wait: Seconds behind that.
      code: The error code.
    """

    frames: int = 0
    wait: float = 0.0
    code: int = 8


@attrs.frozen(repr=False)
class Answer(Value):
    """What the origin does with a request.

    Attributes:
      status: Of the response.
      blocks: Blocks of 16 bytes in its body.
      framing: ``"length"``, ``"chunked"`` or ``"close"``.
      trailer: Whether a trailer field follows, where it is chunked.
      infos: Interim statuses before it.
      early: Whether it answers before it reads the request's body.
      wait: Seconds before it answers.
      cut: The number of bytes of the response after which the origin leaves; None for all. In
        HTTP/2 bytes of content: 0 is before the head, 1 right behind it.
      leave: How it leaves, ``"close"``, ``"reset"``, or (over TLS) ``"truncate"``, a close without
        close_notify, or ``"hush"``, close_notify and silence.
      after: What it does behind the response: ``"keep"`` the connection, ``"close"`` with a word,
        ``"drop"`` it in silence, send an ``"extra"`` response.
      after_wait: Seconds before that.
      code: In HTTP/2 it does not leave, but resets the stream with this error code, behind ``cut``
        bytes or behind all.
      wrong: In HTTP/2 the response is malformed: ``"status"``, ``"name"``, ``"field"``,
        ``"length"``, ``"interim"`` or ``"trailers"``.
    """

    status: int = 200
    blocks: int = 1
    framing: Literal["length", "chunked", "close"] = "length"
    trailer: bool = False
    infos: tuple[int, ...] = ()
    early: bool = False
    wait: float = 0.0
    cut: int | None = None
    leave: Literal["close", "reset", "truncate", "hush"] = "close"
    after: Literal["keep", "close", "drop", "extra"] = "keep"
    after_wait: float = 0.0
    code: int | None = None
    wrong: Literal["status", "name", "field", "length", "interim", "trailers"] | None = None


@attrs.frozen(repr=False)
class Request(Value):
    """What a client asks, and what the origin will answer.

    Attributes:
      method: Of the request.
      blocks: Blocks of 16 bytes in its body.
      chunked: How the body is framed.
      expect: Whether the client waits a second for 100 Continue.
      old: Whether it speaks HTTP/1.0.
      upgrade: Whether it offers to switch protocols: its body is then sent through the tunnel that
        an `Answer` of status 101 opens, or at once where it is ``chunked``. HTTP/2 has an extended
        CONNECT for it, and so status 200.
      protocol: What it offers to switch to; HTTP/2 has ``"websocket"`` alone.
      wait: Seconds before it asks.
      stops: The number of bytes of the body after which the client stalls until it gives up.
      answers: What the origin does at the first attempt, the second, and so on; the last
        holds for all that follow. Nothing is `Answer()`.
      reset: In HTTP/2 the client's RST_STREAM, or None.
      wrong: In HTTP/2 the request is malformed: ``"name"``, ``"field"``, ``"path"``, or
        ``"length"`` where it has content.
      urgency: How urgent it says that it is (RFC 9218), None to say nothing.
      trailer: Whether a trailer field follows its content, where that is chunked.
    """

    method: str = "GET"
    blocks: int = 0
    chunked: bool = False
    expect: bool = False
    old: bool = False
    upgrade: bool = False
    protocol: Literal["echo", "websocket"] = "echo"
    wait: float = 0.0
    stops: int | None = None
    answers: tuple[Answer, ...] = ()
    reset: Reset | None = None
    wrong: Literal["name", "field", "path", "length"] | None = None
    urgency: int | None = None
    trailer: bool = False


@attrs.frozen(repr=False)
class Client(Value):
    """A client; where its connection ends too early, it makes a new one for the rest.

    Attributes:
      requests: What it asks, one after another.
      start: Seconds before it connects.
      pipelined: Whether it sends all without waiting for answers; in HTTP/2 all at once.
      fin: Whether it ends its output behind the last, where it is pipelined, and then reads.
      slow: Seconds before it reads each answer.
      leaves: Seconds after connecting when it leaves whatever happens; None for never.
      end: How it leaves in the end, ``"close"``, ``"half-close"``, ``"reset"``, or (over TLS)
        ``"truncate"``, a close without close_notify, or ``"hush"``, close_notify and silence.
      link: Its way to the proxy.
      http2: How it speaks HTTP/2, None for HTTP/1.
    """

    requests: tuple[Request, ...] = ()
    start: float = 0.0
    pipelined: bool = False
    fin: bool = False
    slow: float = 0.0
    leaves: float | None = None
    end: Literal["close", "half-close", "reset", "truncate", "hush"] = "close"
    link: Link = PLAIN
    http2: Http2 | None = None


@attrs.frozen(repr=False)
class Filter(Value):
    """What a callback does, besides writing down that it was called.

    Attributes:
      name: Of the callback.
      do: ``"pause"``, ``"refuse"`` (with 403), ``"fail"``, ``"grow"`` (a body filter adds bytes),
        ``"answer"``, ``"keep"`` (answers, and keeps a connection whose request is unread),
        ``"read"`` (reads the body, then answers), ``"peek"``, ``"retry"``, ``"stay"`` (a client's
        half-close does not count).
      seconds: Of a pause.
    """

    name: str = "request_filter"
    do: Literal[
        "pause", "refuse", "fail", "grow", "answer", "keep", "read", "peek", "retry", "stay"
    ] = "pause"
    seconds: float = 0.1


@attrs.frozen(repr=False)
class Stop(Value):
    """How the server stops before its time.

    Attributes:
      at: Seconds after the start.
      kind: ``"drain"`` or ``"cancel"``.
    """

    at: float = 0.0
    kind: Literal["drain", "cancel"] = "drain"


@attrs.frozen(repr=False)
class Name(Value):
    """A row of the table in which the proxy looks names up.

    Attributes:
      host: The name.
      address: The origin's address, None where the look-up fails.
      speaks: ``"h1"``, ``"h1-tls"``, ``"h2c"``, ``"h2-tls"``, or ``"stranger"`` for TLS with
        another's certificate.
    """

    host: str
    address: str | None = None
    speaks: Speaks = "h1"


#: The table where a scenario says nothing.
NAMES = (Name("origin.test", "192.0.2.20"),)


@attrs.frozen(repr=False)
class Scenario(Value):
    """All that happens in a run.

    Attributes:
      clients: The connections of clients.
      origin_links: The ways to the origin, by the order of connections; later ones are faultless.
      connects: What comes of attempts to connect, in order: ``"ok"``, ``"refused"``, ``"hang"``.
      names: Where the origin is found: an attempt takes the next name when one could not be
        connected to.
      filters: What callbacks do.
      per_peer: Connections to the origin at once, None for no limit.
      pool_size: Idle connections kept.
      stop: How the server stops, or None.
      fail_operation: The number of the stream operation of the proxy that fails; 0 for none.
      seed: Of the order of tasks.
      secure: Whether clients come over TLS.
      origin_http2: How the origin speaks HTTP/2, by the order of connections.
      most_streams: Streams that the proxy allows a client.
      shared: Requests that a connection to the origin may carry at once.
      ping: Seconds between two PINGs to the origin, None for none.
    """

    clients: tuple[Client, ...] = ()
    origin_links: tuple[Link, ...] = ()
    connects: tuple[Literal["ok", "refused", "hang"], ...] = ()
    names: tuple[Name, ...] = NAMES
    filters: tuple[Filter, ...] = ()
    per_peer: int | None = None
    pool_size: int = 128
    stop: Stop | None = None
    fail_operation: int = 0
    seed: int = 0
    secure: bool = False
    origin_http2: tuple[Http2, ...] = ()
    most_streams: int = 100
    shared: int = 100
    ping: float | None = None

    def requests(self) -> list[tuple[int, int, Request]]:
        """Return all requests with their numbers and those of their clients."""
        found: list[tuple[int, int, Request]] = []
        for client, each in enumerate(self.clients):
            for request in each.requests:
                found.append((len(found), client, request))
        return found

    def script(self, step: int = 0, deed: str = "cancel") -> str:
        """Return a program that runs this scenario and checks it; see `run_scenario`."""
        more = f", step={step}, deed={deed!r}" if step else ""
        return (
            f"from trioproxy.testing import *\n\ncheck_invariants(run_scenario({self!r}{more}))\n"
        )


# -- making them up ------------------------------------------------------------------------------

#: Chooses one of some values; the first is the simplest.
Choose = Callable[[Sequence[Any]], Any]

SIZES = (0, 1, 3, 64, 5000, 40000)


def _fault(choose: Choose) -> Fault | None:
    kind = choose((None, None, None, "reset", "fin", "stall", "silence"))
    if kind is None:
        return None
    seconds = choose((0.5, 3.0, 30.0)) if kind == "stall" else 0.0
    return Fault(kind, choose((0, 1, 20, 60, 150, 300, 1000, 70000)), seconds)


def _path(choose: Choose, *, faults: bool) -> Path:
    return Path(
        latency=choose((0.0, 0.0, 0.001, 0.05)),
        pieces=choose(((), (), (1, 1, 1, 200), (7,), (3, 1000), (40, 4096))),
        capacity=choose((65536, 65536, 1024, 4096)),
        fault=_fault(choose) if faults else None,
    )


def _link(choose: Choose) -> Link:
    kind = choose(("plain", "plain", "odd", "out", "back"))
    if kind == "plain":
        return PLAIN
    return Link(
        _path(choose, faults=kind == "out"),
        _path(choose, faults=kind == "back"),
    )


def _answer(choose: Choose) -> Answer:
    if choose((True, False, True)):
        after = choose(("keep", "keep", "keep", "drop", "extra"))
        return Answer(blocks=choose(SIZES), after=after)
    framing = choose(("length", "chunked", "close"))
    status = choose((200, 404, 500, 204, 304))
    return Answer(
        status=status,
        blocks=0 if status in (204, 304) else choose(SIZES),
        framing="length" if status in (204, 304) else framing,
        trailer=framing == "chunked" and choose((False, True)),
        infos=choose(((), (), (103,), (103, 103))),
        early=choose((False, False, True)),
        wait=choose((0.0, 0.0, 0.1, 3.0, 30.0)),
        cut=choose((None, None, None, 0, 10, 60, 150, 400, 3000)),
        leave=choose(("close", "reset")),
        after=choose(("keep", "keep", "close", "drop", "extra")),
        after_wait=choose((0.0, 0.01, 1.0)),
    )


def _tunnel(choose: Choose) -> Request:
    return Request(
        upgrade=True,
        blocks=choose(SIZES),
        chunked=choose((False, True)),
        answers=(
            Answer(
                choose((101, 101, 200)),
                blocks=choose(SIZES),
                framing="close",
                wait=choose((0.0, 0.1)),
                cut=choose((None, None, None, 0, 60, 150, 400)),
                leave=choose(("close", "reset")),
            ),
        ),
    )


def _request(choose: Choose) -> Request:
    method = choose(("GET", "POST", "PUT", "HEAD", "DELETE"))
    size = choose(SIZES) if method in ("POST", "PUT") else 0
    return Request(
        method=method,
        blocks=size,
        chunked=bool(size) and choose((False, True)),
        expect=bool(size) and choose((False, False, False, True)),
        old=choose((False,) * 7 + (True,)),
        wait=choose((0.0, 0.0, 0.0, 0.02, 1.5, 25.0)),
        stops=choose((None,) * 7 + (10,)) if size else None,
        answers=tuple(_answer(choose) for _ in range(choose((1, 1, 2)))),
    )


def _client(choose: Choose) -> Client:
    pipelined = choose((False, False, True))
    requests = tuple(_request(choose) for _ in range(choose((1, 2, 3, 5))))
    if choose((False,) * 7 + (True,)):
        requests = (*requests[1:], _tunnel(choose))  # what follows it would be in the tunnel
    return Client(
        requests=requests,
        start=choose((0.0, 0.0, 0.01, 2.0)),
        pipelined=pipelined,
        fin=pipelined and choose((False, True)),
        slow=choose((0.0, 0.0, 0.0, 0.3)),
        leaves=choose((None,) * 16 + (0.0, 0.05, 0.2, 2.0)),
        end=choose(("close", "close", "half-close", "reset")),
        link=_link(choose),
    )


ASYNC_FILTERS = (
    "request_filter",
    "early_request_filter",
    "proxy_upstream_filter",
    "upstream_peer",
    "connected_to_upstream",
    "upstream_request_filter",
    "request_body_filter",
    "upstream_response_filter",
    "response_filter",
    "response_body_filter",
    "response_trailer_filter",
    "fail_to_proxy",
    "logging",
)


def _filter(choose: Choose) -> Filter:
    do = choose(
        (
            *("pause", "grow", "retry", "answer", "keep", "read", "peek"),
            *("refuse", "fail", "pause", "stay", "retry"),
        )
    )
    if do == "grow":
        return Filter(choose(("request_body_filter", "response_body_filter")), do)
    if do == "retry":
        return Filter(choose(("fail_to_connect", "error_while_proxy")), do)
    if do in ("answer", "keep", "read", "peek", "stay"):
        return Filter("request_filter", do)
    name = choose(ASYNC_FILTERS)
    return Filter(name, do, choose((0.01, 0.5)) if do == "pause" else 0.1)


_SECOND = Name("second.test", "192.0.2.21")
_TABLES = (
    (*NAMES, _SECOND),
    (Name("origin.test"), _SECOND),
    (Name("origin.test"),),
)


def make_scenario(choose: Choose, seed: int = 0) -> Scenario:
    """Make a scenario up.

    Args:
      choose: Chooses among values: ``random.Random(n).choice``, or a draw of Hypothesis's.
      seed: Of the order of tasks.
    """
    stop = choose(("none",) * 14 + ("drain", "cancel"))
    plain = Scenario(
        clients=tuple(_client(choose) for _ in range(choose((1, 1, 2, 3)))),
        origin_links=tuple(_link(choose) for _ in range(choose((0, 1, 2, 3)))),
        connects=tuple(
            choose(("ok", "ok", "refused", "hang")) for _ in range(choose((0, 0, 1, 3)))
        ),
        filters=tuple(_filter(choose) for _ in range(choose((0, 0, 1, 2)))),
        per_peer=choose((None, None, 1, 2)),
        pool_size=choose((128, 128, 1, 0)),
        stop=None if stop == "none" else Stop(choose((0.0, 0.05, 1.0, 4.0)), stop),
        fail_operation=choose((0,) * 12 + (1, 2, 4, 7, 12, 20)),
        seed=seed,
        # Drawn last, so that a seed means what it meant before there were names.
        names=choose((NAMES,) * 6 + _TABLES),
    )
    return _with_versions(choose, plain)


# -- HTTP/2 and TLS ------------------------------------------------------------------------------

_VERSIONS = ("h1", "h1-tls", "h2c", "h2-tls", "h2c", "h2-tls")
_WRONG = ("status", "name", "field", "length", "interim", "trailers")
#: Sizes of windows, and how much may have to pass through them, lest a run takes too long.
_WINDOWS = ((65535, math.inf), (1 << 20, math.inf), (20000, math.inf), (1000, 3e5), (7, 2e3))


def _change(choose: Choose, most: int) -> Change:
    windows = (65535, 200000, 0, *(size for size, passes in _WINDOWS if passes >= most))
    return Change(
        choose((1, 2, 4, 8, 20)),
        choose((None, None, *windows)),
        choose((None, 1, 3, 0)),
    )


def _http2(choose: Choose, most: int, *, origin: bool) -> Http2:
    goaway = None
    if choose((False, False, True)):
        goaway = GoAway(
            choose((3, 4, 5, 6, 8, 13)),
            choose((0, 0, 2, 11, 13)),
            choose((None, 0, 1, 3, 5)),
            choose((False, False, True)),
        )
    return Http2(
        window=choose([size for size, passes in _WINDOWS if passes >= most]),
        more=choose((0, 0, 1 << 20)),
        streams=choose((None, 100, 1, 2)) if origin else None,
        pad=choose((0, 0, 1, 100, 255)),
        piece=choose((16384, 16384, 1000, 1) if most < 2000 else (16384, 16384, 1000)),
        stall=choose((0.0,) * 6 + (2.0, 15.0, math.inf)),
        stalls=choose(("all", "stream", "connection")),
        deaf=choose((False,) * 7 + (True,)),
        rude=choose((False,) * 11 + (True,)),
        connect=origin and choose((True, True, False)),
        greedy=not origin and choose((False, False, False, True)),
        changes=tuple(_change(choose, most) for _ in range(choose((0, 0, 0, 1, 2)))),
        goaway=goaway,
    )


def _reset(choose: Choose) -> Reset:
    return Reset(choose((0, 0, 1, 2, 4)), choose((0.0, 0.0, 0.02, 1.0)), choose((8, 0, 2, 7, 99)))


def _later(choose: Choose, link: Link) -> Link:
    """Let the faults of a link come behind some part of the handshake, or all of it."""
    more = choose((0, 0, 500, 1500, 2500, 4000))

    def moved(path: Path) -> Path:
        fault = path.fault
        if fault is None:
            return path
        return attrs.evolve(path, fault=attrs.evolve(fault, at=fault.at + more))

    return Link(moved(link.out), moved(link.back))


def _over_http2(choose: Choose, answer: Answer) -> Answer:
    code = answer.code
    if answer.cut is not None:
        code = choose((None, 7, 7, 8, 0, 2, 13, 11, 255))
    elif choose((False,) * 9 + (True,)):
        code = choose((0, 0, 8))
    wrong = choose((None,) * 20 + _WRONG)
    return attrs.evolve(answer, code=code, wrong=wrong)


def _over_tls(choose: Choose, answer: Answer) -> Answer:
    return attrs.evolve(answer, leave=choose((answer.leave, answer.leave, "truncate", "hush")))


def _versioned(choose: Choose, request: Request, down: str, up: str) -> Request:
    if request.upgrade and (down.startswith("h2") or up.startswith("h2") or choose((False, True))):
        request = attrs.evolve(request, protocol="websocket")
    answers = request.answers
    if up.startswith("h2"):
        answers = tuple(_over_http2(choose, each) for each in answers or (Answer(),))
    if up.endswith("tls"):
        answers = tuple(_over_tls(choose, each) for each in answers)
    request = attrs.evolve(request, answers=answers)
    if not down.startswith("h2"):
        return request
    wrong = choose((None,) * 28 + ("name", "field", "path", "length"))
    return attrs.evolve(
        request,
        reset=_reset(choose) if choose((False,) * 6 + (True,)) else None,
        wrong=None if request.upgrade or (wrong == "length" and not request.blocks) else wrong,
        urgency=choose((None, None, 0, 5, 7)),
        trailer=request.chunked and choose((False, True)),
    )


def _with_versions(choose: Choose, plain: Scenario) -> Scenario:
    """Let a scenario of HTTP/1 in clear text take place in other versions."""
    down, up = choose(_VERSIONS), choose(_VERSIONS)
    if (down, up) == ("h1", "h1"):
        return plain
    secure = down.endswith("tls")
    sent = [request.blocks * BLOCK for _, _, request in plain.requests()]
    got = [
        max((each.blocks * BLOCK for each in request.answers), default=BLOCK)
        for _, _, request in plain.requests()
    ]
    clients = []
    for client in plain.clients:
        speaks = down
        if down != "h1" and choose((False, False, False, True)):
            speaks = "h1-tls" if secure else "h1"  # beside the others
        most = sum(got) + sum(sent)
        clients.append(
            attrs.evolve(
                client,
                requests=tuple(_versioned(choose, each, speaks, up) for each in client.requests),
                http2=_http2(choose, most, origin=False) if speaks.startswith("h2") else None,
                end=choose((client.end, client.end, "truncate", "hush")) if secure else client.end,
                link=_later(choose, client.link) if secure else client.link,
            )
        )
    names = tuple(attrs.evolve(each, speaks=up) for each in plain.names)
    if up.endswith("tls") and choose((False,) * 9 + (True,)):
        names = (attrs.evolve(names[0], speaks="stranger"), *names[1:])
    origin_http2: tuple[Http2, ...] = ()
    if up.startswith("h2"):
        most = sum(got) + sum(sent)
        origin_http2 = tuple(_http2(choose, most, origin=True) for _ in range(choose((0, 1, 1, 2))))
    return attrs.evolve(
        plain,
        clients=tuple(clients),
        names=names,
        secure=secure,
        origin_http2=origin_http2,
        origin_links=tuple(
            _later(choose, each) if up.endswith("tls") else each for each in plain.origin_links
        ),
        most_streams=choose((100, 100, 1, 2)),
        shared=choose((100, 100, 1, 2)),
        ping=choose((None, None, 3.0)),
    )


# -- making them smaller -------------------------------------------------------------------------


#: Fields whose numbers are tried smaller; of others the default is simpler, and no other value is.
_NUMBERS = ("at", "blocks", "cut", "fail_operation", "frames")


def _simpler(thing: Any) -> Iterator[Any]:
    """Give values that are one step simpler than this one."""
    if isinstance(thing, tuple):
        for n in range(len(thing)):
            yield thing[:n] + thing[n + 1 :]
        for n, each in enumerate(thing):
            for smaller in _simpler(each):
                yield (*thing[:n], smaller, *thing[n + 1 :])
    elif attrs.has(type(thing)):
        for field in attrs.fields(type(thing)):
            mine = getattr(thing, field.name)
            if mine != field.default:
                yield attrs.evolve(thing, **{field.name: field.default})
            if type(mine) is int and field.name not in _NUMBERS:
                continue
            if field.name == "names":  # every other table is a case of its own
                if len(mine) > 1:
                    yield attrs.evolve(thing, names=mine[:1])
                continue
            for smaller in _simpler(mine):
                yield attrs.evolve(thing, **{field.name: smaller})
    elif type(thing) is int and thing > 1:
        yield from sorted({1, thing // 2, thing - 1})


def shrink(scenario: Scenario, fails: Callable[[Scenario], bool], most: int = 400) -> Scenario:
    """Return a small scenario that still fails.

    Args:
      scenario: One that fails.
      fails: Runs a scenario, and tells whether it fails.
      most: How many runs to spend.
    """
    tried: set[Scenario] = set()

    @functools.wraps(fails)
    def worth(candidate: Scenario) -> bool:
        if candidate in tried or not candidate.clients or len(tried) >= most:
            return False
        tried.add(candidate)
        return fails(candidate)

    while (better := next(filter(worth, _simpler(scenario)), None)) is not None:
        scenario = better
    return scenario

"""A scenario: everything that clients, origins, links and filters will do, as one frozen value.

It prints as the code that makes it, so that a failing one is its own bug report.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import attrs

from ._network import PLAIN, Link
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
        half-close does not count), ``"hedge"`` (a second attempt joins one that is not answered).
      seconds: Of a pause, or before the second attempt.
    """

    name: str = "request_filter"
    do: Literal[
        "pause",
        "refuse",
        "fail",
        "grow",
        "answer",
        "keep",
        "read",
        "peek",
        "retry",
        "stay",
        "hedge",
    ] = "pause"
    seconds: float = 0.1


@attrs.frozen(repr=False)
class Shadow(Value):
    """The second origin, to which requests are mirrored.

    Attributes:
      share: Which share of the requests is mirrored.
      reads: The number of bytes of a connection that it reads, None for all.
      wait: Seconds before it answers what it has read whole.
      cut: Whether it leaves in the middle of its answer.
      leaves: Seconds after connecting when it leaves whatever happens; None for never.
      refuses: Whether it cannot be connected to.
    """

    share: float = 1.0
    reads: int | None = None
    wait: float = 0.0
    cut: bool = False
    leaves: float | None = None
    refuses: bool = False


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
      shadow: Where requests are mirrored to, which no client may feel; None for nowhere.
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
    shadow: Shadow | None = None

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

"""What a run shows: of each request, what its client, the proxy object and the origin saw."""

from __future__ import annotations

from contextvars import ContextVar

import attrs

from .._config import ServerConf
from ._h2_reference import H2Peer, Stream
from ._reference import Message
from ._scenario import Answer, Request, Scenario
from ._secure import AnyEnd

#: The number of the request that asks, in the end, whether the proxy is still well.
PROBE = 999
#: Virtual seconds that a reference client waits for an answer: above any sum of our timeouts.
PATIENCE = 400.0
CONF = ServerConf(
    connect_timeout=5,
    upstream_tls_timeout=5,
    read_timeout=10,
    write_timeout=10,
    idle_timeout=30,
    header_timeout=5,
    body_timeout=10,
    upstream_idle_timeout=20,
    drain_timeout=2,
    grace=20,
    max_attempts=3,
    pool_wait_timeout=5,
    tunnel_idle_timeout=15,
    tunnel_half_close_timeout=10,
)
OWN = b"<own>"
GROWN = b"+"


#: The attempt whose callbacks run in a task: two that run side by side have a task each.
ATTEMPT: ContextVar[int] = ContextVar("attempt", default=0)


@attrs.define(eq=False)
class Call:
    """A callback that ran: body filters also say what they got and what they gave."""

    name: str
    end: bool = False
    got: bytes = b""
    gave: bytes = b""
    note: str = ""
    #: The attempt that it is of, 0 before the first one.
    attempt: int = attrs.field(factory=ATTEMPT.get)


@attrs.define(eq=False)
class Ctx:
    """One request as the proxy object saw it."""

    number: int
    calls: list[Call] = attrs.field(factory=list)
    began: float = 0.0
    ended: float = 0.0
    #: Its last callback has returned.
    over: bool = False
    #: The address of the client's connection.
    client: str | None = None


@attrs.define(eq=False)
class Asked:
    """One request as its client saw it."""

    number: int
    client: int
    request: Request
    begun: bool = False
    whole: bool = False
    interim: list[int] = attrs.field(factory=list)
    final: Message | None = None
    #: ``complete``, ``cut``, ``ended`` (before an answer), ``hang``, ``left`` (by itself) or ``""``.
    outcome: str = ""
    reset: bool = False
    #: In HTTP/2.
    stream: Stream | None = None


@attrs.define(eq=False)
class Received:
    """One request as the origin saw it."""

    number: int
    attempt: int
    connection: int
    head: Message
    answer: Answer
    #: All bytes of the response were handed to the link.
    answered: bool = False
    #: The origin refused it, without a look at it.
    refused: bool = False
    #: Whether the connection has TLS.
    secure: bool = False
    #: In HTTP/2.
    stream: Stream | None = None

    @property
    def disowned(self) -> bool:
        """Whether the origin says that it did not look at it: it may be sent again."""
        return self.refused or (self.stream is not None and self.stream.disowned)


@attrs.define(eq=False)
class OriginSide:
    """A connection as the origin saw it."""

    end: AnyEnd
    #: ``idle``, ``busy`` or ``gone``.
    state: str = "idle"
    #: In HTTP/2.
    peer: H2Peer | None = None


@attrs.define(eq=False)
class Observed:
    """All that a run showed."""

    scenario: Scenario
    #: The step before which the deed was done, 0 for none.
    step: int = 0
    deed: str = "cancel"
    trace: list[str] = attrs.field(factory=list)
    asked: dict[int, Asked] = attrs.field(factory=dict)
    contexts: list[Ctx] = attrs.field(factory=list)
    received: list[Received] = attrs.field(factory=list)
    #: What was found wrong while it ran.
    problems: list[str] = attrs.field(factory=list)
    #: Sessions of one connection that lived at once, where they were many.
    alive: list[tuple[int, ...]] = attrs.field(factory=list)
    steps: int = 0
    peak: int = 0
    operations: int = 0
    #: Something was done to the run from outside; and whether it was a stop of the server.
    disturbed: bool = False
    stopped: bool = False
    #: An answer that nobody asked for crossed a request on its way: nobody can tell them apart.
    crossed: bool = False

"""Exchanges by chance, the same over every pairing: what HTTP/1 on both sides does is the measure."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import H1, H2C, Exchange, Pairing, open_matrix
from tests._support.recording import Ctx, CutError, Message, Recorder, raises
from trioproxy import BodyChunk, HttpPeer, ProxyError, Session

PIECES = (b"a", b"bc", b"d" * 5000, b"e" * 20000)
PHASES = (
    "early_request_filter",
    "request_filter",
    "upstream_peer",
    "upstream_request_filter",
    "request_body_filter",
    "upstream_response_filter",
    "response_filter",
    "upstream_response_body_filter",
    "response_body_filter",
    "response_trailer_filter",
)


@attrs.frozen
class Body:
    """A message's content: None for none, how it is framed, and what follows it."""

    pieces: tuple[bytes, ...] | None
    length: bool
    trailers: bool

    @property
    def whole(self) -> bytes:
        return b"".join(self.pieces or ())

    def fields(self) -> list[tuple[str, str]]:
        if self.pieces is None or not self.length or self.trailers:
            return []
        return [("content-length", str(len(self.whole)))]


@attrs.frozen
class Answer:
    """What an origin does with a request."""

    status: int
    body: Body
    infos: int
    #: Whether it answers before it has read the request's content.
    early: bool
    #: After how many pieces it breaks off: -1 before its head, None for never.
    cut: int | None
    #: Whether that is a long silence.
    silent: bool


@attrs.frozen
class Scenario:
    """One exchange, and the attempts that it may take."""

    method: str
    body: Body
    #: After how many pieces the client leaves; None for never.
    leaves: int | None
    answers: tuple[Answer, ...]
    #: The callback that raises, if any.
    fails: str | None
    retry: bool
    rewrite: bool


def bodies(*, none: bool) -> st.SearchStrategy[Body]:
    pieces = st.lists(st.sampled_from(PIECES), max_size=3).map(tuple)
    choice: st.SearchStrategy[Any] = st.one_of(st.none(), pieces) if none else pieces
    return st.builds(Body, choice, st.booleans(), st.booleans())


def rarely(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.none(), st.none(), strategy)


ANSWERS = st.builds(
    Answer,
    st.sampled_from([200, 200, 204, 304, 404, 500]),
    bodies(none=False),
    st.integers(0, 2),
    st.sampled_from([False, False, False, True]),
    rarely(st.integers(-1, 2)),
    st.booleans(),
)
SCENARIOS = st.builds(
    Scenario,
    st.sampled_from(["GET", "POST", "HEAD"]),
    bodies(none=True),
    rarely(st.integers(0, 2)),
    st.lists(ANSWERS, min_size=1, max_size=2).map(tuple),
    rarely(st.sampled_from(PHASES)),
    st.booleans(),
    st.booleans(),
)


def sensible(scenario: Scenario) -> Scenario:
    """Return the scenario without what only timing would decide."""
    pieces = scenario.body.pieces
    leaves = scenario.leaves if pieces else None
    if leaves is not None and pieces is not None:
        leaves = min(leaves, len(pieces) - 1)  # before the request is whole
    answers = scenario.answers
    if leaves is not None:
        answers = tuple([attrs.evolve(each, early=False) for each in answers])
    answers = tuple([truly_cut(each) for each in answers])
    return attrs.evolve(scenario, leaves=leaves, answers=answers)


def truly_cut(answer: Answer) -> Answer:
    """Return the answer so that what is cut lacks some of its content, not only its end."""
    pieces = answer.body.pieces or ()
    if answer.cut is None or answer.cut < len(pieces):
        return answer
    return attrs.evolve(answer, cut=len(pieces) - 1 if pieces else -1)


async def send_body(exchange: Exchange, body: Body, upto: int | None) -> None:
    """Send content piece by piece, each read by itself; stop early if told to."""
    pieces = body.pieces or ()
    for number, piece in enumerate(pieces):
        if upto is not None and number >= upto:
            return
        last = number == len(pieces) - 1 and not body.trailers
        await exchange.send_data(piece, end=last and upto is None)
        await wait_all_tasks_blocked()
    if upto is None and body.trailers:
        await exchange.send_trailers([("x-sum", "1")])
    elif upto is None and not pieces:
        await exchange.send_data(b"", end=True)


@attrs.define
class Outcome:
    """What was seen of an exchange; what may differ by nature is left out."""

    #: Callbacks by direction, content joined.
    upwards: list[str]
    downwards: list[str]
    rest: list[str]
    status: int
    #: The client's response if it was whole.
    response: tuple[Any, ...] | None
    #: What the origin got whole.
    requests: list[tuple[Any, ...]]


UPWARDS = ("upstream_request_filter", "request_body_filter")
DOWNWARDS = (
    "upstream_response_filter",
    "response_filter",
    "upstream_response_body_filter",
    "response_body_filter",
    "upstream_response_trailer_filter",
    "response_trailer_filter",
)


def directed(recorder: Recorder, names: tuple[str, ...]) -> list[str]:
    """Return the calls of one direction; pieces of content that follow each other are one."""
    calls: list[str] = []
    content: dict[str, tuple[bytes, bool]] = {}

    def flush() -> None:
        for name, (data, end) in content.items():
            # What was cut may have been seen in part.
            calls.append(f"{name}({len(data)}, True)" if end else f"{name}(cut)")
        content.clear()

    for call in recorder.calls:
        if call.name not in names:
            continue
        if call.name.endswith("body_filter"):
            data, end = content.get(call.name, (b"", False))
            content[call.name] = (
                data + (call.args["data"] or b""),
                end or call.args["end_of_stream"],
            )
        else:
            flush()
            calls.append(call.shown)
    flush()
    return calls


def summary(message: Message) -> tuple[Any, ...]:
    """Return what is the same whatever carries a message."""
    length = message.get("content-length")
    if not message.body:
        length = None  # some framing says 0 where another one says nothing
    return (
        length,
        message.body,
        [(name.lower(), value) for name, value in message.trailers],
    )


async def run(scenario: Scenario, pairing: Pairing) -> Outcome:
    """Run a scenario over a pairing."""
    requests: list[tuple[Any, ...]] = []
    attempt = 0

    async def origin(exchange: Exchange) -> None:
        nonlocal attempt
        answer = scenario.answers[min(attempt, len(scenario.answers) - 1)]
        attempt += 1
        head = await exchange.head()
        if not answer.early:
            message = await exchange.message()
            requests.append((message.start.rpartition(b" ")[0], *summary(message)))
        await wait_all_tasks_blocked()
        if answer.cut == -1:
            await leave(exchange, answer)
            return
        for _ in range(answer.infos):
            await exchange.send_head(103, [("link", "</a>")])
            await wait_all_tasks_blocked()
        bodiless = answer.status in (204, 304) or head.start.startswith(b"HEAD ")
        await exchange.send_head(
            answer.status, [] if bodiless else answer.body.fields(), end=bodiless
        )
        await wait_all_tasks_blocked()
        if not bodiless:
            await send_body(exchange, answer.body, answer.cut)
            if answer.cut is not None:
                await leave(exchange, answer)

    async def leave(exchange: Exchange, answer: Answer) -> None:
        if answer.silent:
            await exchange.gone()
        else:
            await wait_all_tasks_blocked()
            exchange.close()

    recorder = Recorder(hooks=hooks(scenario))
    status = 0
    response: tuple[Any, ...] | None = None
    async with open_matrix(recorder, origin, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        none = scenario.body.pieces is None
        exchange = await client.open(scenario.method, fields=scenario.body.fields(), end=none)
        async with trio.open_nursery() as nursery:

            async def upload() -> None:
                with contextlib.suppress(CutError):
                    if not none:
                        await send_body(exchange, scenario.body, scenario.leaves)
                    if scenario.leaves is not None:
                        await wait_all_tasks_blocked()
                        await exchange.reset()

            nursery.start_soon(upload)
            try:
                message = await exchange.message()
                status, response = message.status, summary(message)
            except CutError as exc:
                status = 0 if exc.message is None else exc.message.status
        await gateway.sessions_ended()
        await wait_all_tasks_blocked()
    if scenario.leaves is not None:
        status, response = -1, None
    rest = [
        # Whoever closes with something unread resets, which depends on what was under way.
        call.shown.replace("ReadError", "ConnectionClosed")
        for call in recorder.calls
        if call.name not in UPWARDS and call.name not in DOWNWARDS
    ]
    return Outcome(
        directed(recorder, UPWARDS), directed(recorder, DOWNWARDS), rest, status, response, requests
    )


def hooks(scenario: Scenario) -> dict[str, Callable[..., Any]]:
    """Return what the filters of a scenario do."""
    found: dict[str, Callable[..., Any]] = {}

    def again(
        _peer: HttpPeer, _session: Session, e: ProxyError, ctx: Ctx, _reused: bool
    ) -> ProxyError:
        e.set_retry(ctx.attempts < 2)
        return e

    async def upper(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        body.data = body.data and body.data.upper()

    if scenario.retry:
        found["error_while_proxy"] = again
    if scenario.rewrite:
        found["request_body_filter"] = found["response_body_filter"] = upper
    if scenario.fails is not None:
        found[scenario.fails] = raises(ProxyError.status(418))
    return found


def virtual(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run an async function on a clock of its own."""
    return trio.run(function, *args, clock=MockClock(autojump_threshold=0))


def check(scenario: Scenario) -> None:
    """Check that every pairing does what HTTP/1 does."""
    scenario = sensible(scenario)
    early = any(answer.early for answer in scenario.answers)
    measure = virtual(run, scenario, Pairing(H1, H1))
    for pairing in (Pairing(H2C, H1), Pairing(H1, H2C), Pairing(H2C, H2C)):
        outcome = virtual(run, scenario, pairing)
        if early:  # how much of an upload was still read is nobody's promise
            outcome.upwards, outcome.requests = measure.upwards, measure.requests
        assert outcome == measure, f"{pairing}\n{outcome}\n{measure}"


@given(SCENARIOS)
@settings(max_examples=settings().max_examples // 4, deadline=None)
def test_an_exchange_is_the_same_whatever_is_spoken(scenario: Scenario) -> None:
    check(scenario)

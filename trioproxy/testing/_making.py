"""Makes scenarios up from choices, and makes them smaller."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import attrs

from ._network import PLAIN, Fault, Link, Path
from ._scenario import (
    BLOCK,
    NAMES,
    Answer,
    Change,
    Client,
    Filter,
    GoAway,
    Http2,
    Name,
    Request,
    Reset,
    Scenario,
    Shadow,
    Stop,
)


class _HasClients(Protocol):
    """A scenario of any kind."""

    @property
    def clients(self) -> tuple[Any, ...]: ...


AnyScenario = TypeVar("AnyScenario", bound=_HasClients)
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
    versioned = _with_versions(choose, plain)
    # Drawn last of all, as the names above.
    shadow, hedge = _shadow(choose), choose((None,) * 6 + (0.0, 0.05, 1.0))
    filters = versioned.filters
    if hedge is not None:
        filters += (Filter("request_filter", "hedge", hedge),)
    return attrs.evolve(versioned, shadow=shadow, filters=filters)


def _shadow(choose: Choose) -> Shadow | None:
    if not choose((False,) * 5 + (True,)):
        return None
    return Shadow(
        share=choose((1.0, 0.5)),
        reads=choose((None, None, None, 0, 50, 3000)),
        wait=choose((0.0, 0.0, 0.1, 3.0, 200.0)),
        cut=choose((False, False, True)),
        leaves=choose((None, None, None, 0.05, 2.0)),
        refuses=choose((False,) * 7 + (True,)),
    )


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
    answer = attrs.evolve(answer, leave=choose((answer.leave, answer.leave, "truncate", "hush")))
    if answer.status != 101 and choose((False,) * 7 + (True,)):
        # What ends with its connection alone ends well by close_notify, and by nothing else.
        return attrs.evolve(answer, framing="close", trailer=False, cut=choose((100, 150, 400)))
    return answer


def _versioned(choose: Choose, request: Request, down: str, up: str) -> Request:
    if request.upgrade and (down.startswith("h2") or up.startswith("h2") or choose((False, True))):
        request = attrs.evolve(request, protocol="websocket")
    answers = request.answers
    if up.startswith("h2"):
        answers = tuple(_over_http2(choose, each) for each in answers or (Answer(),))
        if request.upgrade:
            answers = tuple(attrs.evolve(each, wrong=None) for each in answers)
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
    most = 0
    for _, _, request in plain.requests():
        back = max((each.blocks for each in request.answers), default=1)
        most += BLOCK * (request.blocks + back)
    clients = []
    for client in plain.clients:
        speaks = down
        if down != "h1" and choose((False, False, False, True)):
            speaks = "h1-tls" if secure else "h1"  # beside the others
        requests = tuple(_versioned(choose, each, speaks, up) for each in client.requests)
        if speaks.startswith("h2") and choose((False,) * 7 + (True,)):
            # Asked and taken back at once: nothing may be gained by it.
            requests = tuple(attrs.evolve(each, reset=_reset(choose)) for each in requests * 2)
        clients.append(
            attrs.evolve(
                client,
                requests=requests,
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


def shrink(
    scenario: AnyScenario, fails: Callable[[AnyScenario], bool], most: int = 400
) -> AnyScenario:
    """Return a small scenario that still fails.

    Args:
      scenario: One that fails.
      fails: Runs a scenario, and tells whether it fails.
      most: How many runs to spend.
    """
    tried: set[AnyScenario] = set()

    @functools.wraps(fails)
    def worth(candidate: AnyScenario) -> bool:
        if candidate in tried or not candidate.clients or len(tried) >= most:
            return False
        tried.add(candidate)
        return fails(candidate)

    while (better := next(filter(worth, _simpler(scenario)), None)) is not None:
        scenario = better
    return scenario

"""What must hold after every run, whatever happened in it; numbered as in the docs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from ._observed import CONF, OWN, Asked, Call, Ctx, Observed, Received
from ._reference import BLOCK, blocks
from ._scenario import Answer

#: Bytes of our own buffers that one session may hold.
MOST_BUFFERED = 262144
#: And what an HTTP/2 connection may hold beside them.
MOST_UNSENT = 131072
BEFORE = (
    "new_ctx",
    "early_request_filter",
    "request_filter",
    "proxy_upstream_filter",
)
#: Statuses of ours that no reference client deserves.
REFUSALS = (400, 405, 411, 413, 414, 417, 421, 431, 501, 505)
IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE")


def broken(observed: Observed) -> list[str]:
    """Return what is broken, in words; empty where all is well."""
    return [
        *observed.problems,
        *_callbacks(observed),
        *_answers(observed),
        *_calm_answers(observed),
        *_bytes(observed),
        *_requests(observed),
        *_time(observed),
        *_memory(observed),
        *_places(observed),
    ]


def check_invariants(observed: Observed) -> None:
    """Check all that must hold after a run.

    Raises:
      AssertionError: something is broken; the message names it and has the scenario's script.
    """
    found = broken(observed)
    if found:
        listed = "\n".join(f"- {each}" for each in found)
        script = observed.scenario.script(observed.step, observed.deed)
        raise AssertionError(f"broken invariants:\n{listed}\n\n{script}")


# -- 1: callbacks --------------------------------------------------------------------------------


def attempts(ctx: Ctx) -> list[list[Call]]:
    """Return a request's callbacks by attempt, those before the first left out.

    Of two attempts that ran side by side, the first has the callbacks of the response, whoever won.
    """
    found: dict[int, list[Call]] = {}
    for call in ctx.calls:
        if call.attempt:
            found.setdefault(call.attempt, []).append(call)
    return list(found.values())


def _callbacks(observed: Observed) -> Iterator[str]:
    for ctx in observed.contexts:
        names = [call.name for call in ctx.calls]
        where = f"1: request {ctx.number}: {names}"
        if names.count("logging") != 1 or names[-1] != "logging":
            yield f"{where}: logging must come once, and last"
        if names.count("fail_to_proxy") > 1:
            yield f"{where}: fail_to_proxy came twice"
        first = names.index("upstream_peer") if "upstream_peer" in names else len(names)
        before = [name for name in names[:first] if name not in ("fail_to_proxy", "logging")]
        if before != list(BEFORE[: len(before)]) or (
            "upstream_peer" in names and len(before) < len(BEFORE)
        ):
            yield f"{where}: a wrong order before the upstream"
        hedged = any(each.do == "hedge" for each in observed.scenario.filters)
        for attempt in attempts(ctx):
            yield from _attempt(where, attempt, hedged=hedged)


_ORDER = (
    "upstream_peer",
    "connected_to_upstream",
    "upstream_request_filter",
    "request_body_filter",
)
_RESPONSE = (
    "upstream_response_filter",
    "response_filter",
    "upstream_response_body_filter",
    "response_body_filter",
    "response_trailer_filter",
)


def _attempt(where: str, calls: list[Call], *, hedged: bool) -> Iterator[str]:
    names = [call.name for call in calls]
    if "fail_to_connect" in names and "connected_to_upstream" in names:
        yield f"{where}: connected, and failed to"
    for earlier, later in pairwise(_ORDER):
        if later in names and (earlier not in names or names.index(earlier) > names.index(later)):
            yield f"{where}: {later} without {earlier} before it"
    asked = hedged or "upstream_request_filter" in names
    if any(name in names for name in _RESPONSE) and not asked:
        yield f"{where}: a response without a request"
    for one, other in pairwise(_RESPONSE[:4]):
        if other in names and one not in names:
            yield f"{where}: {other} without {one}"
    for name in ("request_body_filter", "upstream_response_body_filter", "response_body_filter"):
        ends = [call.end for call in calls if call.name == name]
        if True in ends[:-1]:
            yield f"{where}: {name} was called behind its end of stream"
    finals = [
        call
        for call in calls
        if call.name == "upstream_response_filter" and (call.note >= "200" or call.note == "101")
    ]
    if len(finals) > 1:
        yield f"{where}: two final responses in one attempt"


# -- 2: answers ----------------------------------------------------------------------------------


def _last_behind_a_fin(observed: Observed, asked: Asked) -> bool:
    """Tell whether a client ended its output behind this request, its only one, and waits."""
    client = observed.scenario.clients[asked.client] if asked.client >= 0 else None
    return (
        client is not None
        and client.http2 is None
        and client.pipelined
        and client.fin
        and client.leaves is None
        and len(client.requests) == 1
        and asked.request.method in IDEMPOTENT
        and asked.request.blocks == 0
    )


def _undisturbed(observed: Observed, asked: Asked) -> bool:
    """Tell whether nothing but the proxy can be to blame for a missing answer."""
    if observed.disturbed or observed.scenario.stop is not None or asked.client < 0:
        return False
    client = observed.scenario.clients[asked.client]
    return client.link.out.fault is None and client.link.back.fault is None


def _answers(observed: Observed) -> Iterator[str]:
    for asked in observed.asked.values():
        if (
            asked.final is None
            and asked.whole
            and _calm(observed)
            and _last_behind_a_fin(observed, asked)
            and any(each.do == "stay" for each in observed.scenario.filters)
            and all(
                each.cut is None and each.wait < CONF.read_timeout for each in asked.request.answers
            )
        ):
            yield f"2: request {asked.number} is unanswered, though its FIN should not count"
        if asked.outcome == "hang" and asked.whole and _undisturbed(observed, asked):
            yield f"2: request {asked.number} got neither an answer nor an end"
        final = asked.final
        if final is None:
            continue
        if not asked.begun:
            yield f"2: request {asked.number} was answered before it was asked"
        if asked.stream is not None and asked.request.wrong in ("name", "field", "path"):
            yield f"2: the malformed request {asked.number} was answered with {final.status}"
        if final.status in REFUSALS and final.get(b"x-answer") is None:
            yield f"5: the good request {asked.number} was refused with {final.status}"
        if asked.request.old and asked.interim and asked.stream is None:
            yield f"2: request {asked.number}: interim responses to an HTTP/1.0 client"
        if asked.outcome == "complete" and not final.until_close:
            yield from _honest_end(observed, asked)


def _calm(observed: Observed) -> bool:
    """Tell whether nothing goes wrong but that the origin ends idle connections."""
    scenario = observed.scenario
    links = [*scenario.origin_links, *(client.link for client in scenario.clients)]
    return (
        not observed.disturbed
        and not observed.crossed
        and scenario.stop is None
        and scenario.per_peer is None
        and scenario.fail_operation == 0
        and all(each == "ok" for each in scenario.connects)
        and all(name.address is not None for name in scenario.names)
        and all(each.do in ("pause", "grow", "peek", "stay", "hedge") for each in scenario.filters)
        and all(link.out.fault is None and link.back.fault is None for link in links)
        and _calm_streams(observed)
    )


def _calm_streams(observed: Observed) -> bool:
    """Tell whether HTTP/2 and TLS are spoken as a proxy may hope for."""
    scenario = observed.scenario
    if any(name.speaks == "stranger" for name in scenario.names):
        return False
    plans = [*scenario.origin_http2, *(client.http2 for client in scenario.clients)]
    for plan in plans:
        if plan is not None and (
            plan.stall or plan.changes or plan.goaway or plan.deaf or plan.rude or plan.greedy
        ):
            return False
        # Byte by byte on a stream that was reset for a fault: a connection's budget is soon gone.
        if plan is not None and plan.piece == 1:
            return False
    over_http2 = any(name.speaks.startswith("h2") for name in scenario.names)
    for _, _, request in scenario.requests():
        for answer in request.answers:
            # What ends a connection there, ends what others have under way; a reset does not.
            if over_http2 and (
                (answer.cut is not None and answer.code is None)
                or answer.after in ("drop", "close")
            ):
                return False
    return True


def _calm_answers(observed: Observed) -> Iterator[str]:
    """Check that what may be repeated always succeeds where nothing but idle ends happen."""
    if not _calm(observed):
        return
    over_http2 = any(name.speaks.startswith("h2") for name in observed.scenario.names)
    for asked in observed.asked.values():
        request, final = asked.request, asked.final
        answers = request.answers or (Answer(),)
        if (
            request.method not in IDEMPOTENT
            or not asked.whole
            or request.reset is not None
            or request.wrong is not None
            or any(each.code is not None or each.wrong is not None for each in answers)
            or request.blocks > 3000  # more than can be repeated
            # An origin may not know extended CONNECT, a client may not be told a plain success.
            or (request.upgrade and (over_http2 or asked.stream is not None))
            or any(each.cut is not None or each.wait >= CONF.read_timeout for each in answers)
            or (request.blocks and any(each.early for each in answers))
        ):
            continue
        stream = asked.stream
        if stream is not None and stream.reset_there is not None and not stream.complete:
            yield f"2: request {asked.number} was reset with {stream.reset_there} for no reason"
        if final is None:
            continue
        if asked.outcome == "cut":
            yield f"2: the answer to {asked.number} was cut though nothing was wrong"
        if final.get(b"x-answer") is None:
            yield f"2: request {asked.number} got {final.status} though nothing was wrong"


def _answer_of(observed: Observed, asked: Asked) -> Received | None:
    """Return what the origin says of the answer that a client got, None where it is our own."""
    final = asked.final
    named = final.get(b"x-answer") if final is not None else None
    if named is None:
        return None
    for received in observed.received:
        if named == b"%d.%d" % (received.number, received.attempt):
            return received
    return None


def _framed(received: Received) -> bool:
    """Tell whether the end of a response can be told from a cut."""
    answer = received.answer
    if answer.framing != "close" or received.stream is not None:
        return True
    return received.secure and (answer.cut is None or answer.leave not in ("close", "hush"))


def _honest_end(observed: Observed, asked: Asked) -> Iterator[str]:
    """Check that what ended properly for the client had ended properly at the origin."""
    final = asked.final
    assert final is not None
    received = _answer_of(observed, asked)
    if received is None:
        return
    has_body = asked.request.method != "HEAD" and final.status not in (204, 304)
    ctx = _context(observed, asked.number)
    if not has_body or ctx is None:
        return
    # An HTTP/1 client has all when it has all bytes: it cannot know of what came behind them.
    by_count = asked.stream is None and final.get(b"content-length") is not None
    if (received.stream is not None and not by_count) and (
        not received.stream.sent_end
        or (received.answer.wrong is not None and not asked.request.upgrade)
    ):
        yield f"2: request {asked.number} got a clean end of what had none, or was malformed"
    expected = blocks(b"a", received.number, received.attempt, received.answer.blocks)
    got = _joined(ctx, "upstream_response_body_filter", "got")
    if _framed(received) and got != expected:
        yield (
            f"2: request {asked.number} got a clean end of a cut body: "
            f"{len(got)} of {len(expected)} bytes"
        )


# -- 3: bytes ------------------------------------------------------------------------------------


def _context(observed: Observed, number: int) -> Ctx | None:
    found = [ctx for ctx in observed.contexts if ctx.number == number]
    return found[0] if len(found) == 1 else None


def _joined(ctx: Ctx, name: str, which: str) -> bytes:
    """Join what a body filter has seen of the last response: nobody was sent one before that."""
    pieces: list[bytes] = []
    for call in ctx.calls:
        if call.name == name.replace("_body", ""):
            pieces.clear()
        elif call.name == name:
            pieces.append(getattr(call, which))
    return b"".join(pieces)


def _bytes(observed: Observed) -> Iterator[str]:
    for asked in observed.asked.values():
        final, ctx = asked.final, _context(observed, asked.number)
        if final is None:
            continue
        named = final.get(b"x-answer")
        if named == b"888.0" and observed.crossed:
            continue
        if named is not None and named.partition(b".")[0] != b"%d" % asked.number:
            yield f"3: request {asked.number} got the answer {named!r}"
            continue
        if ctx is None or named is None:
            if named is None and final.status == 200 and not OWN.startswith(bytes(final.body)):
                yield f"3: request {asked.number} got a body of unknown origin"
            continue
        gave = _joined(ctx, "response_body_filter", "gave")
        whole = asked.outcome == "complete" and not final.until_close
        has_body = asked.request.method != "HEAD" and final.status not in (204, 304)
        body = bytes(final.body)
        if not gave.startswith(body) or (whole and has_body and body != gave):
            yield f"3: request {asked.number} got {len(body)} bytes, the filters gave {len(gave)}"
    for ctx in observed.contexts:
        asked_for = observed.asked.get(ctx.number)
        if asked_for is not None:
            yield from _filtered(observed, ctx, asked_for)


def _filtered(observed: Observed, ctx: Ctx, asked: Asked) -> Iterator[str]:
    sent = blocks(b"q", asked.number, 0, asked.request.blocks)
    received = [each for each in observed.received if each.number == ctx.number]
    for attempt in attempts(ctx):
        calls = [call for call in attempt if call.name == "request_body_filter"]
        got = b"".join(call.got for call in calls)
        if not sent.startswith(got):
            yield f"3: request {ctx.number}: its filter got other bytes than the client sent"
        if (
            any(call.end for call in calls)
            and not asked.request.upgrade
            and (got != sent or not asked.begun)
        ):
            yield f"1: request {ctx.number}: end of stream of a request body that was cut"
        calls = [call for call in attempt if call.name == "upstream_response_body_filter"]
        got = b"".join(call.got for call in calls)
        candidates = [
            blocks(b"a", each.number, each.attempt, each.answer.blocks) for each in received
        ]
        fitting = [each for each in candidates if each.startswith(got)]
        if got and not fitting and not observed.crossed:
            yield f"3: request {ctx.number}: its filter got other bytes than the origin sent"
        ended = any(call.end for call in calls)
        framed = all(_framed(each) for each in received)
        candidates = [
            text
            for text, each in zip(candidates, received, strict=True)
            if each.stream is None or each.stream.sent_end
        ]
        if ended and framed and got not in candidates and not observed.crossed:
            yield f"1: request {ctx.number}: end of stream of a response body that was cut"
    yield from _uploads(ctx, received)


def _uploads(ctx: Ctx, received: list[Received]) -> Iterator[str]:
    """What the origin got, against what the filters gave: attempts that sent nothing are none."""
    gave = [
        b"".join(call.gave for call in attempt if call.name == "request_body_filter")
        for attempt in attempts(ctx)
    ]
    for each in received:
        body = bytes(each.head.body)
        fits = [
            text for text in gave if (text == body if each.head.complete else text.startswith(body))
        ]
        if not fits:
            yield (
                f"3: request {ctx.number}: the origin got {len(body)} bytes, "
                f"the filters gave {[len(text) for text in gave]}"
            )


# -- 5: requests ---------------------------------------------------------------------------------


def _requests(observed: Observed) -> Iterator[str]:
    seen = Counter(ctx.number for ctx in observed.contexts)
    for number, count in seen.items():
        if number not in observed.asked and number != -1:
            yield f"5: a callback ran for a request that nobody sent: {number}"
        each = observed.asked.get(number)
        wrong = each.request.wrong if each is not None and each.stream is not None else None
        if wrong in ("name", "field", "path"):
            yield f"5: a callback ran for the malformed request {number}"
        if number >= 0 and count > 1:
            yield f"5: request {number} was handled {count} times"
    arrived = Counter(each.number for each in observed.received)
    taken = Counter(each.number for each in observed.received if not each.disowned)
    for number, count in arrived.items():
        ctx = _context(observed, number)
        meant = 0
        if ctx is not None:
            meant = sum(call.name == "upstream_request_filter" for call in ctx.calls)
        if count > meant:
            yield f"5: the origin got request {number} {count} times, it was sent {meant} times"
        asked = observed.asked.get(number)
        bold = any(
            each.do == "retry" and each.name == "error_while_proxy"
            for each in observed.scenario.filters
        )
        posts = asked is not None and asked.request.method not in IDEMPOTENT
        if asked is not None and taken[number] > 1 and posts and not bold:
            yield f"5: the origin got the {asked.request.method} {number} {taken[number]} times"


# -- 7 and 8: time and memory --------------------------------------------------------------------


def time_limit(observed: Observed) -> float:
    """Return the sum of all timeouts and waits that one exchange may meet."""
    conf, scenario = CONF, observed.scenario
    attempt = (
        conf.pool_wait_timeout + conf.connect_timeout + 2 * conf.write_timeout + conf.read_timeout
    )
    attempt += conf.pool_wait_timeout + conf.upstream_tls_timeout
    waits = conf.header_timeout + 2 * conf.body_timeout + conf.drain_timeout + conf.logging_timeout
    waits += 2 * (conf.tunnel_idle_timeout + conf.tunnel_half_close_timeout)
    waits += sum(client.slow for client in scenario.clients)
    for _, _, request in scenario.requests():
        waits += request.wait + sum(each.wait + each.after_wait for each in request.answers)
        most = request.blocks + max((each.blocks for each in request.answers), default=1)
        waits += (most * BLOCK / 50 + 100) * 0.2  # latency, piece by piece
        waits += request.reset.wait if request.reset is not None else 0
    for client in scenario.clients:
        if client.http2 is not None and client.http2.stall < math.inf:
            waits += client.http2.stall
    waits += sum(each.seconds * 100 for each in scenario.filters if each.do == "pause")
    links = [*scenario.origin_links, *(client.link for client in scenario.clients)]
    for link in links:
        for path in (link.out, link.back):
            waits += path.fault.seconds if path.fault is not None else 0
    return conf.max_attempts * attempt + waits


def _time(observed: Observed) -> Iterator[str]:
    limit = time_limit(observed)
    for ctx in observed.contexts:
        if ctx.ended - ctx.began > limit:
            yield f"7: request {ctx.number} took {ctx.ended - ctx.began:g} s, {limit:g} is the most"


def _memory(observed: Observed) -> Iterator[str]:
    most = 0
    for client in observed.scenario.clients:
        if client.http2 is None:
            most += MOST_BUFFERED
        else:
            most += MOST_BUFFERED * len(client.requests) + MOST_UNSENT
    if observed.scenario.shadow is not None:
        most += MOST_BUFFERED * len(observed.scenario.requests())
    if observed.peak > most:
        yield f"8: {observed.peak} bytes were buffered, {most} is the most"


def _places(observed: Observed) -> Iterator[str]:
    """Check that no client has more live sessions than streams that it may open (row H2-02).

    A stream that both sides have ended makes room although its session may still be at its log: who
    resets a stream whose end is under way learns of that end only later.
    """
    for alive in observed.alive:
        live = 0
        for number in alive:
            asked = observed.asked.get(number)
            if asked is None or asked.client < 0 or not _undisturbed(observed, asked):
                continue
            stays = observed.scenario.clients[asked.client].leaves is None
            stream = asked.stream
            live += stays and stream is not None and not stream.complete
        if live > observed.scenario.most_streams:
            yield f"8: {live} sessions of one connection lived at once"
            return

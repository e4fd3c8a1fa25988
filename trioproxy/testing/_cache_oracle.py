"""What must hold of a cache, judged by what the origin said and what clients got, and nothing else.

It knows nothing of the proxy's policy: it reads the scenario, the origin's record and the answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ._cache_scenario import Ask, Resource
from ._cache_world import EPOCH, UNSAFE, CacheObserved, Got, Said
from ._network import PLAIN
from ._observed import CONF
from ._reference import Message

#: Statuses that may be stored though nothing says how long they are fresh (RFC 9110 15.1).
HEURISTIC = (200, 404)
#: What the proxy may answer by itself to good requests.
OWN = (304, 408, 412, 416, 502, 503, 504)
_FORBID = ("must-revalidate", "proxy-revalidate", "no-cache")


def cache_broken(observed: CacheObserved) -> list[str]:
    """Return what is broken, in words; empty where all is well."""
    found = list(observed.problems)
    for ctx, count in observed.logged.items():
        if count != 1:
            found.append(f"1: logging came {count} times for context {ctx}")
    for got in observed.got:
        found += _answer(observed, got)
    return found


def check_cached(observed: CacheObserved) -> None:
    """Check all that must hold after a run with a cache.

    Raises:
      AssertionError: something is broken; the message names it and has the scenario's script.
    """
    found = cache_broken(observed)
    if found:
        listed = "\n".join(f"- {each}" for each in found)
        script = observed.scenario.script(observed.step, observed.deed)
        raise AssertionError(f"broken invariants:\n{listed}\n\n{script}")


def _number(final: Message, name: bytes) -> int | None:
    value = final.get(name)
    return int(value) if value is not None else None


def _answer(observed: CacheObserved, got: Got) -> Iterator[str]:
    where = f"request {got.number} ({got.ask!r})"
    final = got.final
    if got.outcome == "hang" and _undisturbed(observed):
        yield f"2: {where} got neither an answer nor an end"
    if got.ask.control == "only-if-cached" and got.ask.method not in UNSAFE:
        if any(each.ask == got.number for each in observed.said):
            yield f"9: {where} went to the origin"
    if final is None:
        return
    n, source = _number(final, b"x-said"), _number(final, b"x-body")
    said = observed.said[n] if n is not None else None
    body = observed.said[source] if source is not None else None
    if said is None and final.status not in OWN:
        yield f"9: {where} got {final.status} from nobody"
    if final.status == 304 and got.ask.condition not in ("etag", "star", "since"):
        yield f"9: {where} got a 304 without a condition"
    if final.status == 412 and got.ask.condition != "match":
        yield f"9: {where} got a 412 without a condition"
    for each in (said, body):
        if each is not None:
            yield from (f"9: {where} {text}" for text in _belongs(observed, got, each))
    if said is not None and said.ask != got.number and said.method not in UNSAFE:
        yield from (f"9: {where} {text}" for text in _fresh(observed, got, said, final))
    if body is not None:
        yield from (f"9: {where} {text}" for text in _content(observed, got, body, final))
    if said is not None and final.status == 304:
        yield from (f"9: {where} {text}" for text in _not_modified(got, said))


# -- what belongs to a request -------------------------------------------------------------------


def _belongs(observed: CacheObserved, got: Got, said: Said) -> Iterator[str]:
    """Check that a response is one that may be served for this request."""
    resource = observed.scenario.resources[got.ask.of]
    if said.of != got.ask.of:
        yield f"got what belongs to resource {said.of}"
    if said.ask == got.number:
        return
    if said.method == "HEAD" or said.method in UNSAFE:
        yield f"got the answer {said.number} to a {said.method} of another"
    if resource.vary == "x-kind" and said.kind != got.ask.kind:
        yield f"got the variant {said.kind!r}"
    if said.status < 500 and not _storable(resource, said):
        yield f"got {said.number}, which may not be stored"
    if said.status >= 500 or said.status in (206, 412):
        yield f"got {said.number}, a {said.status} that was another's"


def _storable(resource: Resource, said: Said) -> bool:
    if said.refused and said.status != 304:
        return False
    return resource.vary != "*" and not {"no-store", "private"} & set(resource.flags)


# -- content -------------------------------------------------------------------------------------


def _content(observed: CacheObserved, got: Got, said: Said, final: Message) -> Iterator[str]:
    """Check that the content is what the origin sent in one response, whole or the part asked."""
    body, full = bytes(final.body), said.body
    mine = said.ask == got.number
    if got.ask.method == "HEAD" or final.status in (204, 304):
        if body:
            yield "got content where there is none"
        return
    longest = observed.scenario.longest
    complete = got.outcome == "complete"
    if complete and not mine and longest is not None and len(full) > longest:
        yield f"got {len(full)} stored bytes, {longest} is the most"
    if said.etag != final.get(b"etag"):
        yield f"got the validator {final.get(b'etag')!r} on what has {said.etag!r}"
    if final.status == 206 and said.status != 206:
        if complete:
            yield from _parts(got.ask, full, final)
        return
    if not full.startswith(body):
        yield f"got other bytes than the origin sent in {said.number}"
    elif complete and body != full:
        yield f"got {len(body)} bytes as all of {said.number}, which has {len(full)}"
    elif complete and not said.whole:
        # The origin may have been cut behind all of its content and before its end.
        if full and _length(final) is None:
            yield f"got an end of {said.number}, which was cut"
        elif not mine and full:
            yield f"got {said.number} from the store, which was cut"
    if final.status not in (said.status, 206):
        yield f"got status {final.status} for {said.status}"


def _length(final: Message) -> int | None:
    return _number(final, b"content-length")


def _slices(ask: Ask, length: int) -> list[tuple[int, int]]:
    """Return first and last of each range that can be given (RFC 9110 section 14.1.2)."""
    found = []
    for first, last in ask.ranges:
        if first is None:
            assert last is not None
            first, last = max(0, length - last), length - 1
        elif last is None or last >= length:
            last = length - 1
        if first < length:
            found.append((first, last))
    return found


def _parts(ask: Ask, full: bytes, final: Message) -> Iterator[str]:
    wanted, body = _slices(ask, len(full)), bytes(final.body)
    kind = final.get(b"content-type") or b""
    found: list[tuple[int, int]] = []
    if kind.startswith(b"multipart/byteranges"):
        boundary = kind.partition(b"boundary=")[2].strip(b'"')
        for part in body.split(b"--" + boundary)[1:-1]:
            head, _, data = part.partition(b"\r\n\r\n")
            match = re.search(rb"(?i)content-range: bytes (\d+)-(\d+)/(\d+)", head)
            if match is None:
                yield f"got a part without a range: {head!r}"
                return
            first, last, whole = map(int, match.groups())
            found.append((first, last))
            if data != full[first : last + 1] + b"\r\n" or whole != len(full):
                yield f"got other bytes for {first}-{last}"
    else:
        match = re.fullmatch(rb"bytes (\d+)-(\d+)/(\d+)", final.get(b"content-range") or b"")
        if match is None:
            yield f"got a 206 with the range {final.get(b'content-range')!r}"
            return
        first, last, whole = map(int, match.groups())
        found.append((first, last))
        if body != full[first : last + 1] or whole != len(full):
            yield f"got other bytes for {first}-{last}"
    if sorted(found) != sorted(wanted):
        yield f"got the ranges {found}, not {wanted}"


def _not_modified(got: Got, said: Said) -> Iterator[str]:
    """Check that a 304 is true of what it stands for."""
    if got.ask.condition == "etag":
        mine, its = got.etag or b"", said.etag or b""
        if mine.removeprefix(b"W/") != its.removeprefix(b"W/"):
            yield f"got a 304 of {its!r} for {mine!r}"
    elif got.ask.condition == "since" and got.since is not None:
        modified = said.modified if said.modified is not None else int(EPOCH + said.sent)
        if modified > got.since:
            yield f"got a 304 of what was modified {modified - got.since} s later"


# -- freshness -----------------------------------------------------------------------------------


def _lifetime(resource: Resource, said: Said) -> float:
    """Return for how long a response is fresh at most (RFC 9111 section 4.2)."""
    if "no-cache" in resource.flags:
        return 0.0
    if resource.s_maxage is not None:
        return resource.s_maxage
    if resource.max_age is not None:
        return resource.max_age
    if said.modified is not None:
        return 0.1 * (EPOCH + said.sent - said.modified + 1)
    return 0.0


def _fresh(observed: CacheObserved, got: Got, said: Said, final: Message) -> Iterator[str]:
    """Check what was served without asking the origin, or after it gave no use of an answer."""
    scenario = observed.scenario
    resource, ask = scenario.resources[got.ask.of], got.ask
    yield from _age(observed, got, said, final, resource)
    if said.sent >= got.begun:
        return  # asked for since
    for of, begun, over in observed.changes:
        # What was settled before the change was asked for, and is asked for behind its end.
        if of == ask.of and over < got.begun and _settled(observed, said) < begun:
            yield f"got {said.number}, from before the change at {begun:g}"
    age = got.begun - said.sent + resource.age
    lifetime = _lifetime(resource, said)
    forbids = any(each in _FORBID for each in resource.flags) or resource.s_maxage is not None
    trouble = not forbids and _trouble(observed, got)
    more = 0.0
    if not forbids:
        more = max(resource.behind or 0, ask.seconds if ask.control == "max-stale" else 0)
        if trouble:
            more = max(more, scenario.on_error if resource.error is None else resource.error)
    if age > lifetime + more + 1e-6:
        yield f"got {said.number} at {age:g} s, it is fresh for {lifetime:g} and {more:g} more"
    if trouble and more:
        return
    if ask.control == "no-cache" or (ask.control == "max-age" and not ask.seconds):
        yield f"got {said.number} unvalidated"
    elif ask.control == "max-age" and age - 1 > ask.seconds:
        yield f"got {said.number} at {age:g} s"
    elif ask.control == "min-fresh" and age + ask.seconds > lifetime + 1e-6:
        yield f"got {said.number} at {age:g} s of {lifetime:g}"


def _age(
    observed: CacheObserved, got: Got, said: Said, final: Message, resource: Resource
) -> Iterator[str]:
    """Check that Age tells the age (RFC 9111 section 5.1)."""
    if final.status == 412:
        return
    value = _number(final, b"age")
    if value is None:
        if final.status != 304:
            yield "got no Age from the cache"
        return
    asked = observed.got[said.ask].begun if 0 <= said.ask < len(observed.got) else said.came
    least = int(max(0.0, got.begun - said.sent)) + resource.age
    most = got.heard - min(asked, said.came) + resource.age + 1
    if not least <= value <= most:
        yield f"got Age {value}, it is {least} to {most:g}"


def _settled(observed: CacheObserved, said: Said) -> float:
    """Return when it was surely over with a response: at the origin and at who asked for it."""
    moments = [said.over]
    moments += [each.over for each in observed.got if each.number == said.ask]
    # What answered nobody may have been asked for in the background, and be on its way.
    answered = [each for each in observed.got if each.number == said.ask and each.final is not None]
    if not answered or _number(answered[0].final or Message(b"", []), b"x-said") != said.number:
        return float("inf")
    return max(moments)


def _trouble(observed: CacheObserved, got: Got) -> bool:
    """Tell whether the origin may have failed this request."""
    scenario = observed.scenario
    if any(each != "ok" for each in scenario.connects) or scenario.fail_operation:
        return True
    if scenario.stop is not None or observed.disturbed:
        return True
    if any(each.out.fault or each.back.fault for each in scenario.origin_links):
        return True
    mine = [each for each in observed.said if each.ask == got.number]
    return any(
        each.status >= 500 or not each.whole or each.sent - each.came >= CONF.read_timeout
        for each in mine
    )


def _undisturbed(observed: CacheObserved) -> bool:
    scenario = observed.scenario
    return (
        not observed.disturbed
        and scenario.stop is None
        and all(each.link == PLAIN for each in scenario.clients)
    )

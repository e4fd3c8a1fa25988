"""Several traits in one proxy: one behind the other (`Chain`), or chosen by the request (`Route`).

Both are taken apart when the proxy begins to be served: what the engine calls is one set of bound
callbacks per way that a request can take. A callback that no member overrides is not called, one
that a single member overrides costs one call more than without the chain.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import attrs

from .._errors import ErrorType, ProxyError
from .._messages import RequestHeader
from .._peer import HttpPeer
from ..cache._key import VarianceBuilder
from ..cache._policy import Cacheable, RespCacheable
from ..modules._abc import HttpModules
from ..semantics._targets import Pattern
from ._bound import Filters
from ._filters import CtxT, ProxyHttp
from ._plan import CALLBACKS, plan_of
from ._session import Session

#: A member's place in the chain, and its bound callback.
Call = tuple[int, Callable[..., Any]]


class Composite(ABC):
    """What `trioproxy.serve` takes in place of a `ProxyHttp` object: a `Chain` or a `Route`."""

    @abstractmethod
    def parts(self) -> Iterator[ProxyHttp[Any]]:
        """Return the traits that it is made of."""


Proxy = ProxyHttp[Any] | Composite


@final
class Chain(Composite):
    """Several traits one behind the other, as one proxy.

    Each has a context of its own. Callbacks on the way to the origin run from the first member to
    the last, those on the way back from the last to the first. The first `request_filter` that
    returns True, or raises, ends the request; the last member chooses the peer. The documentation's
    page on composition has the rule of every callback.

    Members that only look on derive from ``Chain.Member``, which chooses no peer. A `Chain` or a
    `Route` may be the last member.
    """

    class Member(ProxyHttp[CtxT]):
        """A trait that is to be part of a `Chain`: it chooses no peer, and needs no context.

        It may be any member but the last one, which chooses the peer. Override `new_ctx` for a context
        of your own.
        """

        def new_ctx(self) -> CtxT:
            """Return None: a member that wants a context overrides this."""
            return None  # type: ignore[return-value]  # CtxT is None where this is not overridden

        async def upstream_peer(self, session: Session, ctx: CtxT) -> HttpPeer:
            """Refuse: the last member of a chain chooses the peer."""
            raise ProxyError.explain(
                ErrorType.InternalError,
                f"{type(self).__name__} chooses no peer: it is to stand before a trait that does, "
                "in a Chain",
            ).into_in()

    def __init__(self, *members: Proxy) -> None:
        """Chain traits.

        Raises:
          TypeError: there is none, one of them is no trait, a `Route` is not the last, or the last
            one chooses no peer.
        """
        flat: list[Proxy] = []
        for index, member in enumerate(members):
            if not isinstance(member, (ProxyHttp, Composite)):
                raise TypeError(f"Chain: {member!r} is no trait: a ProxyHttp object is right")
            if isinstance(member, Route) and index < len(members) - 1:
                raise TypeError("Chain: a Route is the last member, or no member at all")
            flat += member.members if isinstance(member, Chain) else [member]
        if not flat:
            raise TypeError("Chain: at least one ProxyHttp object is right")
        last = flat[-1]
        if _chooses_none(last):
            raise TypeError(
                f"Chain: the last member chooses the peer, and {type(last).__name__} does not"
            )
        #: The traits in order, those of chains within included.
        self.members: tuple[Proxy, ...] = tuple(flat)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.members))})"

    def parts(self) -> Iterator[ProxyHttp[Any]]:
        """Return the traits that it is made of."""
        for member in self.members:
            yield from parts(member)


@final
class Route(Composite):
    """Different traits for different hosts and paths, as one proxy.

    A pattern is ``HOST``, ``HOST:PORT``, ``HOST/PATH`` or ``/PATH``. The host is a name, an address
    (IPv6 in brackets), ``*.name`` for all names below one, or left out for any; the path matches
    itself and what lies below it. The most specific host counts, then the longest path. Paths are
    compared without dot segments and with unreserved characters unescaped (RFC 3986 section 6.2.2);
    the request goes on as it came. What matches nothing is answered 404.

    The choice is made once, before `new_ctx`, by the request as the client sent it.
    """

    def __init__(self, routes: Mapping[str, Proxy]) -> None:
        """Route requests.

        Args:
          routes: Traits, chains or further routes, by their patterns.

        Raises:
          TypeError: what a pattern leads to is no trait, or chooses no peer.
          ValueError: a pattern cannot be understood, or stands for the same as another one.
        """
        if not routes:
            raise ValueError("Route: at least one pattern is right")
        found: dict[Pattern, Proxy] = {}
        for text, proxy in routes.items():
            pattern = Pattern.parse(text)
            if pattern in found:
                raise ValueError(f"Route: {text!r} stands for the same as another pattern")
            if not isinstance(proxy, (ProxyHttp, Composite)):
                raise TypeError(
                    f"Route: {text!r} leads to {proxy!r}: a ProxyHttp object, a Chain or a Route "
                    "is right"
                )
            if _chooses_none(proxy):
                raise TypeError(f"Route: {text!r} leads to {proxy!r}, which chooses no peer")
            found[pattern] = proxy
        #: The patterns, most specific first, and what they lead to.
        self.routes: tuple[tuple[Pattern, Proxy], ...] = tuple(
            sorted(found.items(), key=lambda each: each[0].rank)
        )

    def __repr__(self) -> str:
        return f"Route({ {str(pattern): proxy for pattern, proxy in self.routes}!r})"

    def parts(self) -> Iterator[ProxyHttp[Any]]:
        """Return the traits that it is made of."""
        for _, proxy in self.routes:
            yield from parts(proxy)


def _chooses_none(proxy: Proxy) -> bool:
    """Tell whether a trait leaves the peer to another one."""
    member = Chain.Member
    return isinstance(proxy, member) and type(proxy).upstream_peer is member.upstream_peer


def parts(proxy: Proxy) -> Iterator[ProxyHttp[Any]]:
    """Return the traits that a proxy is made of."""
    if isinstance(proxy, Composite):
        yield from proxy.parts()
    else:
        yield proxy


class _NotFound(ProxyHttp[None]):
    """Answers what no pattern matches."""

    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        raise ProxyError.status(404, "no pattern of the Route matches")

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise ProxyError.status(404, "no pattern of the Route matches")

    def suppress_error_log(self, session: Session, ctx: None, error: ProxyError) -> bool:
        return error.root_etype() == ErrorType.HTTPStatus(404)


def bind(proxy: Proxy, before: Sequence[ProxyHttp[Any]] = ()) -> Filters:
    """Return the callbacks of a proxy, whatever it is made of.

    Args:
      proxy: The proxy.
      before: Traits that stand before it in a chain.
    """
    if isinstance(proxy, Chain):
        *ahead, last = proxy.members
        return bind(last, (*before, *ahead))  # type: ignore[arg-type]  # a Route is last alone
    if isinstance(proxy, Route):
        ways = [(pattern, bind(each, before)) for pattern, each in proxy.routes]
        nothing = bind(_NotFound(), before)

        def choose(request: RequestHeader) -> Filters:
            for pattern, way in ways:
                if pattern.matches(request):
                    return way if way.choose is None else way.choose(request)
            return nothing

        return attrs.evolve(nothing, choose=choose)
    assert isinstance(proxy, ProxyHttp)
    if not before:
        return Filters.bind(proxy)
    return _chained([*before, proxy])


# -- a chain -------------------------------------------------------------------------------------


def _chained(members: list[ProxyHttp[Any]]) -> Filters:
    bound: dict[str, Any] = {"new_ctx": _contexts(members)}
    plans = [plan_of(type(member)) for member in members]
    last = len(members) - 1
    for name, _, _ in CALLBACKS:
        if name in Filters.ONCE or name == "new_ctx":
            continue
        calls = [
            (index, getattr(member, name))
            for index, member in enumerate(members)
            if name in plans[index].overrides
        ]
        if name == "upstream_peer":
            calls = [(last, members[last].upstream_peer)]
        if not calls:
            if name not in Filters.ALWAYS:
                continue
            calls = [(last, getattr(members[last], name))]
        rule = _RULES[name]
        is_async = {index for index, plan in enumerate(plans) if name in plan.is_async}
        bound[name] = rule(calls, _place_of_ctx(name), is_async)
        if f"{name}_is_async" in Filters.FIELDS:
            bound[f"{name}_is_async"] = any(index in is_async for index, _ in calls)
    return Filters.made(
        bound, _modules(members, downstream=True), _modules(members, downstream=False)
    )


def _contexts(members: list[ProxyHttp[Any]]) -> Callable[[], tuple[Any, ...]]:
    makers = [member.new_ctx for member in members]
    return lambda: tuple([make() for make in makers])


def _modules(members: list[ProxyHttp[Any]], *, downstream: bool) -> HttpModules:
    """Let every member add its modules; the default ones only where no member says otherwise.

    Members may each add the same: a builder that equals one that is there already is not added.
    """
    name = "init_downstream_modules" if downstream else "init_upstream_modules"
    modules = HttpModules()
    own = [member for member in members if name in plan_of(type(member)).overrides]
    for member in own or members[-1:]:
        added = HttpModules()
        getattr(member, name)(added)
        for builder in added.builders:
            if builder not in modules.builders:
                modules.add_module(builder)
    return modules


def _place_of_ctx(name: str) -> int:
    names = list(inspect.signature(getattr(ProxyHttp, name)).parameters)
    return names.index("ctx") - 1  # without self


def _only(index: int, call: Callable[..., Any], at: int) -> Callable[..., Any]:
    """Return a single member's callback, with its own context put in."""

    def run(*args: Any) -> Any:
        return call(*args[:at], args[at][index], *args[at + 1 :])

    return run


def _with(args: tuple[Any, ...], at: int, index: int) -> tuple[Any, ...]:
    return (*args[:at], args[at][index], *args[at + 1 :])


def _forward(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Call all, the first member first."""
    if len(calls) == 1:
        return _only(*calls[0], at)
    if any(index in is_async for index, _ in calls):

        async def run(*args: Any) -> None:
            for index, call in calls:
                await call(*_with(args, at, index))

        return run

    def run_sync(*args: Any) -> None:
        for index, call in calls:
            call(*_with(args, at, index))

    return run_sync


def _backward(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Call all, the last member first."""
    return _forward(calls[::-1], at, is_async)


def _last(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Call the last member that overrides it alone."""
    return _only(*calls[-1], at)


def _until(stops: Callable[[Any], bool], otherwise: Any, *, backward: bool = False) -> Any:
    """Return a rule: call one after another, until one returns what ends it."""

    def rule(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
        if len(calls) == 1:
            return _only(*calls[0], at)
        calls = calls[::-1] if backward else calls
        if any(index in is_async for index, _ in calls):

            async def run(*args: Any) -> Any:
                for index, call in calls:
                    result = await call(*_with(args, at, index))
                    if stops(result):
                        return result
                return otherwise

            return run

        def run_sync(*args: Any) -> Any:
            for index, call in calls:
                result = call(*_with(args, at, index))
                if stops(result):
                    return result
            return otherwise

        return run_sync

    return rule


def _handed_on(place: int) -> Any:
    """Return a rule: the last member first, each gets in this place what the one before returned."""

    def rule(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
        if len(calls) == 1:
            return _only(*calls[0], at)

        def run(*args: Any) -> Any:
            result = args[place]
            for index, call in reversed(calls):
                given = [*_with(args, at, index)]
                given[place] = result
                result = call(*given)
                if not isinstance(result, ProxyError):
                    return result  # the engine says what it thinks of that
            return result

        return run

    return rule


def _messages(*, backward: bool = False) -> Any:
    """Return a rule: each gets the message that the one before returned, until one drops it."""

    def rule(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
        if len(calls) == 1:
            return _only(*calls[0], at)
        calls = calls[::-1] if backward else calls

        async def run(session: Session, message: Any, ctx: tuple[Any, ...], last: bool) -> Any:
            for index, call in calls:
                message = await call(session, message, ctx[index], last)
                if message is None:
                    break
            return message

        return run

    return rule


def _delays(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Call all, the last member first; the seconds that they return add up."""
    if len(calls) == 1:
        return _only(*calls[0], at)
    if any(index in is_async for index, _ in calls):

        async def run(*args: Any) -> Any:
            total: Any = 0
            for index, call in reversed(calls):
                delay = call(*_with(args, at, index))
                if index in is_async:
                    delay = await delay
                if delay:
                    total += delay
            return total

        return run

    def run_sync(*args: Any) -> Any:
        total: Any = 0
        for index, call in reversed(calls):
            delay = call(*_with(args, at, index))
            if delay:
                total += delay
        return total

    return run_sync


def _variance(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Join what the members tell variants apart by."""
    if len(calls) == 1:
        return _only(*calls[0], at)

    def run(*args: Any) -> bytes | None:
        builder = VarianceBuilder()
        for index, call in calls:
            variance = call(*_with(args, at, index))
            if variance is not None:
                builder.add(str(index), variance)
        return builder.finalize()

    return run


def _cacheable(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Ask the last member first: one that says no ends it, else what the first member says counts."""
    if len(calls) == 1:
        return _only(*calls[0], at)

    def run(*args: Any) -> RespCacheable:
        for index, call in reversed(calls):
            verdict: RespCacheable = call(*_with(args, at, index))
            if not isinstance(verdict, Cacheable):
                return verdict
        return verdict

    return run


def _each(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Call all, the last member first, whatever becomes of one; the first exception is raised."""
    if len(calls) == 1:
        return _only(*calls[0], at)

    async def run(*args: Any) -> None:
        failure: Exception | None = None
        for index, call in reversed(calls):
            try:
                await call(*_with(args, at, index))
            except Exception as exc:
                failure = failure or exc
        if failure is not None:
            raise failure

    return run


def _left(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Keep what each member leaves for the next request on the connection."""

    def run(*args: Any) -> dict[int, Any] | None:
        left = {index: call(*_with(args, at, index)) for index, call in calls}
        return {index: value for index, value in left.items() if value is not None} or None

    return run


def _taken(calls: list[Call], at: int, is_async: set[int]) -> Callable[..., Any]:
    """Give each member what it has left itself."""

    def run(session: Session, ctx: tuple[Any, ...], left: dict[int, Any]) -> None:
        for index, call in calls:
            if index in left:
                call(session, ctx[index], left[index])

    return run


_any_true = _until(bool, False)

#: How the members' overrides of each callback become one.
_RULES: dict[str, Callable[[list[Call], int, set[int]], Callable[..., Any]]] = {
    "on_connection_reuse": _taken,
    "early_request_filter": _forward,
    "allow_spawning_subrequest": _any_true,
    "request_filter": _any_true,
    "request_cache_filter": _forward,
    "cache_key_callback": _last,
    "is_purge": _any_true,
    "purge_response_filter": _backward,
    "cache_hit_filter": _until(lambda forced: forced is not None, None),
    "cache_miss": _last,
    "proxy_upstream_filter": _until(lambda goes_on: not goes_on, True),
    "upstream_peer": _last,
    "fail_to_connect": _handed_on(3),
    "connected_to_upstream": _forward,
    "upstream_request_filter": _forward,
    "custom_forwarding": _forward,
    "downstream_custom_message_proxy_filter": _messages(),
    "upstream_custom_message_proxy_filter": _messages(backward=True),
    "request_body_filter": _forward,
    "adjust_upstream_modules": _backward,
    "upstream_response_filter": _backward,
    "response_cache_filter": _cacheable,
    "cache_vary_filter": _variance,
    "cache_not_modified_filter": _last,
    "range_header_filter": _last,
    "response_filter": _backward,
    "upstream_response_body_filter": _delays,
    "response_body_filter": _delays,
    "upstream_response_trailer_filter": _backward,
    "response_trailer_filter": _until(bool, None, backward=True),
    "error_while_proxy": _handed_on(2),
    "should_serve_stale": _last,
    "fail_to_proxy": _last,
    "suppress_error_log": _any_true,
    "request_summary": _last,
    "logging": _each,
    "persist_connection_context": _left,
}

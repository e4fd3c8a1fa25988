"""What a module is: a piece of a proxy that can be used again in another one.

A module sees one request and its response through seven hooks. Every request has instances of its
own, which the module's builder makes, so that a module may keep state in itself. Several modules
form a row: what one makes of a message is what the next one gets. A builder with a higher ``order``
comes first, in both directions.

`HttpModules` is the row of builders that `init_downstream_modules` and `init_upstream_modules` fill
when the proxy object starts to serve; `ModulesCtx` holds the instances of one request. A builder
that is `on_demand` makes its instance only when a callback asks for it by its type: a request that
nobody has asked for anything pays nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from .._callbacks import ASYNC, SYNC, check_class, make_plan

if TYPE_CHECKING:
    from .._headers import Headers
    from .._messages import BodyChunk, RequestHeader, ResponseHeader
    from ..proxy._session import Session

ModuleT = TypeVar("ModuleT", bound="HttpModule")


#: The hooks: name, arguments besides self, kind.
HOOKS = (
    ("request_header_filter", 2, ASYNC),
    ("request_body_filter", 3, ASYNC),
    ("response_header_filter", 3, ASYNC),
    ("response_body_filter", 3, ASYNC),
    ("response_flush_filter", 2, ASYNC),
    ("response_trailer_filter", 2, ASYNC),
    ("response_done_filter", 1, SYNC),
)


class HttpModule:
    """One request's part of a module (Pingora's ``HttpModule``): override the hooks you need.

    A hook that is not overridden is never called; a wrong override is refused when the class is
    made, as one of the trait's callbacks is. A hook may raise `ProxyError` to refuse; any
    other exception becomes an internal error, as in a callback of the trait. The hooks of a module
    that acts on the upstream's side are those of the response.
    """

    #: The hooks that the type overrides.
    overridden: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the hooks of a new type, and remember which ones it has of its own."""
        super().__init_subclass__(**kwargs)
        check_class(cls, HttpModule, HOOKS)
        cls.overridden = make_plan(cls, HttpModule, HOOKS).overrides

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Check or rewrite the request's head; return True where you answered by yourself.

        When: once, behind `early_request_filter` and before `request_filter`. With True only
        `logging` follows. Default: False.
        """
        return False

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> bool | None:
        """Rewrite a piece of the request's body: set ``body.data``.

        Return True where a piece becomes more than one of sensible size: what ``body.data`` is then
        goes on first, and when that has been taken you are called again for the next, with
        ``body.data`` None and the same ``end_of_stream``.

        When: for every piece of a request that has a body, once, however often the request is
        tried: what goes on is what is kept for another attempt, and what `Session.read_request_body`
        and `Session.peek_request_body` give. ``end_of_stream`` is True exactly once for a body that
        ended properly.
        """
        return None

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Rewrite a response head; ``end_of_stream`` is True where nothing follows it.

        When: for every head, each informational one included; of the upstream's side before
        `upstream_response_filter`, of the client's side behind `response_filter` or when a callback
        writes a response of its own. Where a response is refused behind you, another one may take
        its place: with its head you begin anew.
        """

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> bool | None:
        """Rewrite a piece of the response's body: set ``body.data``.

        Return True where a piece becomes more than one of sensible size: what ``body.data`` is then
        goes on first, and when that has been taken you are called again for the next, with
        ``body.data`` None and the same ``end_of_stream``.

        When: for every piece. ``end_of_stream`` is True exactly once for a body that ended
        properly, and always before the trailers.
        """
        return None

    async def response_flush_filter(self, session: Session, body: BodyChunk) -> None:
        """Set ``body.data`` to what you held back: nothing more is there at the moment.

        When: behind the last piece that is there, where the body goes on; what goes out now is all
        that the client gets until more comes.
        """

    async def response_trailer_filter(self, session: Session, trailers: Headers) -> bytes | None:
        """Rewrite the trailers in place, or return bytes that end the body in place of them.

        When: once, for a response that has trailers.
        """
        return None

    def response_done_filter(self, session: Session) -> None:
        """Let go of what the instance holds.

        When: once, whatever became of the response, before `logging`. It may not fail: an
        exception is logged.
        """


class HttpModuleBuilder(ABC):
    """Makes the instances of a module, one per request (Pingora's ``HttpModuleBuilder``)."""

    #: Where the module stands in the row, higher ones first.
    order: int = 0
    #: Whether an instance is made only when `ModulesCtx.get` asks for it.
    on_demand: bool = False
    #: The type of the instances, by which `ModulesCtx.get` finds them.
    module_type: type[HttpModule]

    @abstractmethod
    def init(self) -> HttpModule:
        """Return the instance of a new request, of exactly ``module_type``.

        When: once per request; on the upstream's side it sees the response of each attempt.
        """


class HttpModules:
    """The builders of a proxy's modules, in the order in which the modules act."""

    def __init__(self, builders: Iterable[HttpModuleBuilder] = ()) -> None:
        self._builders: list[HttpModuleBuilder] = []
        for builder in builders:
            self.add_module(builder)

    def __repr__(self) -> str:
        names = ", ".join(each.module_type.__name__ for each in self._builders)
        return f"<HttpModules {names or 'none'}>"

    def add_module(self, builder: HttpModuleBuilder) -> None:
        """Add a module; those of equal order act as they were added.

        Raises:
          TypeError: it is no builder.
          ValueError: there is a module of this type already.
        """
        if not isinstance(builder, HttpModuleBuilder):
            raise TypeError(f"{builder!r} is no module: an HttpModuleBuilder is right")
        kind = builder.module_type
        if any(each.module_type is kind for each in self._builders):
            raise ValueError(f"there is a module {kind.__name__} already: one of a type is right")
        self._builders.append(builder)
        self._builders.sort(key=lambda each: -each.order)

    @property
    def builders(self) -> tuple[HttpModuleBuilder, ...]:
        """The builders in order."""
        return tuple(self._builders)


class ModulesCtx:
    """The instances of the modules of one request, and what they override."""

    __slots__ = ("_builders", "_instances")

    def __init__(self, modules: HttpModules | None) -> None:
        self._builders = () if modules is None else modules.builders
        self._instances: list[tuple[HttpModuleBuilder, HttpModule]] = [
            (builder, builder.init()) for builder in self._builders if not builder.on_demand
        ]

    def __repr__(self) -> str:
        names = ", ".join(type(each).__name__ for each in self.instances)
        return f"<ModulesCtx {names or 'none'}>"

    @property
    def instances(self) -> tuple[HttpModule, ...]:
        """The instances that exist, in order."""
        return tuple(instance for _, instance in self._instances)

    def get(self, kind: type[ModuleT]) -> ModuleT | None:
        """Return this request's instance of a module, or None where the proxy has no such module.

        Args:
          kind: The type of the instance: ``ctx.get(ResponseCompression)``.
        """
        for builder, instance in self._instances:
            if builder.module_type is kind:
                return cast("ModuleT", instance)
        builders = self._builders
        for builder in builders:
            if builder.module_type is kind:
                made = builder.init()
                self._instances.append((builder, made))
                self._instances.sort(key=lambda each: builders.index(each[0]))
                return cast("ModuleT", made)
        return None

    def with_hook(self, *names: str) -> list[HttpModule]:
        """Return the instances that override any of these hooks, in order."""
        wanted = frozenset(names)
        return [each for _, each in self._instances if wanted & each.overridden]

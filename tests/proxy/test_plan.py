"""Wrong overrides are refused when the class is made; a user's own methods are left alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import pytest

from tests._support.recording import OK, ORIGIN, answers, open_gateway, post
from trioproxy import BodyChunk, HttpPeer, ProxyError, ProxyHttp, ResponseHeader, Session
from trioproxy.proxy._plan import CALLBACKS, plan_of

Method = Callable[..., Any]


async def _peer(self: Any, session: Session, ctx: None) -> HttpPeer:
    return ORIGIN


def _ctx(self: Any) -> None:
    return None


BASE: dict[str, Any] = {"new_ctx": _ctx, "upstream_peer": _peer}


def plain(methods: Mapping[str, Any]) -> type[ProxyHttp[None]]:
    return type("Gateway", (ProxyHttp,), BASE | dict(methods))


def slotted(methods: Mapping[str, Any]) -> type[ProxyHttp[None]]:
    return attrs.define(plain(methods))


def unslotted(methods: Mapping[str, Any]) -> type[ProxyHttp[None]]:
    return attrs.define(slots=False)(plain(methods))


def from_mixin(methods: Mapping[str, Any]) -> type[ProxyHttp[None]]:
    mixin = type("Mixin", (), dict(methods))
    return type("Gateway", (mixin, ProxyHttp), dict(BASE))


def from_slotted_mixin(methods: Mapping[str, Any]) -> type[ProxyHttp[None]]:
    mixin = attrs.define(type("Mixin", (), dict(methods)))
    return attrs.define(type("Gateway", (mixin, ProxyHttp), dict(BASE)))


def inherited(methods: Mapping[str, Any]) -> type[ProxyHttp[None]]:
    return type("Gateway", (plain({}),), dict(methods))


WAYS = [plain, slotted, unslotted, from_mixin, from_slotted_mixin, inherited]
ways = pytest.mark.parametrize("make", WAYS)
Make = Callable[[Mapping[str, Any]], type[ProxyHttp[None]]]


def refused(make: Make, methods: Mapping[str, Any]) -> str:
    with pytest.raises(TypeError) as caught:
        make(methods)
    message = str(caught.value)
    assert "\n" not in message
    return message


def wrapped(function: Method) -> Method:
    """Decorate as a user would, with a plain function around a coroutine function too."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def two(self: Any, session: Session, ctx: None) -> None:
    pass


async def three(self: Any, session: Session, head: ResponseHeader, ctx: None) -> None:
    pass


def plain_three(self: Any, session: Session, head: ResponseHeader, ctx: None) -> None:
    pass


async def body_filter(
    self: Any, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
) -> None:
    pass


# -- near misses ---------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("reponse_filter", "response_filter"),
        ("response_filtr", "response_filter"),
        ("response_filters", "response_filter"),
        ("resposne_filter", "response_filter"),
        ("request_filer", "request_filter"),
        ("upstream_pere", "upstream_peer"),
        ("loging", "logging"),
        ("new_ctxt", "new_ctx"),
    ],
)
def test_a_near_miss_of_a_callbacks_name_is_refused_and_named(
    make: Make, written: str, meant: str
) -> None:
    message = refused(make, {written: three})

    assert "Gateway" in message
    assert written in message
    assert re.search(rf"\b{meant}\b", message)


@ways
def test_a_near_miss_is_refused_when_it_is_static_or_decorated(make: Make) -> None:
    assert "logging" in refused(make, {"loging": staticmethod(lambda session, e, ctx: None)})
    assert "logging" in refused(make, {"loging": classmethod(lambda cls, session, e, ctx: None)})
    assert "logging" in refused(make, {"loging": wrapped(three)})


@pytest.mark.parametrize("name", [name for name, _, _ in CALLBACKS])
def test_each_callbacks_name_with_two_letters_swapped_or_one_lost_is_refused(name: str) -> None:
    swapped = name[:2] + name[3] + name[2] + name[4:]
    for written in {swapped, name[:-1], name + "s"} - {name}:
        assert written in refused(plain, {written: three})


@ways
def test_three_edits_away_is_the_users_own(make: Make) -> None:
    make({"responsefilt": three, "respond_filter_x": three, "log": three, "new": three})


# -- the user's own ------------------------------------------------------------------------------


@ways
def test_private_methods_attributes_and_nested_classes_are_none_of_our_business(
    make: Make,
) -> None:
    class Nested:
        pass

    make(
        {
            "_reponse_filter": three,
            "__reponse_filter": three,
            "reponse_filter_count": 3,
            "loging": "a path, not a method",
            "new_ct": 1,
            "request_filtr": Nested,
            "choose_peer": two,
            "helper": lambda self: None,
        }
    )


def test_a_property_or_a_field_near_a_callbacks_name_is_not_a_method() -> None:
    @attrs.define
    class Gateway(ProxyHttp[None]):
        loging: str = "off"

        @property
        def reponse_filter(self) -> int:
            return 1

        def new_ctx(self) -> None:
            return None

        async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
            return ORIGIN

    assert Gateway().reponse_filter == 1


# -- arguments -----------------------------------------------------------------------------------


def method(kind: str, count: int) -> Method:
    """Return a method with so many positional arguments besides self."""
    names = ", ".join(["self", *(f"a{i}" for i in range(count))])
    scope: dict[str, Any] = {}
    exec(f"{kind} method({names}):\n    return None", scope)
    return scope["method"]  # type: ignore[no-any-return]  # what exec made


@pytest.mark.parametrize(("name", "count", "kind"), CALLBACKS)
def test_each_callback_is_refused_with_an_argument_too_few_or_too_many(
    name: str, count: int, kind: str
) -> None:
    kind = "def" if kind.startswith("def") else kind
    for wrong in {max(count - 1, 0), count + 1} - {count}:
        message = refused(plain, {name: method(kind, wrong)})
        # The line says how it should look.
        assert re.search(rf"{kind} {name}\(self\b", message)

    plain({name: method(kind, count)})


@ways
def test_a_wrong_number_of_arguments_is_refused_however_the_class_is_made(make: Make) -> None:
    message = refused(make, {"response_filter": two})

    assert "async def response_filter(self, session, upstream_response, ctx)" in message


def test_argument_names_are_free_and_defaults_and_stars_are_allowed() -> None:
    async def renamed(self: Any, s: Session, head: ResponseHeader, context: None) -> None:
        pass

    async def defaulted(
        self: Any, s: Session, head: ResponseHeader, ctx: None, extra: int = 1
    ) -> None:
        pass

    async def starred(self: Any, *args: Any) -> None:
        pass

    for each in (renamed, defaulted, starred):
        plain({"response_filter": each})


def test_a_required_keyword_only_argument_is_refused() -> None:
    async def keyword(
        self: Any, session: Session, head: ResponseHeader, ctx: None, *, extra: int
    ) -> None:
        pass

    refused(plain, {"response_filter": keyword})


@ways
def test_a_static_callback_has_no_self(make: Make) -> None:
    async def right(session: Session, head: ResponseHeader, ctx: None) -> None:
        pass

    assert "response_filter" in plan_of(make({"response_filter": staticmethod(right)})).overrides
    refused(make, {"response_filter": staticmethod(three)})
    assert "response_filter" in plan_of(make({"response_filter": classmethod(three)})).overrides


@ways
def test_a_callback_that_is_no_method_is_refused(make: Make) -> None:
    assert "response_filter" in refused(make, {"response_filter": 3})


def test_a_callback_set_to_none_is_refused() -> None:
    assert "logging" in refused(plain, {"logging": None})


# -- kinds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count", "kind"), CALLBACKS)
def test_each_callback_is_refused_in_the_wrong_kind(name: str, count: int, kind: str) -> None:
    if kind == "def or async def":
        assert name not in plan_of(plain({name: method("def", count)})).is_async
        assert name in plan_of(plain({name: method("async def", count)})).is_async
        return
    other = "def" if kind == "async def" else "async def"

    message = refused(plain, {name: method(other, count)})

    assert re.search(rf"(?<!async ){kind} {name}\(self\b", message)


@ways
def test_a_wrong_kind_is_refused_however_the_class_is_made(make: Make) -> None:
    refused(make, {"response_filter": plain_three})
    refused(make, {"suppress_error_log": three})


@ways
def test_functools_wraps_is_looked_through_for_kind_and_arguments(make: Make) -> None:
    cls = make(
        {
            "response_filter": wrapped(three),
            "response_body_filter": wrapped(body_filter),
            "suppress_error_log": wrapped(plain_three),
        }
    )

    plan = plan_of(cls)
    assert {"response_filter", "response_body_filter"} <= plan.is_async
    assert "suppress_error_log" not in plan.is_async
    refused(make, {"response_filter": wrapped(two)})
    refused(make, {"response_filter": wrapped(plain_three)})
    refused(make, {"suppress_error_log": wrapped(three)})


@ways
def test_a_wrapped_static_method_is_checked_like_its_function(make: Make) -> None:
    async def right(session: Session, head: ResponseHeader, ctx: None) -> None:
        pass

    make({"response_filter": staticmethod(wrapped(right))})
    refused(make, {"response_filter": staticmethod(wrapped(three))})


def test_a_partialmethod_is_checked_without_the_arguments_it_fills() -> None:
    async def tagged(
        self: Any, tag: str, session: Session, head: ResponseHeader, ctx: None
    ) -> None:
        pass

    cls = plain({"response_filter": functools.partialmethod(tagged, "x")})

    assert "response_filter" in plan_of(cls).is_async


# -- what is overridden --------------------------------------------------------------------------


@ways
def test_the_plan_has_exactly_what_the_class_overrides(make: Make) -> None:
    plan = plan_of(make({"response_filter": three, "response_body_filter": body_filter}))

    assert plan.overrides == {
        "new_ctx",
        "upstream_peer",
        "response_filter",
        "response_body_filter",
    }


def test_a_subclass_adds_to_the_plan_of_its_parent() -> None:
    parent = plain({"response_filter": three})
    child = type("Child", (parent,), {"request_filter": two})

    assert "request_filter" not in plan_of(parent).overrides
    assert {"response_filter", "request_filter"} <= plan_of(child).overrides


def test_a_class_without_the_two_required_callbacks_cannot_be_made_an_object() -> None:
    class Half(ProxyHttp[None]):
        def new_ctx(self) -> None:
            return None

    with pytest.raises(TypeError, match="upstream_peer"):
        Half()  # type: ignore[abstract]  # the mistake under test


def test_an_unrelated_mixins_abstract_or_generic_parts_do_not_matter() -> None:
    from abc import ABC, abstractmethod
    from typing import Generic, TypeVar

    T = TypeVar("T")

    class Counting(ABC, Generic[T]):
        @abstractmethod
        def counted(self) -> T: ...

    class Gateway(Counting[int], ProxyHttp[None]):
        def counted(self) -> int:
            return 1

        def new_ctx(self) -> None:
            return None

        async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
            return ORIGIN

    assert plan_of(Gateway).overrides == {"new_ctx", "upstream_peer"}
    assert Gateway().counted() == 1


# -- both kinds of body filter run, and are typed ------------------------------------------------


@attrs.define
class SyncBodies(ProxyHttp[None]):
    seen: list[bytes | None] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return ORIGIN

    def upstream_response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> float | None:
        self.seen.append(body.data)
        return None

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        self.seen.append(body.data)


@attrs.define
class AsyncBodies(ProxyHttp[None]):
    seen: list[bytes | None] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return ORIGIN

    async def upstream_response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> float | None:
        self.seen.append(body.data)
        return None

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        self.seen.append(body.data)


@pytest.mark.parametrize("proxy_class", [SyncBodies, AsyncBodies])
async def test_body_filters_work_as_def_and_as_async_def(
    proxy_class: type[SyncBodies | AsyncBodies],
) -> None:
    proxy = proxy_class()
    async with open_gateway(proxy, answers(OK)) as gateway:
        response = await gateway.exchange(post(b"up"))

    assert response.body == b"hello"
    assert proxy.seen == [b"hello", b"hello"]


async def test_a_decorated_callback_runs() -> None:
    def counted(
        function: Callable[[Any, Session, ProxyError | None, None], Awaitable[None]],
    ) -> Callable[[Any, Session, ProxyError | None, None], Awaitable[None]]:
        @functools.wraps(function)
        def wrapper(
            self: Any, session: Session, e: ProxyError | None, ctx: None
        ) -> Awaitable[None]:
            calls.append("decorated")
            return function(self, session, e, ctx)

        return wrapper

    calls: list[str] = []

    async def logging(self: Any, session: Session, e: ProxyError | None, ctx: None) -> None:
        calls.append("logging")

    proxy = plain({"logging": counted(logging)})()
    async with open_gateway(proxy, answers(OK)) as gateway:
        await gateway.exchange(post(b"up"))

    assert calls == ["decorated", "logging"]

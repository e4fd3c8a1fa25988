"""Who asks, and what the origin is told of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests._support.matrix import Pairing
from tests._support.recording import ORIGIN, Message
from tests.modules._world import PLAIN, open_modules, some_pairings
from trioproxy import Headers, RequestHeader, Session
from trioproxy.modules import Forwarding, ForwardingFields
from trioproxy.semantics._forwarded import (
    Element,
    node_of,
    parse_forwarded,
    read_forwarded,
    read_x_forwarded,
    write_element,
)
from trioproxy.semantics._forwarding import append_forwarded

LB = "10.0.0.7:1234"
TRUSTED = ["10.0.0.0/8", "2001:db8::/32"]
SPOOFED = [
    ("x-forwarded-for", "6.6.6.6"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "evil.test"),
    ("x-forwarded-port", "1"),
    ("forwarded", "for=6.6.6.6"),
    ("x-real-ip", "6.6.6.6"),
]


def told(request: Message) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for raw, value in request.fields:
        name = raw.decode()
        if name.startswith("x-forwarded") or name in ("forwarded", "via", "x-real-ip"):
            found.setdefault(name, []).append(value.decode())
    return found


def seen(into: list[Forwarding]) -> dict[str, Any]:
    """Return hooks that keep what the module believes."""

    def keep(session: Session, _ctx: object) -> bool:
        forwarding = session.downstream_modules_ctx.get(Forwarding)
        assert forwarding is not None
        into.append(forwarding)
        return False

    return {"request_filter": keep}


@some_pairings
async def test_what_a_client_says_of_itself_is_dropped(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    into: list[Forwarding] = []
    module = ForwardingFields(trusted=TRUSTED, forwarded=True, x_real_ip=True, via="gate")
    async with open_modules(pairing, module, hooks=seen(into)) as world:
        await world.exchange(fields=SPOOFED)
    scheme, version = pairing.down.scheme, "2" if pairing.down.h2 else "1.1"
    assert told(world.last()) == {
        "x-forwarded-for": ["203.0.113.9"],
        "x-forwarded-proto": [scheme],
        "x-forwarded-host": ["site.test"],
        "forwarded": [f'for=203.0.113.9;proto={scheme};host="site.test"'],
        "x-real-ip": ["203.0.113.9"],
        "via": [f"{version} gate"],
    }
    (who,) = into
    assert (who.client, who.proto, who.host, who.proxies) == (
        "203.0.113.9",
        scheme,
        "site.test",
        (),
    )


@some_pairings
async def test_a_trusted_proxy_is_believed_as_far_as_the_first_that_is_not(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    into: list[Forwarding] = []
    module = ForwardingFields(trusted=TRUSTED, forwarded=True, x_real_ip=True)
    fields = [
        ("x-forwarded-for", "6.6.6.6, 198.51.100.4:99"),
        ("x-forwarded-for", "10.1.1.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.test"),
        ("forwarded", "for=7.7.7.7"),
    ]
    async with open_modules(pairing, module, hooks=seen(into), address=LB) as world:
        await world.exchange(fields=fields)
    assert told(world.last()) == {
        "x-forwarded-for": ["198.51.100.4, 10.1.1.1, 10.0.0.7"],
        "x-forwarded-proto": ["https"],
        "x-forwarded-host": ["shop.test"],
        "forwarded": [
            'for=198.51.100.4;proto=https;host="shop.test", '
            'for=10.1.1.1;proto=https;host="shop.test", '
            f'for=10.0.0.7;proto={pairing.down.scheme};host="site.test"'
        ],
        "x-real-ip": ["198.51.100.4"],
    }
    (who,) = into
    assert (who.client, who.proto, who.host) == ("198.51.100.4", "https", "shop.test")
    assert who.proxies == ("10.1.1.1", "10.0.0.7")


async def test_forwarded_is_believed_where_that_is_what_proxies_write(
    autojump_clock: MockClock,
) -> None:
    into: list[Forwarding] = []
    module = ForwardingFields(trusted=TRUSTED, believe="forwarded")
    fields = [
        ("x-forwarded-for", "6.6.6.6"),
        ("Forwarded", 'for=7.7.7.7, For="[2001:DB9::1]:80" ; Proto=HTTPS;host="a.test:81"'),
        ("Forwarded", 'for="[2001:db8::2]"'),
    ]
    async with open_modules(PLAIN, module, hooks=seen(into), address=LB) as world:
        await world.exchange(fields=fields)
    assert told(world.last()) == {
        "x-forwarded-for": ["2001:db9::1, 2001:db8::2, 10.0.0.7"],
        "x-forwarded-proto": ["https"],
        "x-forwarded-host": ["a.test:81"],
    }
    assert (into[0].client, into[0].proto, into[0].host) == ("2001:db9::1", "https", "a.test:81")


async def test_every_attempt_tells_the_same(autojump_clock: MockClock) -> None:
    asked: list[Message] = []

    async def fails(exchange: Any) -> None:
        asked.append(await exchange.message())
        exchange.close()

    async def works(exchange: Any) -> None:
        asked.append(await exchange.message())
        await exchange.respond(200, [], b"ok")

    def retry(_peer: object, _session: object, e: Any, *_rest: object) -> Any:
        e.set_retry(True)
        return e

    module = ForwardingFields(via="gate", forwarded=True)
    origins = {str(ORIGIN.host): [fails, works]}
    hooks = {"error_while_proxy": retry}
    async with open_modules(PLAIN, module, hooks=hooks, origins=origins) as world:
        assert (await world.exchange()).status == 200
    first, second = asked
    assert told(first) == told(second)
    assert told(first)["via"] == ["1.1 gate"]
    assert told(first)["x-forwarded-for"] == ["203.0.113.9"]


async def test_a_client_cannot_have_the_fields_taken_away_by_connection(
    autojump_clock: MockClock,
) -> None:
    module = ForwardingFields(via="gate", x_real_ip=True, forwarded=True)
    async with open_modules(PLAIN, module) as world:
        await world.exchange(
            fields=[("connection", "x-forwarded-for, x-real-ip, forwarded, via, x-forwarded-host")]
        )
    assert sorted(told(world.last())) == [
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
    ]


async def test_a_unix_socket_may_be_trusted(autojump_clock: MockClock) -> None:
    into: list[Forwarding] = []
    module = ForwardingFields(trusted=["unix"])
    async with open_modules(PLAIN, module, hooks=seen(into), address="unix:/run/x") as world:
        await world.exchange(fields=[("x-forwarded-for", "9.9.9.9")])
    assert into[0].client == "9.9.9.9"
    assert told(world.last())["x-forwarded-for"] == ["9.9.9.9, unknown"]


# -- who is believed -----------------------------------------------------------------------------


def client(values: list[str], peer: str = LB, protos: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return the client and its protocol as `Forwarding` has them."""

    class Nobody:
        def client_addr(self) -> str:
            return peer

        def is_subrequest(self) -> bool:
            return True

    request = RequestHeader("GET", "/", [("host", "h")])
    for value in values:
        request.headers.add("x-forwarded-for", value)
    for value in protos:
        request.headers.add("x-forwarded-proto", value)
    module = Forwarding(ForwardingFields(trusted=TRUSTED))
    coroutine = module.request_header_filter(Nobody(), request)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        coroutine.send(None)
    return module.client, module.proto


@pytest.mark.parametrize(
    ("values", "who"),
    [
        ([], "10.0.0.7"),
        (["1.1.1.1"], "1.1.1.1"),
        (["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
        (["6.6.6.6,1.1.1.1 , 10.2.2.2"], "1.1.1.1"),
        (["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        (["10.3.3.3", "1.1.1.1", "10.2.2.2"], "1.1.1.1"),
        (["1.1.1.1:8080"], "1.1.1.1"),
        (["[2001:db9::1]:8080"], "2001:db9::1"),
        (["2001:DB9::0:1"], "2001:db9::1"),
        (["::ffff:1.1.1.1"], "1.1.1.1"),
        (["::ffff:10.2.2.2, 10.1.1.1"], "10.2.2.2"),
        (["1.1.1.1, unknown"], "unknown"),
        (["1.1.1.1, _hidden"], "_hidden"),
        # What a trusted proxy wrote and nobody can read never makes the proxy the client.
        (["1.1.1.1, "], "unknown"),
        (["1.1.1.1, 10.2.2.2.2"], "unknown"),
        (["1.1.1.1, 010.2.2.2"], "unknown"),
        (["1.1.1.1, fe80::1%eth0"], "unknown"),
        (["1.1.1.1, localhost"], "unknown"),
        (['1.1.1.1, "10.2.2.2"'], "unknown"),
        (["1.1.1.1, 10.2.2.2 10.2.2.3"], "unknown"),
        (["1.1.1.1, ::1]"], "unknown"),
    ],
)
def test_the_client_is_who_stands_left_of_the_last_trusted_proxy(
    values: list[str], who: str
) -> None:
    assert client(values)[0] == who


def test_nobody_is_believed_who_is_not_trusted() -> None:
    assert client(["1.1.1.1"], "203.0.113.9:1") == ("203.0.113.9", "http")
    assert client(["1.1.1.1"], "203.0.113.9:1", ("https",))[1] == "http"


@pytest.mark.parametrize(
    ("values", "protos", "proto"),
    [
        (["1.1.1.1"], ("https",), "https"),
        (["1.1.1.1, 10.2.2.2"], ("https, http",), "https"),
        (["6.6.6.6, 1.1.1.1, 10.2.2.2"], ("http, https, http",), "https"),
        # A list of another length: the last word is that of the nearest proxy.
        (["1.1.1.1"], ("http, https",), "https"),
        (["1.1.1.1"], ("https", "http"), "http"),
        (["1.1.1.1"], ("HTTPS",), "https"),
        (["1.1.1.1"], ("gopher",), "http"),
        (["1.1.1.1"], ("",), "http"),
    ],
)
def test_the_protocol_is_what_the_client_used(
    values: list[str], protos: tuple[str, ...], proto: str
) -> None:
    assert client(values, protos=protos)[1] == proto


async def test_only_the_nearest_entries_are_looked_at(autojump_clock: MockClock) -> None:
    into: list[Forwarding] = []
    module = ForwardingFields(trusted=TRUSTED, max_hops=2)
    fields = [("x-forwarded-for", "1.1.1.1, 10.0.0.1, 10.0.0.2, 10.0.0.3")]
    async with open_modules(PLAIN, module, hooks=seen(into), address=LB) as world:
        await world.exchange(fields=fields)
    assert into[0].client == "10.0.0.2"
    assert told(world.last())["x-forwarded-for"] == ["10.0.0.2, 10.0.0.3, 10.0.0.7"]


# -- reading Forwarded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "elements"),
    [
        ("for=192.0.2.60;proto=http;by=203.0.113.43", [Element("192.0.2.60", "http")]),
        ('For="[2001:db8:cafe::17]:4711"', [Element("2001:db8:cafe::17")]),
        ('for="_gazonk"', [Element("_gazonk")]),
        ("for=_SEVKISEK", [Element("_SEVKISEK")]),
        ("for=unknown, for=1.1.1.1", [Element("unknown"), Element("1.1.1.1")]),
        ('for="1.1.1.1:_port"', [Element("1.1.1.1")]),
        (r'for="\1.1.1.1";host="a\.test"', [Element("1.1.1.1", None, "a.test")]),
        ('host="a, b; for=6.6.6.6";for=1.1.1.1', [Element("1.1.1.1")]),
        ("proto=https", [Element(None, "https")]),
        ('ext=1;for=1.1.1.1;secret="a\\"b"', [Element("1.1.1.1")]),
        (
            "for=1.1.1.1 ; proto=https ,\tfor=2.2.2.2",
            [Element("1.1.1.1", "https"), Element("2.2.2.2")],
        ),
        ('for="10.0.0.1, for=6.6.6.6"', [Element(None)]),
        ("for=2001:db8::1", None),
        ('for="', None),
        ('for=", for=1.1.1.1', None),
        ("for=1.1.1.1;for=2.2.2.2", None),
        ("for=1.1.1.1;FOR=2.2.2.2", None),
        ("for", None),
        ("for=", None),
        ("for =1.1.1.1", None),
        ("=1.1.1.1", None),
        ("", None),
        (",", None),
        ("for=1.1.1.1,", None),
        ("for=1.1.1.1;", None),
        (", for=1.1.1.1", None),
        ('for="1.1.1.1" x', None),
        ('for="a\\', None),
    ],
)
def test_forwarded_is_read_strictly(value: str, elements: list[Element] | None) -> None:
    assert parse_forwarded(value) == elements


def test_a_broken_field_hides_no_other_and_stays_in_its_place() -> None:
    assert read_forwarded(['for="', "for=1.1.1.1"], 9) == [None, Element("1.1.1.1")]
    # What is left of it is not believed anyhow.
    assert read_forwarded(["for=2.2.2.2", 'for="', "for=1.1.1.1"], 9)[0] is None


def test_no_more_is_read_than_is_wanted() -> None:
    values = ["for=1.1.1.1, for=2.2.2.2", "for=3.3.3.3", "for=4.4.4.4, for=5.5.5.5"]
    for limit in range(1, 7):
        nodes = [each.node for each in read_forwarded(values, limit) if each is not None]
        assert nodes == ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4", "5.5.5.5"][-limit:]
        texts = ["1.1.1.1,2.2.2.2", "3.3.3.3"]
        protos = ["http, https,http"]
        assert (
            read_x_forwarded(texts, protos, [], limit)
            == [
                Element("1.1.1.1", "http"),
                Element("2.2.2.2", "https"),
                Element("3.3.3.3", "http"),
            ][-limit:]
        )


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_no_text_breaks_the_readers(text: str) -> None:
    elements = parse_forwarded(text)
    assert elements is None or all(isinstance(each, Element) for each in elements)
    node_of(text)
    assert len(read_x_forwarded([text], [text], [text], 9) or ()) <= 9
    assert len(read_forwarded([text, text], 9) or ()) <= 9


@given(st.text('for=;,"\\[]:.1a_ \t', max_size=40))
def test_no_text_of_the_grammar_breaks_the_reader(text: str) -> None:
    elements = parse_forwarded(text)
    if elements is not None:
        again = parse_forwarded(", ".join(map(write_element, elements)))
        named = [Element(each.node or "unknown", each.proto, each.host) for each in elements]
        assert again == named


NODES = st.one_of(
    st.ip_addresses().map(str).map(node_of).filter(bool),
    st.from_regex(r"_[A-Za-z0-9._-]{1,8}", fullmatch=True),
    st.just("unknown"),
)
ELEMENTS = st.builds(
    Element,
    NODES,
    st.sampled_from([None, "http", "https"]),
    st.sampled_from([None, "a.test", "a.test:81", "[::1]:8080"]),
)


@given(st.lists(ELEMENTS, min_size=1, max_size=5))
def test_what_is_written_is_read_again(elements: list[Element]) -> None:
    assert parse_forwarded(",".join(map(write_element, elements))) == elements


@given(st.lists(ELEMENTS, max_size=3), st.ip_addresses())
def test_what_is_appended_is_the_last_that_is_read(elements: list[Element], address: Any) -> None:
    headers = Headers()
    if elements:
        headers.set("Forwarded", ", ".join(map(write_element, elements)))
    text = f"[{address}]:80" if address.version == 6 else f"{address}:80"
    append_forwarded(headers, client=text, proto="http", host="h.test")
    assert read_forwarded(headers.get_all("forwarded"), 9) == [
        *elements,
        Element(node_of(str(address)), "http", "h.test"),
    ]


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"trusted": ["10.0.0.1/8"]}, "10.0.0.0/8"),
        ({"trusted": "10.0.0.0/8"}, "several networks"),
        ({"believe": "x-real-ip"}, "believe='x-real-ip'"),
        ({"via": "a b"}, "via='a b'"),
        ({"via": "a\r\nb"}, "via="),
        ({"max_hops": 0}, "max_hops=0: 1 or more"),
        ({"x_forwarded": 1}, "x_forwarded=1"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ForwardingFields(**options)

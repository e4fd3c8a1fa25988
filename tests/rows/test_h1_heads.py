"""Rows H1-01 to H1-05, H1-09 to H1-18 and H1-26: request heads that are refused, and that are not."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests._support.raw import Outcome, assert_refused, raw_exchange, read_messages
from trioproxy import ServerConf

cuts = pytest.mark.parametrize("cut", ["whole", "bytes", "line ends"])

# A second request that must never come to life out of the bytes behind a refused one.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"


def head(*lines: bytes, start: bytes = b"POST / HTTP/1.1", host: bytes | None = b"a") -> bytes:
    fields = [*([b"Host: " + host] if host is not None else []), *lines]
    return b"\r\n".join([start, *fields, b"", b""])


async def refuse(
    request: bytes, cut: str, status: int = 400, conf: ServerConf | None = None
) -> None:
    outcome = await raw_exchange(request, cut, conf=conf)
    assert_refused(outcome, status, request[:200])


async def take(request: bytes, cut: str, conf: ServerConf | None = None) -> Outcome:
    outcome = await raw_exchange(request, cut, conf=conf)
    assert [answer.status for answer in outcome.answers] == [200], (request, outcome.response)
    assert outcome.proxy.errors == [None], request
    return outcome


@cuts
async def test_h1_01_content_length_with_transfer_encoding(
    cut: str, autojump_clock: MockClock
) -> None:
    for lines in (
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"transfer-encoding: CHUNKED", b"X: y", b"CONTENT-LENGTH: 0"),
        (b"Transfer-Encoding: gzip, chunked", b"Content-Length: 5"),
        (b"Transfer-Encoding: identity", b"Content-Length: 5"),
        (b"Connection: content-length", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Connection: transfer-encoding", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    ):
        await refuse(head(*lines) + b"0\r\n\r\n" + SMUGGLED, cut)


BAD_LENGTHS = (
    b"5, 5",
    b"5,5",
    b"5,6",
    b",5",
    b"5,",
    b"+5",
    b"-1",
    b"5_0",
    b"0x5",
    b"",
    b"5 5",
    b"5\t",  # a blank that is stripped, so it goes on: see below
    b"5a",
    b"5.0",
    b"1e1",
    b"\xb2",
    b"\xef\xbc\x95",
    b'"5"',
    b"9223372036854775808",
    b"18446744073709551621",
    b"9" * 400,
    b"0" * 400 + b"5",
)


@cuts
async def test_h1_02_content_length_that_is_not_one_number(
    cut: str, autojump_clock: MockClock
) -> None:
    for value in BAD_LENGTHS:
        if value.strip() != b"5":
            await refuse(head(b"Content-Length: " + value) + b"hello" + SMUGGLED, cut)


@cuts
async def test_h1_02_content_length_given_twice(cut: str, autojump_clock: MockClock) -> None:
    for one, other in ((b"5", b"5"), (b"5", b"6"), (b"0", b"5"), (b"5", b"05"), (b"5", b"")):
        request = head(b"Content-Length: " + one, b"X: y", b"content-length: " + other)
        await refuse(request + b"hello" + SMUGGLED, cut)


@cuts
async def test_h1_02_leading_zeros_go_on_as_the_number(cut: str, autojump_clock: MockClock) -> None:
    for value in (b"0005", b"5", b"5 \t", b"0" * 15 + b"5"):
        outcome = await take(head(b"Content-Length: " + value) + b"hello", cut)
        (request,) = outcome.requests
        assert request.all(b"content-length") == [b"5"]
        assert request.body == b"hello"


@cuts
async def test_h1_03_transfer_coding_before_chunked_is_not_implemented(
    cut: str, autojump_clock: MockClock
) -> None:
    for value in (b"gzip, chunked", b"identity, chunked", b"gzip ,\tCHUNKED", b"x;a=b, chunked"):
        request = head(b"Transfer-Encoding: " + value) + b"0\r\n\r\n" + SMUGGLED
        await refuse(request, cut, 501)
    lines = (b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked")
    await refuse(head(*lines) + b"0\r\n\r\n", cut, 501)


@cuts
async def test_h1_03_malformed_transfer_encoding(cut: str, autojump_clock: MockClock) -> None:
    for value in (
        b"identity",
        b"gzip",
        b"chunked, gzip",
        b"chunked, chunked",
        b"chunked, identity",
        b"",
        b",",
        b"chunked,",
        b", chunked",
        b"gzip,, chunked",
        b'"chunked"',
        b'gzip;q="a, chunked',
        b"chunked;a=b",
        b"chunked\x0b",
        b"\x0cchunked",
        b"chunked\x00",
        b"chunked \x0b",
        b"xchunked",
        b"chunked x",
        b"chun ked",
        b"\xa0chunked",
        b"chunked\x85",
    ):
        request = head(b"Transfer-Encoding: " + value) + b"0\r\n\r\n" + SMUGGLED
        await refuse(request, cut)
    for one, other in ((b"chunked", b"chunked"), (b"chunked", b"identity"), (b"chunked", b"")):
        lines = (b"Transfer-Encoding: " + one, b"transfer-encoding: " + other)
        await refuse(head(*lines) + b"0\r\n\r\n" + SMUGGLED, cut)


@cuts
async def test_h1_03_the_one_token_in_any_case_is_taken(
    cut: str, autojump_clock: MockClock
) -> None:
    for value in (b"chunked", b"Chunked", b"CHUNKED", b" \tchunked \t"):
        request = head(b"Transfer-Encoding:" + value) + b"5\r\nhello\r\n0\r\n\r\n"
        outcome = await take(request, cut)
        assert [each.body for each in outcome.requests] == [b"hello"]


@cuts
async def test_h1_04_transfer_encoding_on_http_1_0(cut: str, autojump_clock: MockClock) -> None:
    for value in (b"chunked", b"gzip, chunked", b"identity"):
        request = head(b"Transfer-Encoding: " + value, start=b"POST / HTTP/1.0")
        await refuse(request + b"0\r\n\r\n" + SMUGGLED, cut)


@cuts
async def test_h1_05_no_framing_fields_no_body(cut: str, autojump_clock: MockClock) -> None:
    for start in (b"POST / HTTP/1.1", b"PUT / HTTP/1.1", b"GET / HTTP/1.1"):
        outcome = await raw_exchange(head(start=start) + head(start=b"GET /2 HTTP/1.1"), cut)
        assert [each.body for each in outcome.requests] == [b"", b""]
        assert [each.start for each in outcome.requests] == [start, b"GET /2 HTTP/1.1"]


@cuts
async def test_h1_05_a_request_is_never_delimited_by_close(
    cut: str, autojump_clock: MockClock
) -> None:
    for extra in ((), (b"Connection: close",)):
        outcome = await raw_exchange(head(*extra, start=b"POST / HTTP/1.0") + b"body of old", cut)
        (request,) = outcome.requests
        assert request.body == b""
        assert [answer.status for answer in outcome.answers] == [200]
        assert outcome.answer.one(b"connection") == b"close"


@cuts
async def test_h1_09_bare_line_feeds_in_a_head(cut: str, autojump_clock: MockClock) -> None:
    for request in (
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\n" + SMUGGLED,
        b"GET / HTTP/1.1\nHost: a\n\n" + SMUGGLED,
        b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\n HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        await refuse(request, cut)


@cuts
async def test_h1_10_controls_in_field_values(cut: str, autojump_clock: MockClock) -> None:
    controls = [*range(9), *range(0x0B, 0x20), 0x7F]
    if cut != "whole":
        controls = [0, 1, 8, 0x0B, 0x0C, 0x0D, 0x1B, 0x7F]
    for code in controls:
        await refuse(head(b"X: a" + bytes([code]) + b"b"), cut)
    for value in (b"a\r", b"\ra", b"a\r\r", b"a\rTransfer-Encoding: chunked"):
        await refuse(head(b"X: " + value), cut)


@cuts
async def test_h1_10_malformed_field_lines(cut: str, autojump_clock: MockClock) -> None:
    for line in (
        b"X : y",
        b"X\t: y",
        b"Content-Length : 5",
        b"Transfer-Encoding : chunked",
        b": y",
        b":",
        b"X",
        b"X y",
        b"X y: z",
        b"X(y: z",
        b"X\xe4: y",
        b'"X": y',
        b"X@y: z",
        b"X/y: z",
        b"X{: y",
        b"X\x00: y",
        b"X\x7f: y",
        b"GET / HTTP/1.1",
    ):
        await refuse(head(line), cut)


@cuts
async def test_h1_10_tabs_and_high_bytes_in_values_pass_unchanged(
    cut: str, autojump_clock: MockClock
) -> None:
    values = [b"a\tb", b"\x80\xff", b"\xc3\xa4", b"a  b", b"", b"x" * 300, b"a:b", b"(,;=)"]
    lines = [b"X-%d:%s%s " % (n, b" " * (n % 2), value) for n, value in enumerate(values)]
    outcome = await take(head(*lines), cut)
    (request,) = outcome.requests
    for n, value in enumerate(values):
        assert request.one(b"X-%d" % n) == value


@cuts
async def test_h1_11_folded_fields_and_blanks_before_the_first(
    cut: str, autojump_clock: MockClock
) -> None:
    for request in (
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n \r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\tHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        await refuse(request, cut)


@cuts
async def test_h1_12_two_empty_lines_are_skipped(cut: str, autojump_clock: MockClock) -> None:
    one = head(start=b"GET / HTTP/1.1")
    for before in (b"", b"\r\n", b"\r\n\r\n"):
        outcome = await raw_exchange(before + one + before + one, cut)
        assert [answer.status for answer in outcome.answers] == [200, 200]
        assert len(outcome.requests) == 2


@cuts
async def test_h1_12_more_empty_lines_are_refused(cut: str, autojump_clock: MockClock) -> None:
    for before in (b"\r\n\r\n\r\n", b"\n", b"\r\n\n", b"\r\r\n", b"\r\n\r", b"\r"):
        await refuse(before + head(start=b"GET / HTTP/1.1"), cut)
    await refuse(b"\r\n" * 3000, cut if cut != "bytes" else "sevens")


async def test_h1_12_empty_lines_start_the_header_deadline(autojump_clock: MockClock) -> None:
    outcome = await raw_exchange(b"\r\n", "whole", conf=ServerConf(header_timeout=7))
    assert outcome.seconds == pytest.approx(7)
    assert outcome.answer.status == 408
    assert outcome.calls == []


@cuts
async def test_h1_13_other_versions(cut: str, autojump_clock: MockClock) -> None:
    for version in (b"1.2", b"2.0", b"0.9", b"9.9", b"1.9", b"3.0", b"0.0"):
        await refuse(head(start=b"GET / HTTP/" + version), cut, 505)


@cuts
async def test_h1_13_malformed_versions(cut: str, autojump_clock: MockClock) -> None:
    for start in (
        b"GET /",
        b"GET / ",
        b"GET / http/1.1",
        b"GET / Http/1.1",
        b"GET / HTTP/1.10",
        b"GET / HTTP/01.1",
        b"GET / HTTP/1",
        b"GET / HTTP/11",
        b"GET / HTTP/1,1",
        b"GET / HTTP/1.1x",
        b"GET / HTTP/ 1.1",
        b"GET / HTTP/1.\xb2",
        b"GET / HTTPS/1.1",
        b"GET / XHTTP/1.1",
        b"GET / HTTP/-1.1",
        b"GET / HTTP/+1.1",
        b"GET / ICE/1.0",
    ):
        await refuse(head(start=start), cut)


@cuts
async def test_h1_14_malformed_request_lines(cut: str, autojump_clock: MockClock) -> None:
    for start in (
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\tHTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"\tGET / HTTP/1.1",
        b"GET / x HTTP/1.1",
        b"GET HTTP/1.1",
        b"/ HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"G\xc4T / HTTP/1.1",
        b"G\x00T / HTTP/1.1",
        b"GET:/ / HTTP/1.1",
        b"M" * 33 + b" / HTTP/1.1",
        b"M" * 20000 + b" / HTTP/1.1",
        b"HTTP/1.1 200 OK",
    ):
        await refuse(head(start=start), cut if len(start) < 1000 else "line ends")


@cuts
async def test_h1_14_any_token_is_a_method(cut: str, autojump_clock: MockClock) -> None:
    for method in (b"get", b"Post", b"PURGE", b"M" * 32, b"!#$%&'*+-.^_`|~09", b"connect"):
        outcome = await take(head(start=method + b" /x HTTP/1.1"), cut)
        assert [each.start for each in outcome.requests] == [method + b" /x HTTP/1.1"]


@cuts
async def test_h1_14_trace_is_refused_unless_allowed(cut: str, autojump_clock: MockClock) -> None:
    await refuse(head(start=b"TRACE / HTTP/1.1"), cut, 405)
    outcome = await take(head(start=b"TRACE / HTTP/1.1"), cut, ServerConf(allow_trace=True))
    assert [each.start for each in outcome.requests] == [b"TRACE / HTTP/1.1"]


@cuts
async def test_h1_15_targets_that_are_refused(cut: str, autojump_clock: MockClock) -> None:
    for target in (
        b"*",  # with GET
        b"a",
        b"a/b",
        b"?q",
        b"a:80",
        b"host:443",
        b"ftp://a/",
        b"http:/a/",
        b"http:a",
        b"http//a/",
        b"//",  # taken: see below
        b"/a#b",
        b"/#",
        b"http://a/#b",
        b"/a\\b",
        b"\\",
        b"/a\x00b",
        b"/a\x01b",
        b"/a\tb",
        b"/a\x7fb",
        b"/a\rb",
        b"/\xc3\xa4",
        b"/a\x80",
        b"/a\xa0b",
        b"**",
        b"*/",
        b"javascript:alert(1)",
    ):
        if target != b"//":
            await refuse(head(start=b"GET " + target + b" HTTP/1.1"), cut)
    await refuse(head(start=b"OPTIONS *x HTTP/1.1"), cut)


@cuts
async def test_h1_15_targets_go_on_as_they_came(cut: str, autojump_clock: MockClock) -> None:
    for target in (
        b"/",
        b"//",
        b"//evil/x",
        b"/a/../b",
        b"/./a",
        b"/%2e%2e/a",
        b"/a%00b",
        b"/a%zz",
        b"/%",
        b"/a//b",
        b"/?",
        b"/a?b?c",
        b"/a;p=1?q=%23",
        b"/a|b{c}^`\"<>'",
        b"/http://b/",
        b"/~!$&'()*+,;=:@",
    ):
        outcome = await take(head(start=b"GET " + target + b" HTTP/1.1"), cut)
        assert outcome.proxy.targets == [target]
        assert [each.start for each in outcome.requests] == [b"GET " + target + b" HTTP/1.1"]
    outcome = await take(head(start=b"OPTIONS * HTTP/1.1"), cut)
    assert [each.start for each in outcome.requests] == [b"OPTIONS * HTTP/1.1"]


@cuts
async def test_h1_16_absolute_form_replaces_host(cut: str, autojump_clock: MockClock) -> None:
    for method, target, host, origin_form in (
        (b"GET", b"http://b/x?y", b"b", b"/x?y"),
        (b"GET", b"http://b:8080", b"b:8080", b"/"),
        (b"GET", b"HTTP://B/x", b"B", b"/x"),
        (b"GET", b"https://b/x", b"b", b"/x"),
        (b"GET", b"http://b?q", b"b", b"/?q"),
        (b"GET", b"http://[::1]:80/x", b"[::1]:80", b"/x"),
        (b"GET", b"http://b//c/../d", b"b", b"//c/../d"),
        (b"GET", b"http://b/http://c@d/", b"b", b"/http://c@d/"),
        (b"OPTIONS", b"http://b", b"b", b"*"),
        (b"OPTIONS", b"http://b/", b"b", b"/"),
        (b"OPTIONS", b"http://b?q", b"b", b"/?q"),
    ):
        request = head(b"X: y", start=method + b" " + target + b" HTTP/1.1", host=b"other:1")
        (got,) = (await take(request, cut)).requests
        assert got.start == method + b" " + origin_form + b" HTTP/1.1"
        assert got.all(b"host") == [host]
        assert got.one(b"x") == b"y"


@cuts
async def test_h1_16_malformed_authority_in_absolute_form(
    cut: str, autojump_clock: MockClock
) -> None:
    for target in (
        b"http://u@b/",
        b"http://u:p@b/",
        b"http://@b/",
        b"http://",
        b"http:///x",
        b"http://:80/",
        b"http://b:65536/",
        b"http://b:x/",
        b"http://b:-1/",
        b"http://b:80:80/",
        b"http://b,c/",
        b"http://[::1/",
        b"http://[zz]/",
        b"http://::1/",
        b"http://b%zz/",
        b'http://b"/',
    ):
        await refuse(head(start=b"GET " + target + b" HTTP/1.1"), cut)


@cuts
async def test_h1_17_host_missing_doubled_or_malformed(cut: str, autojump_clock: MockClock) -> None:
    await refuse(head(host=None, start=b"GET / HTTP/1.1"), cut)
    await refuse(head(host=None, start=b"GET http://a/ HTTP/1.1"), cut)
    await refuse(head(b"host: a", start=b"GET / HTTP/1.1"), cut)
    await refuse(head(b"X: y", b"HOST: b", start=b"GET / HTTP/1.0"), cut)
    for host in (
        b"",
        b"u@a",
        b"u:p@a",
        b"a/b",
        b"/",
        b"a,b",
        b"a b",
        b"a\tb",
        b"a:65536",
        b"a:999999999",
        b"a:-1",
        b"a:8o",
        b"a:80:80",
        b":80",
        b"http://a",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"[::1",
        b"::1",
        b"[]",
        b"[:::]",
        b"[1.2.3.4]",
        b"[::1]x",
        b"[::1%25eth0]",
        b"a%",
        b"a%2",
        b"a\xe4",
        b'"a"',
        b"<a>",
        b"a^b",
    ):
        await refuse(head(host=host, start=b"GET / HTTP/1.1"), cut)
        if cut == "whole":
            await refuse(head(host=host, start=b"GET / HTTP/1.0"), cut)
            # A broken Host stays broken where the target has an authority of its own.
            await refuse(head(host=host, start=b"GET http://b/ HTTP/1.1"), cut)


@cuts
async def test_h1_17_well_formed_hosts(cut: str, autojump_clock: MockClock) -> None:
    for host in (b"a", b"A.example", b"a:80", b"a:", b"1.2.3.4:0", b"[::1]:65535", b"a_b", b"a%41"):
        outcome = await take(head(host=host, start=b"GET / HTTP/1.1"), cut)
        assert [each.one(b"host") for each in outcome.requests] == [host]
    await take(head(host=None, start=b"GET / HTTP/1.0"), cut)


@cuts
async def test_h1_18_underscores_that_read_like_framing_or_identity(
    cut: str, autojump_clock: MockClock
) -> None:
    for name in (
        b"Content_Length",
        b"content_length",
        b"Transfer_Encoding",
        b"Host_",
        b"_Host",
        b"Content-Length_",
        b"X_Forwarded_For",
        b"X-Forwarded_For",
        b"X_Forwarded-Proto",
        b"X_Forwarded_Anything",
        b"X_Real_IP",
        b"Proxy_Connection",
        b"Forwarded_",
        b"Via_",
        b"Upgrade_",
    ):
        await refuse(head(name + b": 1"), cut)


@cuts
async def test_h1_18_other_underscores_pass_unless_all_are_refused(
    cut: str, autojump_clock: MockClock
) -> None:
    outcome = await take(head(b"X_Custom: 1", b"a__b: 2"), cut)
    (request,) = outcome.requests
    assert (request.one(b"X_Custom"), request.one(b"a__b")) == (b"1", b"2")
    await refuse(head(b"X_Custom: 1"), cut, conf=ServerConf(refuse_underscores=True))


@cuts
async def test_h1_26_connect_is_off(cut: str, autojump_clock: MockClock) -> None:
    for start in (b"CONNECT a:443 HTTP/1.1", b"CONNECT / HTTP/1.1", b"CONNECT a:443 HTTP/1.0"):
        tunnelled = b"\x16\x03\x01\x02\x00\x01" + SMUGGLED
        await refuse(head(start=start, host=b"a:443") + tunnelled, cut, 405)


def test_the_tests_own_reading_notices_doubled_framing() -> None:
    both = b"GET / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with pytest.raises(AssertionError):
        read_messages(both)

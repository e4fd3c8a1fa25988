from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import attrs
import pytest
import trio
import trio.testing
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from tests._support.wire import WireEnd, wires
from trioproxy import ErrorSource, ErrorType, ProxyError
from trioproxy.transport._byte_stream import SLICE, SMALL, ByteStream, StreamAdapter
from trioproxy.transport._tls import UNSENT, TlsStream, tls_client, tls_server

CA = trustme.CA()
LEAF = CA.issue_cert("example.com", "127.0.0.1")
CLIENT = CA.issue_cert("client@example.com", common_name="client", organization_name="Us")


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    LEAF.configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    CA.configure_trust(context)
    return context


SERVER = server_context()
TRUSTING = client_context()
# With TLS 1.2 there are no tickets in the way, and records are counted more easily.
OLD = client_context()
OLD.maximum_version = ssl.TLSVersion.TLSv1_2


@attrs.frozen
class Pair:
    client: TlsStream
    server: TlsStream
    client_wire: WireEnd
    server_wire: WireEnd


async def connect(
    ends: tuple[WireEnd, WireEnd] | None = None,
    client: ssl.SSLContext = TRUSTING,
    server: ssl.SSLContext = SERVER,
    name: str | None = "example.com",
) -> Pair:
    one, two = wires() if ends is None else ends
    opened: list[TlsStream] = []

    async def serve() -> None:
        opened.append(await tls_server(two, server, timeout=10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        stream = await tls_client(one, client, name, timeout=10)
    return Pair(stream, opened[0], one, two)


@pytest.fixture(params=["TLSv1.3", "TLSv1.2"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    with trio.fail_after(10):
        made = await connect(client=TRUSTING if request.param == "TLSv1.3" else OLD)
        assert made.client.tls.version == made.server.tls.version == request.param
        yield made


async def read_all(stream: ByteStream) -> bytes:
    data = bytearray()
    while chunk := await stream.receive_some():
        data += chunk
    return bytes(data)


async def test_over_a_trio_stream() -> None:
    one, two = trio.testing.memory_stream_pair()
    streams = {}

    async def serve() -> None:
        streams["server"] = await tls_server(StreamAdapter(two), SERVER, timeout=10)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            client = await tls_client(StreamAdapter(one), TRUSTING, "example.com", timeout=10)
        await client.send_parts([b"he", b"llo"], 5)
        assert await streams["server"].receive_some() == b"hello"


BODY = bytes(range(256)) * 1024  # 256 KiB


@settings(max_examples=settings().max_examples // 2, deadline=None)
@given(
    cut=st.sampled_from([1, 2, 5, 6, 100, 1000, SLICE]),
    sizes=st.lists(st.sampled_from([0, 1, 5, 100, SMALL, SMALL + 1, SLICE]), max_size=4),
    calls=st.integers(1, 3),
    at_once=st.sampled_from([1, 7, 1000, SMALL, SLICE]),
)
def test_bytes_arrive_whatever_the_pieces(
    cut: int, sizes: list[int], calls: int, at_once: int
) -> None:
    parts = [BODY[:size] for size in sizes]

    async def main() -> None:
        made = await connect(wires(cut=cut))

        async def send(stream: TlsStream) -> None:
            for _ in range(calls):
                await stream.send_parts(parts, 5)
            await stream.send_eof()

        async def check(stream: TlsStream) -> None:
            data = bytearray()
            while chunk := await stream.receive_some(at_once):
                assert len(chunk) <= at_once
                data += chunk
            assert data == b"".join(parts) * calls

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for stream in (made.client, made.server):
                    nursery.start_soon(send, stream)
                    nursery.start_soon(check, stream)

    if cut < 100 or at_once < 100:  # a step a byte takes its time
        parts = [part[:500] for part in parts]
    trio.run(main)


async def test_reading_goes_on_behind_the_end_of_the_output(pair: Pair) -> None:
    await pair.client.send_parts([b"question"], 5)
    await pair.client.send_eof()
    await pair.client.send_eof()  # again: nothing
    assert pair.server_wire.ended
    assert await read_all(pair.server) == b"question"
    await pair.server.send_parts([BODY], 5)
    await pair.server.send_eof()
    assert await read_all(pair.client) == BODY
    assert await pair.client.receive_some() == b""
    assert pair.client.receive_ready() == b""


async def test_content_that_is_here_when_the_output_ends_is_not_lost(pair: Pair) -> None:
    await pair.server.send_parts([BODY], 5)
    assert await pair.client.receive_some(10) == BODY[:10]
    await pair.client.send_eof()
    await pair.server.send_parts([b"more"], 5)
    pair.server.close_now()
    assert await read_all(pair.client) == BODY[10:] + b"more"


async def test_nothing_is_written_behind_the_end_of_the_output(pair: Pair) -> None:
    await pair.client.send_eof()
    with pytest.raises(ProxyError) as caught:
        await pair.client.send_parts([b"x"], 5)
    assert caught.value.etype == ErrorType.WriteError


async def test_an_end_without_close_notify_is_told_from_one_with_it(pair: Pair) -> None:
    await pair.server.send_parts([b"all"], 5)
    pair.server_wire.end()
    assert await pair.client.receive_some() == b"all"
    for _ in range(2):
        with pytest.raises(ProxyError, match="without TLS's close_notify") as caught:
            await pair.client.receive_some()
        assert caught.value.etype == ErrorType.ReadError
        assert caught.value.esource is ErrorSource.UNSET
        with pytest.raises(ProxyError, match="without TLS's close_notify"):
            pair.client.receive_ready()


async def test_closing_sends_close_notify_without_waiting(pair: Pair) -> None:
    await pair.server.send_parts([b"all"], 5)
    pair.server.close_now()
    pair.server.close_now()
    assert pair.server_wire.closed
    assert await read_all(pair.client) == b"all"


async def test_a_closed_stream_says_so(pair: Pair) -> None:
    pair.client.close_now()
    with pytest.raises(trio.ClosedResourceError):
        await pair.client.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        pair.client.receive_ready()
    with pytest.raises(trio.ClosedResourceError):
        await pair.client.send_parts([b"x"], 5)
    with pytest.raises(trio.ClosedResourceError):
        await pair.client.send_eof()


async def test_closing_wakes_a_reader(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pair.client.receive_some()

        await trio.testing.wait_all_tasks_blocked()
        pair.client.close_now()


async def test_a_session_ticket_is_no_content(pair: Pair) -> None:
    tickets = len(pair.client_wire.unread)
    assert bool(tickets) is (pair.client.tls.version == "TLSv1.3")
    assert pair.client.receive_ready() is None
    assert not pair.client_wire.unread
    await pair.server.send_parts([b"data"], 5)
    assert pair.client.receive_ready() == b"data"
    assert pair.client.receive_ready() is None


async def test_half_a_record_is_no_content_yet(pair: Pair) -> None:
    await pair.server.send_parts([b"data"], 5)
    held = bytes(pair.client_wire.unread[-3:])
    del pair.client_wire.unread[-3:]
    assert pair.client.receive_ready() is None
    pair.client_wire.unread += held
    assert pair.client.receive_ready() == b"data"


async def test_asking_takes_what_fits_and_leaves_the_rest(pair: Pair) -> None:
    await pair.server.send_parts([BODY[:40000]], 5)
    got = [pair.client.receive_ready(30000), await pair.client.receive_some(5000)]
    assert [len(each or b"") for each in got] == [30000, 5000]
    assert pair.client.receive_ready() == BODY[35000:40000]


async def test_a_cancelled_read_loses_nothing(pair: Pair) -> None:
    assert pair.client.receive_ready() is None  # the tickets
    await pair.server.send_parts([b"data"], 5)
    late = bytes(pair.client_wire.unread[-5:])
    del pair.client_wire.unread[-5:]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.client.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    pair.client_wire.unread += late
    assert await pair.client.receive_some() == b"data"


async def test_a_write_that_was_cancelled_midway_breaks_the_stream() -> None:
    with trio.fail_after(10):
        made = await connect()
        made.client_wire.room = 1000
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.client.send_parts, [BODY], 5)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        made.client_wire.room = float("inf")
        with pytest.raises(ProxyError, match="ended midway") as caught:
            await made.client.send_parts([b"x"], 5)
        assert caught.value.etype == ErrorType.WriteError
        # Input is not concerned, and closing adds nothing to half a record.
        await made.server.send_parts([b"late"], 5)
        assert await made.client.receive_some() == b"late"
        await made.client.send_eof()
        before = bytes(made.server_wire.unread)
        made.client.close_now()
        assert made.server_wire.unread == before
        with pytest.raises(ProxyError, match="close_notify"):
            await read_all(made.server)


async def test_closing_under_a_writer_adds_nothing_to_its_record() -> None:
    with trio.fail_after(10):
        made = await connect()
        made.client_wire.room = 1000
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.client.send_parts, [BODY], 5)
                await trio.testing.wait_all_tasks_blocked()
                made.client_wire.room = float("inf")
                before = bytes(made.server_wire.unread)
                made.client.close_now()
                assert made.server_wire.unread == before
                scope.cancel()


async def test_a_write_without_progress_times_out(autojump_clock: object) -> None:
    with trio.fail_after(100):
        made = await connect()
        made.client_wire.room = 1000
        with pytest.raises(ProxyError) as caught:
            await made.client.send_parts([BODY], 5)
        assert caught.value.etype == ErrorType.WriteTimedout


async def test_a_slow_write_with_progress_does_not_time_out(autojump_clock: object) -> None:
    with trio.fail_after(1000):
        made = await connect(wires(room=10000))
        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.client.send_parts, [BODY], 5)
            while len(got) < len(BODY):
                await trio.sleep(4)
                got += await made.server.receive_some()
        assert got == BODY


async def test_two_writers_are_one_too_many() -> None:
    with trio.fail_after(10):
        made = await connect()
        made.client_wire.room = 1000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.client.send_parts, [BODY], 5)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await made.client.send_parts([b"x"], 5)
            with pytest.raises(trio.BusyResourceError):
                await made.client.send_eof()
            nursery.cancel_scope.cancel()


async def test_reader_and_writer_work_at_once() -> None:
    with trio.fail_after(10):
        made = await connect(wires(room=5000))
        total = 3 * len(BODY)

        async def read(stream: TlsStream) -> None:
            got = 0
            while got < total:
                got += len(await stream.receive_some())

        async def write(stream: TlsStream) -> None:
            for _ in range(3):
                await stream.send_parts([BODY], 5)

        async with trio.open_nursery() as nursery:
            for stream in (made.client, made.server):
                nursery.start_soon(read, stream)
                nursery.start_soon(write, stream)


async def test_what_openssl_takes_in_pieces_is_sent_as_a_whole(pair: Pair) -> None:
    whole = pair.client._object

    class Piecemeal:
        def write(self, data: bytes | memoryview) -> int:
            return whole.write(data[:1000])

    pair.client._object = Piecemeal()  # type: ignore[assignment]  # an OpenSSL that is set otherwise
    await pair.client.send_parts([BODY[:2500]], 5)
    assert await pair.server.receive_some() == BODY[:2500]


@pytest.mark.parametrize(
    ("parts", "sends"),
    [
        ([b"head", b"body" * 1000, b""], 1),
        ([b"head", BODY[:SLICE]], 1),
        ([BODY], len(BODY) // SLICE),
        ([], 0),
        ([b"", b""], 0),
    ],
)
async def test_parts_go_out_in_few_sends(pair: Pair, parts: list[bytes], sends: int) -> None:
    del pair.client_wire.sends[:]
    await pair.client.send_parts(parts, 5)
    assert len(pair.client_wire.sends) == sends


async def test_records_that_came_together_are_read_together(pair: Pair) -> None:
    await pair.server.send_parts([BODY[:60000]], 5)
    pair.client_wire.receives = 0
    assert await pair.client.receive_some() == BODY[:60000]
    assert pair.client_wire.receives <= 1


async def test_a_damaged_record_ends_the_input(pair: Pair) -> None:
    await pair.server.send_parts([b"good"], 5)
    start = len(pair.client_wire.unread)
    await pair.server.send_parts([b"damaged"], 5)
    pair.client_wire.unread[start + 8] ^= 1
    assert await pair.client.receive_some() == b"good"
    for _ in range(2):
        with pytest.raises(ProxyError) as caught:
            await pair.client.receive_some()
        assert caught.value.etype == ErrorType.ReadError


# -- handshakes ----------------------------------------------------------------------------------


async def test_what_was_agreed_is_told(autojump_clock: object) -> None:
    server, client = server_context(), client_context()
    server.set_alpn_protocols(["h2", "http/1.1"])
    client.set_alpn_protocols(["http/1.1"])
    CA.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    CLIENT.configure_cert(client)
    with trio.fail_after(10):
        made = await connect(client=client, server=server)
    assert made.client.alpn == made.server.alpn == "http/1.1"
    told = made.server.tls
    assert told.version == "TLSv1.3"
    assert told.cipher.startswith("TLS_")
    assert told.peer_subject is not None
    assert "CN=client" in told.peer_subject
    assert "O=Us" in told.peer_subject
    assert told.peer_serial
    int(told.peer_serial, 16)
    assert told.peer_sha256
    assert len(bytes.fromhex(told.peer_sha256)) == 32
    assert made.client.tls.sni == "example.com"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("me,O=Admins", r"CN=me\,O=Admins"),
        ("me+UID=root", r"CN=me\+UID=root"),
        ('a\\b "c" <d>;', r"CN=a\\b \"c\" \<d\>\;"),
        ("#me ", r"CN=\#me\ "),
        (" me", r"CN=\ me"),
        ("me\nO=Admins", r"CN=me\0aO=Admins"),
        ("Zoë", "CN=Zoë"),
    ],
)
async def test_a_subject_cannot_be_read_in_two_ways(name: str, told: str) -> None:
    server, client = server_context(), client_context()
    CA.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    CA.issue_cert("me@example.com", common_name=name).configure_cert(client)
    with trio.fail_after(10):
        made = await connect(client=client, server=server)
    assert (made.server.tls.peer_subject or "").endswith(f",{told}")


async def test_an_address_is_verified_and_never_asked_for() -> None:
    with trio.fail_after(10):
        made = await connect(name="127.0.0.1")
        assert made.client.tls.sni is None
        with pytest.raises(ProxyError) as caught:
            await _fail(TRUSTING, SERVER, "127.0.0.2")
        assert caught.value.etype == ErrorType.InvalidCert


async def _fail(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Try a handshake whose client fails."""
    one, two = wires()

    async def serve() -> None:
        with pytest.raises(ProxyError) as caught:
            await tls_server(two, server, timeout=10)
        assert caught.value.etype == ErrorType.TLSHandshakeFailure
        assert caught.value.esource is ErrorSource.UNSET

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            await tls_client(one, client, name, timeout=10)
        except ProxyError as exc:
            failure = exc
            one.close_now()
        else:
            raise AssertionError("the handshake went well")
    raise failure


async def test_a_certificate_that_does_not_verify_is_an_invalid_one() -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for client, name in ((stranger, "example.com"), (TRUSTING, "other.example")):
        with trio.fail_after(10), pytest.raises(ProxyError) as caught:
            await _fail(client, SERVER, name)
        assert caught.value.etype == ErrorType.InvalidCert
        assert caught.value.esource is ErrorSource.UNSET
        assert isinstance(caught.value.cause, ssl.SSLCertVerificationError)


async def _open(side: str, inner: ByteStream) -> TlsStream:
    if side == "client":
        return await tls_client(inner, TRUSTING, "example.com", timeout=10)
    return await tls_server(inner, SERVER, timeout=10)


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01\x00\x02zz", b"\0" * 100, b""]
)
async def test_garbage_in_place_of_a_handshake_fails_it(side: str, garbage: bytes) -> None:
    one, two = wires()
    two.send_ready(garbage)
    two.end()
    with trio.fail_after(10), pytest.raises(ProxyError) as caught:
        await _open(side, one)
    assert caught.value.etype == ErrorType.TLSHandshakeFailure
    assert not one.closed


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_handshake_that_stalls_times_out(side: str, autojump_clock: object) -> None:
    one, _ = wires()
    with trio.fail_after(100):
        started = trio.current_time()
        with pytest.raises(ProxyError) as caught:
            await _open(side, one)
        assert caught.value.etype == ErrorType.TLSHandshakeTimedout
        assert trio.current_time() - started == pytest.approx(10)


async def test_a_name_that_is_none_fails_the_handshake() -> None:
    one, _ = wires()
    with trio.fail_after(10), pytest.raises(ProxyError) as caught:
        await tls_client(one, TRUSTING, ".example", timeout=10)
    assert caught.value.etype == ErrorType.TLSHandshakeFailure


async def test_answers_of_tls_itself_are_bounded_where_nobody_writes(pair: Pair) -> None:
    class Talkative:
        pending = UNSENT + 1

    assert pair.client.receive_ready() is None
    pair.client._outgoing = Talkative()  # type: ignore[assignment]  # stands for many alerts
    await pair.server.send_parts([b"x"], 5)
    assert await pair.client.receive_some() == b"x"
    with pytest.raises(ProxyError, match="without end"):
        await pair.client.receive_some()

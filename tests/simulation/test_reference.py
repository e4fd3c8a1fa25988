"""The reference parties themselves: what they must not let pass."""

from __future__ import annotations

import sys

import pytest
import trio
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from trioproxy.testing import Http2
from trioproxy.testing._accounts import AccountError, Windows
from trioproxy.testing._h2_reference import H2Peer
from trioproxy.testing._network import PLAIN, Network
from trioproxy.testing._secure import credentials

OK = b"\x88"  # ":status: 200"
SETTINGS = SettingsFrame(0)
HEAD = HeadersFrame(1, data=OK, flags=["END_HEADERS"])


async def told(*frames: Frame) -> list[str]:
    """Return what a client finds wrong with frames that a proxy sends it; it has asked once."""
    ours, theirs = Network().link("link", PLAIN, proxy_connects=False)
    found: list[str] = []
    peer = H2Peer(theirs, Http2(), client=True, found=found.append)
    peer.open([(b":method", b"GET"), (b":path", b"/")], end=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        data = b"".join(frame.serialize() for frame in frames)
        await ours.send_parts([data], 1.0)
        await ours.send_eof()
    return found


async def test_a_good_response_is_found_good() -> None:
    assert await told(SETTINGS, HEAD, DataFrame(1, data=b"x", flags=["END_STREAM"])) == []


@pytest.mark.parametrize(
    ("frames", "what"),
    [
        ([HEAD], "2: .* before SETTINGS"),
        ([SETTINGS, DataFrame(1, data=b"x")], "2: .* before a head"),
        ([SETTINGS, HEAD, HEAD], "2: trailers without the end"),
        ([SETTINGS, DataFrame(3, data=b"x")], "2: .* for an idle stream"),
        ([SETTINGS, HEAD, DataFrame(1, data=bytes(16385))], "2: a frame of 16385 bytes"),
        ([SETTINGS, HEAD, *[DataFrame(1, data=bytes(16384))] * 4], None),
        ([SETTINGS, HEAD, RstStreamFrame(1, error_code=8), HEAD], "2: .* behind RST_STREAM"),
        (
            [SETTINGS, HEAD, DataFrame(1, flags=["END_STREAM"]), DataFrame(1, data=b"x")],
            "2: .* behind the end",
        ),
        ([SETTINGS, PingFrame(0, opaque_data=b"whatever", flags=["ACK"])], "2: the answer to no"),
        ([SETTINGS, SettingsFrame(0, flags=["ACK"]), SettingsFrame(0, flags=["ACK"])], "2: an ack"),
        ([SETTINGS, WindowUpdateFrame(0, window_increment=2**31 - 1)], "10: a window of"),
        (
            [SETTINGS, GoAwayFrame(0, last_stream_id=1), GoAwayFrame(0, last_stream_id=3)],
            "2: the last stream",
        ),
        ([SETTINGS, GoAwayFrame(0, error_code=1)], "2: a GOAWAY with 1"),
        (
            [SETTINGS, HeadersFrame(1, data=OK + b"\x00\x01X\x01x", flags=["END_HEADERS"])],
            "2: a bad field",
        ),
    ],
)
async def test_what_a_proxy_may_not_send_is_found(frames: list[Frame], what: str | None) -> None:
    found = await told(*frames)
    if what is None:
        assert found == []
    else:
        assert len(found) == 1
        with pytest.raises(AssertionError, match=what):
            raise AssertionError(found[0])


def test_windows_follow_what_passes_padding_and_all() -> None:
    windows = Windows()
    windows.take(1, 1000)
    windows.give(0, 400)
    assert (windows.connection, windows.stream(1), windows.room(3)) == (64935, 64535, 64935)
    windows.set_initial(100)
    assert (windows.stream(1), windows.stream(3), windows.room(1)) == (-900, 100, -900)


@pytest.mark.parametrize("count", [0, 2**31 - 65535])
def test_a_window_that_goes_wrong_is_an_error(count: int) -> None:
    for number in (0, 1):
        with pytest.raises(AccountError):
            Windows().give(number, count)


def test_tls_needs_trustme_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(RuntimeError, match=r"trioproxy\[selfsigned\]"):
        credentials.__wrapped__()

"""What waits of a custom protocol's request or response: `Inbox`."""

from __future__ import annotations

import trio

from trioproxy import RequestHeader
from trioproxy._messages import END, Data
from trioproxy.streams._custom import JOINED, Inbox


async def test_pieces_of_content_are_joined_while_they_wait() -> None:
    await trio.lowlevel.checkpoint()
    inbox = Inbox()
    head = RequestHeader("POST", "/", [("Host", "a.test")])
    inbox.put(head)
    content = bytes(range(256)) * 40
    for byte in content:
        inbox.put(Data(bytes([byte])))
    inbox.put(END)
    assert inbox.queued == len(content)
    first, *events, last = inbox.take()
    assert (first, last) == (head, END)
    assert len(events) == len(content) / JOINED
    assert b"".join(event.data for event in events) == content
    assert inbox.queued == 0


async def test_large_pieces_are_left_as_they_came_and_an_end_ends_what_it_is_joined_to() -> None:
    await trio.lowlevel.checkpoint()
    inbox = Inbox()
    pieces = [b"a" * JOINED, b"b" * 5000, b"c", b"d"]
    inbox.put(RequestHeader("POST", "/", [("Host", "a.test")]))
    for number, piece in enumerate(pieces, 1):
        inbox.put(Data(piece, number == len(pieces)))
    assert inbox.take()[1:] == [Data(pieces[0]), Data(pieces[1]), Data(b"cd", True)]
    assert inbox.ended

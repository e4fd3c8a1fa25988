"""The client's request body as the engine reads it: once from the wire, again for every attempt."""

from __future__ import annotations

from typing import Protocol

from .._errors import ErrorType, ProxyError
from .._messages import END, Data, End, RequestEvent, Trailers
from ..streams._abc import DownstreamStream

#: Raw bytes kept for a second attempt; one byte more and the body cannot be replayed (Pingora).
RETRY_BUFFER = 65536
#: Pieces that are kept as they came: more of them become one, as each costs more than small bytes do.
PIECES = 128

BodyEvent = Data | Trailers | End


class Row(Protocol):
    """What makes of a body's events what goes on of them."""

    @property
    def more(self) -> bool:
        """Whether there is more of what was passed on already."""

    @property
    def lost(self) -> bool:
        """Whether something of it is gone, as one of them failed or was cancelled with it."""

    async def pass_on(self, events: list[BodyEvent]) -> list[BodyEvent]:
        """Return what becomes of events, or the first of it."""

    async def go_on(self) -> list[BodyEvent]:
        """Return the next of it."""


class RequestBody:
    """The raw body of one request, with the replay buffer in front of it.

    What was read stays in the buffer up to `RETRY_BUFFER` bytes, so that every attempt (and the
    first one, where a filter read before it) sees the body from its start. The buffer keeps the
    received objects themselves and copies nothing unless it is replayed, or came in many pieces.
    """

    __slots__ = (
        "_end_arrived",
        "_kept",
        "_pending",
        "_raw",
        "_replay",
        "_row",
        "_size",
        "_stream",
        "_trailers",
        "bytes_read",
        "done",
        "expected",
        "truncated",
    )

    def __init__(
        self, stream: DownstreamStream, expected: bool, pending: list[RequestEvent]
    ) -> None:
        self._stream = stream
        #: Whether the request has a body at all.
        self.expected = expected
        #: Whether its end was read from the stream.
        self.done = not expected
        #: Payload bytes read from the stream.
        self.bytes_read = 0
        #: Whether more was read than the buffer keeps, or a module has lost something of it.
        self.truncated = False
        self._pending: list[BodyEvent] = pending if expected else []  # type: ignore[assignment]
        #: The modules that the body goes through first, and what has not gone through them yet.
        self._row: Row | None = None
        self._raw: list[BodyEvent] = []
        self._end_arrived = False
        self._kept: list[bytes] = []
        self._size = 0
        self._trailers: Trailers | None = None
        self._replay = False

    @property
    def complete_and_pending(self) -> bool:
        """Whether the whole body lies decoded before us, none of it read yet."""
        pending = self._pending
        return bool(pending) and not self.bytes_read and _ends(pending[-1])

    @property
    def ended(self) -> bool:
        """Whether the body's end has arrived, read or not."""
        waiting = self._raw or self._pending
        return self.done or self._end_arrived or (bool(waiting) and _ends(waiting[-1]))

    @property
    def read_before(self) -> list[bytes] | None:
        """What was read from the stream so far, None where that is more than is kept."""
        return None if self.truncated else list(self._kept)

    @property
    def readable_now(self) -> bool:
        """Whether `next_batch` has something without waiting for the client."""
        if self._pending or self._raw or (self._row is not None and self._row.more):
            return True
        return self._replay and (bool(self._kept) or self.done)

    def go_through(self, row: Row) -> None:
        """Have modules see the body first; nothing of it was read yet."""
        self._row = row
        self._raw, self._pending = self._pending, []

    async def _arrived(self) -> list[BodyEvent]:
        """Return what came next, as the modules have made it.

        Raises:
          ProxyError: the client left, stalled, or its body is malformed; or something of it is lost.
        """
        row = self._row
        if row is None:
            return await self._stream.receive_batch()  # type: ignore[return-value]
        self._check_not_lost()
        try:
            while True:
                if row.more:
                    batch = await row.go_on()
                else:
                    if self._raw:
                        batch, self._raw = self._raw, []
                    else:
                        batch = await self._stream.receive_batch()  # type: ignore[assignment]
                    self.bytes_read += sum(
                        len(event.data) for event in batch if type(event) is Data
                    )
                    self._end_arrived = _ends(batch[-1])
                    batch = await row.pass_on(batch)
                if batch:
                    return batch
        except BaseException:
            if row.lost:  # nor can what came before be sent again, without what is missing
                self.truncated = True
                self._kept = []
            raise

    def _check_not_lost(self) -> None:
        if self._row is not None and self._row.lost:
            raise ProxyError.explain(
                ErrorType.InternalError,
                "a module was not through with a piece of the request's body, which is lost",
            ).into_in()

    def start_attempt(self) -> None:
        """Begin from the start of the body again.

        Raises:
          ProxyError: more was read than the buffer keeps, or something of it is lost.
        """
        if not self.bytes_read and not (self.done and self.expected):
            return
        self._check_not_lost()
        if self.truncated:
            raise ProxyError.explain(
                ErrorType.InternalError,
                f"more than {RETRY_BUFFER} bytes of the request's body were read already, "
                "which is more than can be sent again",
            ).into_in()
        self._replay = True

    async def whole(self) -> list[BodyEvent] | None:
        """Return the whole body, read to its end; None where that is more than is kept.

        Raises:
          ProxyError: the client left, stalled, or its body is malformed.
        """
        if not self.expected:
            return [END]
        if self.truncated or not (await self.peek(RETRY_BUFFER))[1]:
            return None
        while not self.done:
            await self._read()
        events: list[BodyEvent] = []
        if self._kept:
            events.append(Data(b"".join(self._kept), self._trailers is None))
        if self._trailers is not None:
            events += (self._trailers, END)
        return events or [END]

    async def next_batch(self) -> list[BodyEvent]:
        """Return the next events: the replayed ones first, as one chunk, then live ones."""
        if self._replay:
            self._replay = False
            batch: list[BodyEvent] = []
            whole = self.done and self._trailers is None
            if self._kept:
                batch.append(Data(b"".join(self._kept), whole))
            elif whole:
                batch.append(END)
            if self.done and self._trailers is not None:
                batch += (self._trailers, END)
            if batch:
                return batch
        return await self._read()

    async def _read(self) -> list[BodyEvent]:
        batch = self._pending
        if batch:
            self._pending = []
        else:
            batch = await self._arrived()
        for event in batch:
            kind = type(event)
            if kind is Data:
                data = event.data  # type: ignore[union-attr]
                if self._row is None:
                    self.bytes_read += len(data)
                if not self.truncated:
                    self._size += len(data)
                    if self._size > RETRY_BUFFER:
                        self.truncated = True
                        self._kept = []
                    else:
                        self._kept.append(data)
                        if len(self._kept) > PIECES:
                            self._kept = [b"".join(self._kept)]
                if event.end:  # type: ignore[union-attr]
                    self.done = True
            elif kind is Trailers:
                self._trailers = event  # type: ignore[assignment]
            else:
                self.done = True
        return batch

    async def peek(self, limit: int) -> tuple[bytes, bool]:
        """Return the body's first bytes, and whether they are all of it; consume nothing.

        Raises:
          ProxyError: more was read already than can be sent again, so that it has no start any more;
            or something of it is lost.
        """
        self._check_not_lost()
        if self.truncated:
            raise ProxyError.explain(
                ErrorType.InternalError,
                f"more than {RETRY_BUFFER} bytes of the request's body were read before it was "
                "peeked at",
            ).into_in()
        pending = self._pending
        size = self._size + sum(len(event.data) for event in pending if type(event) is Data)
        complete = self.done or (bool(pending) and _ends(pending[-1]))
        while not complete and size <= limit:
            for event in await self._arrived():
                pending.append(event)
                if type(event) is Data:
                    size += len(event.data)
            complete = _ends(pending[-1])
            if len(pending) > PIECES and not complete:
                pending[:] = _joined(pending)
        found = b"".join([*self._kept, *(event.data for event in pending if type(event) is Data)])
        if len(found) > limit:
            return found[:limit], False
        return found, complete

    async def read(self) -> bytes | None:
        """Return the next raw bytes for a filter that reads by itself, or None at the end."""
        while not self.done:
            batch = await self._read()
            data = b"".join([event.data for event in batch if type(event) is Data])
            if data:
                return data
        return None


class WholeBody:
    """A body that is all here, for one of several attempts at once."""

    __slots__ = ("_events",)

    #: See `RequestBody.readable_now`.
    readable_now = True

    def __init__(self, events: list[BodyEvent]) -> None:
        self._events = events

    async def next_batch(self) -> list[BodyEvent]:
        """Return all of its events."""
        return self._events


def _joined(events: list[BodyEvent]) -> list[BodyEvent]:
    """Return the same events, of a body that has not ended, with its content in one piece."""
    content = b"".join([event.data for event in events if type(event) is Data])
    return [Data(content), *[event for event in events if type(event) is not Data]]


def _ends(event: BodyEvent) -> bool:
    return event is END or (type(event) is Data and event.end)

"""The h2 library, tamed: the one place that knows its private parts, held to it by tests.

What h2 would make a connection error although RFC 9113 section 8.1.1 calls it a stream error
(content that does not fit its length, trailers without an end, a 1xx that ends its stream) passes
here, for `H2Codec` to judge. It never ends a connection by itself, and neither limits nor counts
streams.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
import h2.utilities
import hpack
from hyperframe.frame import WindowUpdateFrame

#: No frame that we send is larger, whatever the peer would take.
MAX_FRAME = 16384
#: Entries of our encoder's table, whatever the peer offers (row H2-06).
MAX_TABLE = 4096
#: Closed streams that are remembered (row R-08).
REMEMBERED = 1024
LARGEST_ID = 2**31 - 1


class _Stream(h2.stream.H2Stream):
    """A stream whose messages are judged by `semantics._h2`, not by h2."""

    def receive_headers(
        self, headers: Iterable[Any], end_stream: bool, header_encoding: Any
    ) -> tuple[list[Any], list[Any]]:
        machine = self.state_machine
        informational = (
            machine.client is True
            and not end_stream
            and h2.utilities.is_informational_response(headers)
        )
        events: list[Any] = machine.process_input(
            h2.stream.StreamInputs.RECV_INFORMATIONAL_HEADERS
            if informational
            else h2.stream.StreamInputs.RECV_HEADERS
        )
        event = events[0]
        event.headers = headers
        event.stream_ended = None
        if end_stream:
            event.stream_ended = machine.process_input(h2.stream.StreamInputs.RECV_END_STREAM)[0]
        return [], [event]

    def _track_content_length(self, length: int, end_stream: bool) -> None:
        """Leave the count to the adapter: a mismatch costs the stream alone (row H2-13)."""

    def _initialize_content_length(self, headers: Iterable[Any]) -> None:
        """Leave the length to the adapter."""


class _Encoder(hpack.Encoder):
    """Without Huffman codes, whose encoder takes time as the square of a value's size.

    64 KiB took it half a second, and a cookie of 4 KiB two milliseconds: more than all the rest.
    """

    def add(self, to_add: tuple[bytes, bytes], sensitive: bool, huffman: bool = False) -> bytes:
        return super().add(to_add, sensitive, False)


class Library(h2.connection.H2Connection):
    """A connection that never ends itself, and that takes no more of the peer's settings than we want."""

    MAX_CLOSED_STREAMS = REMEMBERED

    def __init__(self, *, server: bool, stream_window: int, max_list_bytes: int) -> None:
        """Make one end, with nothing in its output.

        Args:
          server: Which one.
          stream_window: Bytes that the peer may send on a stream before they are taken.
          max_list_bytes: Decoded bytes of a field list.
        """
        super().__init__(
            h2.config.H2Configuration(
                client_side=not server,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self.local_settings = h2.settings.Settings(
            client=not server,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: stream_window,
                # The limit is ours to enforce: h2 would end the connection (row H2-10).
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: LARGEST_ID,
            },
        )
        self.encoder = _Encoder()
        self.decoder.max_header_list_size = max_list_bytes
        self.initiate_connection()
        self.clear_outbound_data_buffer()  # what is said at first is not h2's matter either

    def write(self, data: bytes) -> None:
        """Put bytes of our own making into the output."""
        self._data_to_send += data

    @property
    def unsent(self) -> int:
        """Bytes in the output."""
        return len(self._data_to_send)

    def _begin_new_stream(self, stream_id: int, allowed_ids: Any) -> h2.stream.H2Stream:
        outbound = self._stream_id_is_outbound(stream_id)
        highest = self.highest_outbound_stream_id if outbound else self.highest_inbound_stream_id
        if stream_id <= highest:
            raise h2.exceptions.StreamIDTooLowError(stream_id, highest)
        if stream_id % 2 != int(allowed_ids):
            raise h2.exceptions.ProtocolError("Invalid stream ID for peer.")
        stream = _Stream(
            stream_id,
            config=self.config,
            inbound_window_size=self.local_settings.initial_window_size,
            outbound_window_size=self.remote_settings.initial_window_size,
        )
        stream.max_outbound_frame_size = min(self.max_outbound_frame_size, MAX_FRAME)
        self.streams[stream_id] = stream
        if outbound:
            self.highest_outbound_stream_id = stream_id
        else:
            self.highest_inbound_stream_id = stream_id
        return stream

    def _terminate_connection(self, error_code: Any) -> None:
        """Leave the GOAWAY to the adapter."""

    def _open_streams(self, remainder: int) -> int:
        """Count nothing: limits on streams are not h2's matter, and it would look at all of them."""
        return 0

    def _receive_settings_frame(self, frame: Any) -> tuple[list[Any], list[Any]]:
        settings = frame.settings
        table = settings.get(h2.settings.SettingCodes.HEADER_TABLE_SIZE)
        if table is not None and table > MAX_TABLE:
            settings[h2.settings.SettingCodes.HEADER_TABLE_SIZE] = MAX_TABLE
        return super()._receive_settings_frame(frame)

    def drop_data(self, length: int) -> None:
        """Take content of a stream that is no more: the connection's window alone has to know."""
        manager = self._inbound_flow_control_window_manager
        manager.window_consumed(length)
        increment = manager.process_bytes(length)
        if increment:
            frame = WindowUpdateFrame(0)
            frame.window_increment = increment
            self._prepare_for_sending([frame])

    def forget(self, stream_id: int) -> None:
        """Drop the state of a stream that is over, now and not when h2 next counts its streams."""
        stream = self.streams.get(stream_id)
        if stream is not None and stream.closed:
            del self.streams[stream_id]
            self._closed_streams[stream_id] = stream.closed_by

"""One line for each exchange that has ended, in common or JSON form, through ``logging``."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from ..proxy._filters import escaped
from ..proxy._record import ExchangeRecord
from ..semantics._forwarding import host_of
from ..stream._record import StreamRecord

#: The logger of the access log; `trioproxy.run` lets it write to standard output.
LOGGER = "trioproxy.access"


def common_line(record: ExchangeRecord) -> str:
    """Return a record in the Common Log Format."""
    moment = datetime.fromtimestamp(record.started_at, UTC).strftime("%d/%b/%Y:%H:%M:%S %z")
    target = escaped(record.target.decode("latin-1")).replace('"', "%22")
    sent = record.body_bytes_sent or "-"
    return (
        f'{host_of(record.client)} - - [{moment}] "{record.method} {target} {record.version}" '
        f"{record.status} {sent}"
    )


def json_line(record: ExchangeRecord) -> str:
    """Return a record as one JSON object."""
    return json.dumps(
        {
            "time": datetime.fromtimestamp(record.started_at, UTC).isoformat(
                timespec="milliseconds"
            ),
            "client": record.client,
            "method": record.method,
            "target": escaped(record.target.decode("latin-1")),
            "version": record.version,
            "status": record.status,
            "bytes_sent": record.body_bytes_sent,
            "bytes_received": record.body_bytes_received,
            "duration": round(record.duration, 6),
            "upstream": record.upstream,
            "error": record.error if record.error is None else escaped(record.error),
        },
        separators=(",", ":"),
    )


def common_stream_line(record: StreamRecord) -> str:
    """Return a stream in the Common Log Format: its way in the place of a request."""
    moment = datetime.fromtimestamp(record.started_at, UTC).strftime("%d/%b/%Y:%H:%M:%S %z")
    target = record.server_name or record.upstream or "-"
    return (
        f'{host_of(record.client)} - - [{moment}] "STREAM {escaped(target)} {record.protocol}" '
        f"{record.status} {record.bytes_sent or '-'}"
    )


def json_stream_line(record: StreamRecord) -> str:
    """Return a stream as one JSON object."""
    return json.dumps(
        {
            "time": datetime.fromtimestamp(record.started_at, UTC).isoformat(
                timespec="milliseconds"
            ),
            "client": record.client,
            "protocol": record.protocol,
            "server_name": record.server_name,
            "status": record.status,
            "bytes_sent": record.bytes_sent,
            "bytes_received": record.bytes_received,
            "duration": round(record.duration, 6),
            "upstream": record.upstream,
            "error": record.error if record.error is None else escaped(record.error),
        },
        separators=(",", ":"),
    )


class AccessLog:
    """Writes records to the access logger in one of the two forms."""

    def __init__(self, form: str) -> None:
        """Choose the form: ``"common"`` or ``"json"``."""
        self._line = json_line if form == "json" else common_line
        self._stream_line = json_stream_line if form == "json" else common_stream_line
        self._log = logging.getLogger(LOGGER)

    def write(self, record: ExchangeRecord) -> None:
        """Write one line."""
        self._log.info("%s", self._line(record))

    def write_stream(self, record: StreamRecord) -> None:
        """Write one line about a stream."""
        self._log.info("%s", self._stream_line(record))

"""What the server's side of every version of HTTP shares: its times, and whom it tells."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from .._info import ConnectionInfo
from ._abc import DownstreamStream

Handler = Callable[[DownstreamStream], Awaitable[None]]
#: Told of a request that was refused before any callback: its connection, the status, the reason.
OnRefused = Callable[[ConnectionInfo, int, str], None]
#: Told of a limit that bit: the name of the setting.
OnLimit = Callable[[str], None]


@attrs.frozen(kw_only=True)
class ServerOptions:
    """Times (seconds, `math.inf` for none) and rates (bytes a second, 0 for none) of a connection."""

    idle_timeout: float = 60.0
    body_timeout: float = 60.0
    write_timeout: float = 60.0
    drain_timeout: float = 2.0
    min_send_rate: float = 0.0
    min_receive_rate: float = 0.0
    server_name: bytes = b"trioproxy"


def settle(stream: DownstreamStream, options: ServerOptions) -> None:
    """Give an exchange that begins the settings of its connection; filters may change them."""
    stream.keepalive = options.idle_timeout
    stream.blame = None
    stream.abort_on_close = True
    stream.close_on_early_response = True
    stream.drain_timeout = options.drain_timeout
    stream.min_send_rate = options.min_send_rate
    stream.read_timeout = options.body_timeout
    stream.write_timeout = options.write_timeout

"""A tunnel through an HTTP CONNECT proxy, asked for on a fresh connection to it."""

from __future__ import annotations

import math

import trio

from .._errors import ErrorType, ProxyError
from .._messages import ResponseHeader
from .._peer import ConnectProxyError, HttpPeer, host_and_port
from ..codec._connect import ConnectReader, connect_request
from ..codec._h1 import HeadLimits
from ..codec._h1_codec import H1Codec
from ..semantics._framing import MessageRefused
from ..transport._byte_stream import ByteStream


async def open_tunnel(
    transport: ByteStream,
    peer: HttpPeer,
    limits: HeadLimits,
    codec: H1Codec,
    timeout: float,
    *,
    speaks_first: bool = False,
) -> tuple[ResponseHeader, bytes]:
    """Ask the proxy for a tunnel to the peer; return the head of its answer, and what is behind it.

    Args:
      transport: The connection to the proxy; whoever made it closes it when this raises.
      peer: Where the tunnel shall lead.
      limits: Bounds on the answer's head.
      codec: Parses it.
      timeout: Seconds for both request and answer.
      speaks_first: Whether the peer may speak before we do: else nothing may be behind the head.

    Raises:
      ProxyError: ConnectTimedout; ConnectProxyFailure, caused by a `ConnectProxyError`.
    """
    proxy = peer.proxy
    assert proxy is not None
    assert peer.host is not None
    assert peer.port is not None
    target = host_and_port(peer.host, peer.port)
    request = connect_request(target, (*proxy.headers, *peer.options.extra_proxy_headers))
    text = f"asking {proxy} for a tunnel to {target}"
    reader = ConnectReader(limits, codec, speaks_first=speaks_first)
    try:
        with trio.move_on_after(timeout) as scope:
            await transport.send_parts([request], math.inf)
            while True:
                data = await transport.receive_some()
                if not data:
                    raise _failure(text, "it closed the connection")
                if reader.feed(data):
                    break
    except MessageRefused as exc:
        raise _failure(text, str(exc), reader.response) from exc
    except ProxyError as exc:
        if exc.etype == ErrorType.ConnectProxyFailure:
            raise
        raise _failure(text, str(exc)) from exc
    response = reader.response
    if response is None or scope.cancelled_caught:
        raise ProxyError.explain(
            ErrorType.ConnectTimedout, f"{text}: no answer in {timeout:g} s"
        ).into_up()
    if not 200 <= response.status < 300:
        raise _failure(text, f"it answered {response.status}", response)
    return response, reader.behind


def _failure(text: str, why: str, response: ResponseHeader | None = None) -> ProxyError:
    cause = ConnectProxyError(why, response)
    return ProxyError.because(ErrorType.ConnectProxyFailure, text, cause).into_up()

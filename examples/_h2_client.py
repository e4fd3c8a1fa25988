"""One request over TLS and HTTP/2, for the demo: plain Trio and h2, with nothing of trioproxy."""

from __future__ import annotations

import ssl

import h2.connection
import h2.events
import trio


class NoHttp2(Exception):
    """ALPN did not agree on HTTP/2, or the answer broke off."""


async def get(url: str, target: str, trust: ssl.SSLContext) -> tuple[list[str], str]:
    """Send a GET, and return the answer's head as lines and its content.

    Raises:
      NoHttp2: it was not answered over HTTP/2.
      OSError: there is no connection.
      trio.BrokenResourceError: it broke, in the TLS handshake or later.
    """
    authority = url.removeprefix("https://")
    host, _, port = authority.rpartition(":")
    trust.set_alpn_protocols(["h2", "http/1.1"])
    async with await trio.open_ssl_over_tcp_stream(
        host, int(port), https_compatible=True, ssl_context=trust
    ) as stream:
        await stream.do_handshake()
        if (agreed := stream.selected_alpn_protocol()) != "h2":
            raise NoHttp2(f"ALPN agreed on {agreed}")
        http = h2.connection.H2Connection()
        http.initiate_connection()
        fields = [(":method", "GET"), (":scheme", "https")]
        fields += [(":authority", authority), (":path", target)]
        http.send_headers(1, fields, end_stream=True)
        head: list[str] = []
        content = b""
        while True:
            await stream.send_all(http.data_to_send())
            received = await stream.receive_some()
            if not received:
                raise NoHttp2("the connection ended before the answer")
            for event in http.receive_data(bytes(received)):
                if isinstance(event, h2.events.ResponseReceived):
                    (_, status), *rest = event.headers or []
                    head = [f"HTTP/2 {status.decode()}"]
                    head += [f"{name.decode()}: {value.decode('latin-1')}" for name, value in rest]
                elif isinstance(event, h2.events.DataReceived):
                    content += event.data or b""
                elif isinstance(event, h2.events.StreamReset):
                    raise NoHttp2(f"the stream was reset ({event.error_code})")
                elif isinstance(event, h2.events.StreamEnded):
                    return head, content.decode("latin-1")

"""gRPC-Web as its document has it (PROTOCOL-WEB.md), written from that alone."""

from __future__ import annotations

import base64
import re

from tests._support.recording import Message

BINARY = "application/grpc-web+proto"
TEXT = "application/grpc-web-text+proto"


def frame(message: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(message).to_bytes(4, "big") + message


def from_text(body: bytes) -> bytes:
    """Decode base64 that may be padded wherever its sender flushed."""
    assert len(body) % 4 == 0, body
    units = re.findall(rb"[A-Za-z0-9+/]+={0,2}", body)
    assert b"".join(units) == body
    return b"".join([base64.b64decode(unit, validate=True) for unit in units])


def unframe(content: bytes) -> tuple[list[bytes], dict[str, str] | None]:
    """Return the messages of a response's content, and its trailers if there are any."""
    messages: list[bytes] = []
    while content:
        flags, length = content[0], int.from_bytes(content[1:5], "big")
        assert len(content) >= 5 + length
        payload, content = content[5 : 5 + length], content[5 + length :]
        if flags == 0x80:
            assert not content, "something behind the trailers"
            assert payload.endswith(b"\r\n")
            lines = payload.decode("ascii").split("\r\n")[:-1]
            pairs = [line.split(":", 1) for line in lines]
            assert all(name == name.lower() for name, _ in pairs)
            return messages, {name: value.strip() for name, value in pairs}
        assert flags == 0
        messages.append(payload)
    return messages, None


def decoded(response: Message) -> tuple[list[bytes], dict[str, str] | None]:
    """Return messages and trailers of a response in either form."""
    kind = response.get("content-type") or ""
    text = kind.startswith("application/grpc-web-text")
    assert text or kind.startswith("application/grpc-web"), kind
    return unframe(from_text(response.body) if text else response.body)


def asked(kind: str, message: bytes) -> bytes:
    """Return the content of a request."""
    content = frame(message)
    return base64.b64encode(content) if "-text" in kind else content

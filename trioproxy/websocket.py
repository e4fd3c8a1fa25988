"""WebSockets whose messages are filtered one by one."""

from __future__ import annotations

from ._websocket import BinaryMessage as BinaryMessage
from ._websocket import TextMessage as TextMessage
from ._websocket import WebSocketOptions as WebSocketOptions

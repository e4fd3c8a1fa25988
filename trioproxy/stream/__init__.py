"""A proxy below HTTP: streams of bytes over TCP, TLS and unix sockets, with filters of their own."""

from __future__ import annotations

from ..codec._client_hello import ClientHello as ClientHello
from ._filters import ProxyStream as ProxyStream
from ._peer import StreamPeer as StreamPeer
from ._record import StreamRecord as StreamRecord
from ._session import StreamSession as StreamSession

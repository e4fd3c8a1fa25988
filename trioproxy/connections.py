"""What a connection is, before anything is spoken on it: who connects, who may, who announces whom."""

from __future__ import annotations

from ._connection_filter import ConnectionFilter as ConnectionFilter
from ._connection_filter import NetworkFilter as NetworkFilter
from ._info import ConnectionInfo as ConnectionInfo
from ._networks import Networks as Networks
from ._proxy_header import ProxyHeader as ProxyHeader
from ._proxy_header import ProxyTls as ProxyTls

"""What not every peer needs: local addresses, keep-alive, CONNECT proxies, certificates, tracers."""

from __future__ import annotations

from ._info import TcpInfo as TcpInfo
from ._info import TlsInfo as TlsInfo
from ._options import BindTo as BindTo
from ._options import CertKey as CertKey
from ._options import L4Connect as L4Connect
from ._options import TcpKeepalive as TcpKeepalive
from ._options import Tracer as Tracer
from ._peer import ConnectProxyError as ConnectProxyError
from ._peer import Proxy as Proxy

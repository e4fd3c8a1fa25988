"""Pingora's ``ProxyHttp`` trait as a structured-concurrency HTTP proxy framework on Trio."""

from __future__ import annotations

from inspect import get_annotations as _get_annotations

from ._backoff import backoff as backoff
from ._config import Listener as Listener
from ._config import ServerConf as ServerConf
from ._connect_target import ConnectRule as ConnectRule
from ._errors import ErrorSource as ErrorSource
from ._errors import ErrorType as ErrorType
from ._errors import ProxyError as ProxyError
from ._errors import RetryType as RetryType
from ._h2_limits import H2Limits as H2Limits
from ._headers import Headers as Headers
from ._info import Digest as Digest
from ._messages import BodyChunk as BodyChunk
from ._messages import RequestHeader as RequestHeader
from ._messages import ResponseHeader as ResponseHeader
from ._peer import HttpPeer as HttpPeer
from ._peer import PeerOptions as PeerOptions
from ._tls_settings import TlsSettings as TlsSettings
from ._version import __version__ as __version__
from .proxy._cached import CachingProxy as CachingProxy
from .proxy._compose import Chain as Chain
from .proxy._compose import Route as Route
from .proxy._filters import FailToProxy as FailToProxy
from .proxy._filters import ProxyHttp as ProxyHttp
from .proxy._session import Session as Session
from .server import Running as Running
from .server import run as run
from .server import serve as serve


def _publish(names: dict[str, object]) -> None:
    """Give public names their public path, which tracebacks, reprs and pickles then show.

    Annotations are evaluated before, for they can be only where their module's names are.
    """
    for name, value in names.items():
        if name.startswith("_") or not getattr(value, "__module__", "").startswith("trioproxy."):
            continue
        if isinstance(value, type) and "__annotations__" in vars(value):
            value.__annotations__ = _get_annotations(value, eval_str=True)
        value.__module__ = __name__


_publish(dict(globals()))

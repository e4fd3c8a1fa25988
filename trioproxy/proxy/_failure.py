"""From whatever was raised to the one error that matters, logged once, and the head that answers it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .._errors import ErrorSource, ErrorType, ProxyError, RetryType
from .._messages import ResponseHeader
from .._util import unwrap

if TYPE_CHECKING:
    from ._session import Session

log = logging.getLogger("trioproxy")


def as_proxy_error(exc: BaseException, session: Session, phase: str | None = None) -> ProxyError:
    """Return the `ProxyError` for an exception that left a callback or a stream.

    A `ProxyError` stays itself. Anything else is a mistake in a callback: it becomes an internal
    error with the exception as its cause, and its traceback is logged here, once.

    Args:
      exc: What was raised.
      session: Whose it is; its phase names the callback.
      phase: The callback's name, where the session's phase may be that of the other direction.
    """
    name = phase or session._phase or "a callback"
    exc = unwrap(exc)
    if isinstance(exc, ProxyError):
        return exc
    log.error("%s raised %s: %s", name, type(exc).__name__, exc, exc_info=exc)
    error = ProxyError.because(ErrorType.InternalError, f"{name} raised an exception", exc)
    error.esource = ErrorSource.INTERNAL
    error.retry = RetryType.Decided(False)
    return error


def log_failure(exc: Exception, session: Session) -> None:
    """Log what a callback that may not fail has raised; the session's phase names it.

    That a client left while it was being answered is nobody's mistake, and told elsewhere.
    """
    raised = unwrap(exc)
    if not (isinstance(raised, ProxyError) and raised.esource is ErrorSource.DOWNSTREAM):
        log.error(
            "%s raised %s: %s", session._phase, type(raised).__name__, raised, exc_info=raised
        )


def canned_head(server_name: str, code: int, body: bytes = b"") -> ResponseHeader:
    """Return the head of an answer made here, which no cache may keep."""
    head = ResponseHeader(
        int(code),
        [
            ("Server", server_name),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "private, no-store"),
        ],
    )
    if body:
        head.headers.add("Content-Type", "text/plain; charset=utf-8")
    return head

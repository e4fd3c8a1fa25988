"""From whatever was raised to the one error that matters, logged once, and the head that answers it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._callbacks import error_of, log_failure_of
from .._errors import ProxyError
from .._messages import ResponseHeader

if TYPE_CHECKING:
    from ._session import Session


def as_proxy_error(exc: BaseException, session: Session, phase: str | None = None) -> ProxyError:
    """Return the `ProxyError` for an exception that left a callback or a stream.

    A `ProxyError` stays itself. Anything else is a mistake in a callback: it becomes an internal
    error with the exception as its cause, and its traceback is logged here, once.

    Args:
      exc: What was raised.
      session: Whose it is; its phase names the callback.
      phase: The callback's name, where the session's phase may be that of the other direction.
    """
    return error_of(exc, phase or session._phase or "a callback")


def log_failure(exc: Exception, session: Session) -> None:
    """Log what a callback that may not fail has raised; the session's phase names it.

    That a client left while it was being answered is nobody's mistake, and told elsewhere.
    """
    log_failure_of(exc, session._phase)


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

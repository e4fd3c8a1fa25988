"""The one error of the proxy: what went wrong, on whose side, and whether to try again."""

from __future__ import annotations

import enum
from http import HTTPStatus as _HTTPStatus
from typing import ClassVar

import attrs


class ErrorSource(enum.Enum):
    """On whose side an error arose (Pingora's ``ErrorSource``)."""

    UPSTREAM = "Upstream"
    DOWNSTREAM = "Downstream"
    INTERNAL = "Internal"
    UNSET = ""


@attrs.frozen
class ErrorType:
    """What kind of error it is (Pingora's ``ErrorType``): compare with ``==``.

    The plain kinds are attributes of the class; `HTTPStatus` and `Custom` make kinds that carry a
    value.

    Attributes:
      name: The kind's name.
      code: The status of an `HTTPStatus`, the number of a custom kind with one, else None.
      custom: Whether it is a `Custom` kind: one that happens to be named ``HTTPStatus`` is still
        no HTTP status.
    """

    name: str
    code: int | None = None
    custom: bool = attrs.field(default=False, kw_only=True, repr=False)

    ConnectTimedout: ClassVar[ErrorType]
    ConnectRefused: ClassVar[ErrorType]
    ConnectNoRoute: ClassVar[ErrorType]
    ConnectError: ClassVar[ErrorType]
    ConnectProxyFailure: ClassVar[ErrorType]
    BindError: ClassVar[ErrorType]
    AcceptError: ClassVar[ErrorType]
    SocketError: ClassVar[ErrorType]
    TLSWantX509Lookup: ClassVar[ErrorType]
    TLSHandshakeFailure: ClassVar[ErrorType]
    TLSHandshakeTimedout: ClassVar[ErrorType]
    InvalidCert: ClassVar[ErrorType]
    HandshakeError: ClassVar[ErrorType]
    InvalidHTTPHeader: ClassVar[ErrorType]
    H1Error: ClassVar[ErrorType]
    H2Error: ClassVar[ErrorType]
    H2Downgrade: ClassVar[ErrorType]
    InvalidH2: ClassVar[ErrorType]
    ReadError: ClassVar[ErrorType]
    WriteError: ClassVar[ErrorType]
    ReadTimedout: ClassVar[ErrorType]
    WriteTimedout: ClassVar[ErrorType]
    ConnectionClosed: ClassVar[ErrorType]
    FileOpenError: ClassVar[ErrorType]
    FileCreateError: ClassVar[ErrorType]
    FileReadError: ClassVar[ErrorType]
    FileWriteError: ClassVar[ErrorType]
    InternalError: ClassVar[ErrorType]
    UnknownError: ClassVar[ErrorType]
    InvalidChunk: ClassVar[ErrorType]
    InvalidTrailerEnd: ClassVar[ErrorType]
    PrematureBodyEnd: ClassVar[ErrorType]
    IncompleteHttpBody: ClassVar[ErrorType]
    ResponseTooLarge: ClassVar[ErrorType]
    PingTimedout: ClassVar[ErrorType]
    CompressionError: ClassVar[ErrorType]

    @staticmethod
    def HTTPStatus(code: int) -> ErrorType:
        """Return the kind that stands for an HTTP status (an int or `http.HTTPStatus`)."""
        code = int(code)
        if not 100 <= code <= 999:
            raise ValueError(f"{code} is not an HTTP status: 100 to 999 are")
        return ErrorType("HTTPStatus", code)

    @staticmethod
    def Custom(name: str, code: int | None = None) -> ErrorType:
        """Return a kind of your own, with a number where it needs one."""
        return ErrorType(name, code, custom=True)

    def __str__(self) -> str:
        return self.name if self.code is None else f"{self.name} (code: {self.code})"


# What the seed predefines as Custom kinds.
_CUSTOM = {
    "InvalidChunk",
    "InvalidTrailerEnd",
    "PrematureBodyEnd",
    "IncompleteHttpBody",
    "PingTimedout",
    "CompressionError",
}
for _name in ErrorType.__annotations__:
    if _name not in ("name", "code", "custom"):
        setattr(ErrorType, _name, ErrorType(_name, custom=_name in _CUSTOM))
ErrorType.ResponseTooLarge = ErrorType.Custom("response too large")


@attrs.frozen
class RetryType:
    """Whether an attempt that failed may be repeated (Pingora's ``RetryType``).

    Attributes:
      decided: True or False once it is settled, None while it depends on whether the connection
        was a reused one.
    """

    decided: bool | None

    ReusedOnly: ClassVar[RetryType]

    @staticmethod
    def Decided(retry: bool) -> RetryType:
        """Return the settled mark."""
        return _YES if retry else _NO

    def retry(self) -> bool:
        """Return the settled answer.

        Raises:
          RuntimeError: nobody has settled it; see `decide_reuse`.
        """
        if self.decided is None:
            raise RuntimeError("the retry mark is still ReusedOnly: call decide_reuse() first")
        return self.decided

    def decide_reuse(self, reused: bool) -> RetryType:
        """Return the mark, settled to ``reused`` where it was open."""
        return RetryType.Decided(reused) if self.decided is None else self


_YES = RetryType(True)
_NO = RetryType(False)
RetryType.ReusedOnly = RetryType(None)
# Equal to Decided(False), but not the same object: nobody has set a mark, so a cause's counts.
_UNMARKED = RetryType(False)


@attrs.define(eq=False, slots=False, str=False)
class ProxyError(Exception):
    """The error of every filter and every stream (Pingora's ``Error``).

    Attributes:
      etype: What kind it is.
      esource: On whose side it arose.
      retry: Whether the attempt may be repeated. Where it is not given, the mark of a cause that
        is a `ProxyError` is taken over, else it is ``Decided(False)``.
      context: What was being done, for the log.
      cause: The error behind it.
    """

    etype: ErrorType
    esource: ErrorSource = ErrorSource.UNSET
    retry: RetryType = _UNMARKED
    context: str | None = None
    cause: BaseException | None = None

    def __attrs_post_init__(self) -> None:
        self.args = (self.etype,)
        cause = self.cause
        if cause is not None:
            self.__cause__ = cause
        if self.retry is _UNMARKED:
            self.retry = cause.retry if isinstance(cause, ProxyError) else _NO

    # -- constructors ----------------------------------------------------------------------------

    @classmethod
    def new(cls, etype: ErrorType) -> ProxyError:
        """Return an error of unset source."""
        return cls(etype)

    @classmethod
    def new_up(cls, etype: ErrorType) -> ProxyError:
        """Return an error of the upstream."""
        return cls(etype, ErrorSource.UPSTREAM)

    @classmethod
    def new_down(cls, etype: ErrorType) -> ProxyError:
        """Return an error of the downstream."""
        return cls(etype, ErrorSource.DOWNSTREAM)

    @classmethod
    def new_in(cls, etype: ErrorType) -> ProxyError:
        """Return an internal error."""
        return cls(etype, ErrorSource.INTERNAL)

    @classmethod
    def explain(cls, etype: ErrorType, context: str) -> ProxyError:
        """Return an error with its context."""
        return cls(etype, context=context)

    @classmethod
    def because(cls, etype: ErrorType, context: str, cause: BaseException) -> ProxyError:
        """Return an error with its context and cause; it inherits the cause's retry mark."""
        return cls(etype, context=context, cause=cause)

    @classmethod
    def status(cls, code: int | _HTTPStatus, context: str | None = None) -> ProxyError:
        """Return the error by which a filter refuses: ``raise ProxyError.status(403)``."""
        return cls(ErrorType.HTTPStatus(int(code)), context=context)

    def more_context(self, context: str) -> ProxyError:
        """Return a new error around this one: same kind, source and mark, this one its cause."""
        return type(self)(self.etype, self.esource, self.retry, context, self)

    # -- source ----------------------------------------------------------------------------------

    def as_up(self) -> None:
        """Set the source to upstream."""
        self.esource = ErrorSource.UPSTREAM

    def as_down(self) -> None:
        """Set the source to downstream."""
        self.esource = ErrorSource.DOWNSTREAM

    def as_in(self) -> None:
        """Set the source to internal."""
        self.esource = ErrorSource.INTERNAL

    def into_up(self) -> ProxyError:
        """Set the source to upstream and return the error."""
        self.esource = ErrorSource.UPSTREAM
        return self

    def into_down(self) -> ProxyError:
        """Set the source to downstream and return the error."""
        self.esource = ErrorSource.DOWNSTREAM
        return self

    def into_in(self) -> ProxyError:
        """Set the source to internal and return the error."""
        self.esource = ErrorSource.INTERNAL
        return self

    # -- retry -----------------------------------------------------------------------------------

    def set_retry(self, retry: bool) -> None:
        """Settle whether the attempt may be repeated."""
        self.retry = RetryType.Decided(retry)

    def decide_reuse(self, reused: bool) -> None:
        """Settle an open mark: repeat where the connection was a reused one."""
        self.retry = self.retry.decide_reuse(reused)

    def will_retry(self) -> bool:
        """Return the settled mark.

        Raises:
          RuntimeError: it is not settled.
        """
        return self.retry.retry()

    # -- looking ---------------------------------------------------------------------------------

    def root_cause(self) -> BaseException:
        """Return the innermost error of the chain, perhaps this one."""
        error: BaseException = self
        while isinstance(error, ProxyError) and error.cause is not None:
            error = error.cause
        return error

    def root_etype(self) -> ErrorType:
        """Return the kind of the innermost `ProxyError` of the chain."""
        error: ProxyError = self
        while isinstance(error.cause, ProxyError):
            error = error.cause
        return error.etype

    def __str__(self) -> str:
        text: list[str] = []
        error: BaseException | None = self
        previous: ProxyError | None = None
        while isinstance(error, ProxyError):
            part: list[str] = []
            if previous is None or error.esource is not previous.esource:
                part.append(error.esource.value)
            if previous is None or error.etype != previous.etype:
                part.append(str(error.etype))
            if error.context is not None:
                part.append(f"context: {error.context}")
            words = " ".join(each for each in part if each)
            if words:
                text.append(words)
            previous, error = error, error.cause
        if error is not None:
            text.append(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        return " cause: ".join(text)

from __future__ import annotations

import http
import pickle

import pytest

from trioproxy import ErrorSource, ErrorType, ProxyError, RetryType

PLAIN = [
    "ConnectTimedout",
    "ConnectRefused",
    "ConnectNoRoute",
    "ConnectError",
    "ConnectProxyFailure",
    "BindError",
    "AcceptError",
    "SocketError",
    "TLSWantX509Lookup",
    "TLSHandshakeFailure",
    "TLSHandshakeTimedout",
    "InvalidCert",
    "HandshakeError",
    "InvalidHTTPHeader",
    "H1Error",
    "H2Error",
    "H2Downgrade",
    "InvalidH2",
    "ReadError",
    "WriteError",
    "ReadTimedout",
    "WriteTimedout",
    "ConnectionClosed",
    "FileOpenError",
    "FileCreateError",
    "FileReadError",
    "FileWriteError",
    "InternalError",
    "UnknownError",
]
PREDEFINED = {
    "InvalidChunk": "InvalidChunk",
    "InvalidTrailerEnd": "InvalidTrailerEnd",
    "PrematureBodyEnd": "PrematureBodyEnd",
    "IncompleteHttpBody": "IncompleteHttpBody",
    "ResponseTooLarge": "response too large",
    "PingTimedout": "PingTimedout",
    "CompressionError": "CompressionError",
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_kind_has_its_name_and_no_code(name: str) -> None:
    kind: ErrorType = getattr(ErrorType, name)
    assert (kind.name, kind.code, str(kind)) == (name, None, name)
    assert kind != ErrorType.Custom(name)


@pytest.mark.parametrize("attribute", PREDEFINED)
def test_a_predefined_custom_kind_equals_one_made_by_hand(attribute: str) -> None:
    assert getattr(ErrorType, attribute) == ErrorType.Custom(PREDEFINED[attribute])


def test_there_are_no_other_kinds() -> None:
    kinds = {name for name in vars(ErrorType) if isinstance(getattr(ErrorType, name), ErrorType)}
    assert kinds == {*PLAIN, *PREDEFINED}


def test_kinds_with_a_value_compare_by_value() -> None:
    assert ErrorType.HTTPStatus(403) == ErrorType.HTTPStatus(http.HTTPStatus.FORBIDDEN)
    assert ErrorType.HTTPStatus(403) != ErrorType.HTTPStatus(404)
    assert ErrorType.Custom("a") == ErrorType.Custom("a") != ErrorType.Custom("b")
    assert ErrorType.Custom("a", 1) != ErrorType.Custom("a", 2) != ErrorType.Custom("a")
    assert len({ErrorType.HTTPStatus(403), ErrorType.HTTPStatus(403), ErrorType.ReadError}) == 2


def test_a_custom_kind_never_passes_for_a_status() -> None:
    assert ErrorType.Custom("HTTPStatus", 200) != ErrorType.HTTPStatus(200)


def test_kinds_show_their_value() -> None:
    assert str(ErrorType.HTTPStatus(403)) == "HTTPStatus (code: 403)"
    assert str(ErrorType.Custom("mine", 7)) == "mine (code: 7)"
    assert str(ErrorType.Custom("mine")) == "mine"


@pytest.mark.parametrize("code", [0, 99, 1000, -1])
def test_a_status_outside_100_to_999_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match="100 to 999"):
        ProxyError.status(code)


def test_a_filter_refuses_with_an_int_or_an_http_status() -> None:
    error = ProxyError.status(403)
    assert error.etype == ErrorType.HTTPStatus(403)
    assert error.esource is ErrorSource.UNSET
    assert error.context is None
    error = ProxyError.status(http.HTTPStatus.NOT_FOUND, "no such thing")
    assert error.etype == ErrorType.HTTPStatus(404)
    assert type(error.etype.code) is int
    assert error.context == "no such thing"


def test_the_constructors_set_the_source() -> None:
    kind = ErrorType.ReadError
    made = {
        ErrorSource.UNSET: ProxyError.new(kind),
        ErrorSource.UPSTREAM: ProxyError.new_up(kind),
        ErrorSource.DOWNSTREAM: ProxyError.new_down(kind),
        ErrorSource.INTERNAL: ProxyError.new_in(kind),
    }
    for source, error in made.items():
        assert (error.etype, error.esource, error.context, error.cause) == (
            kind,
            source,
            None,
            None,
        )
        assert error.retry == RetryType.Decided(False)


def test_explain_has_a_context_and_because_a_cause_too() -> None:
    error = ProxyError.explain(ErrorType.H1Error, "reading")
    assert (error.etype, error.context, error.cause) == (ErrorType.H1Error, "reading", None)
    cause = OSError("gone")
    error = ProxyError.because(ErrorType.H1Error, "reading", cause)
    assert error.cause is cause
    assert error.__cause__ is cause
    assert error.esource is ErrorSource.UNSET


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("up", ErrorSource.UPSTREAM),
        ("down", ErrorSource.DOWNSTREAM),
        ("in", ErrorSource.INTERNAL),
    ],
)
def test_as_mutates_and_into_returns_the_same_error(word: str, source: ErrorSource) -> None:
    error = ProxyError.new(ErrorType.ReadError)
    assert getattr(error, f"as_{word}")() is None
    assert error.esource is source
    error = ProxyError.new(ErrorType.ReadError)
    assert getattr(error, f"into_{word}")() is error
    assert error.esource is source


MARKS = [RetryType.Decided(True), RetryType.Decided(False), RetryType.ReusedOnly]


@pytest.mark.parametrize("mark", MARKS)
def test_more_context_wraps_with_the_same_kind_source_and_mark(mark: RetryType) -> None:
    inner = ProxyError(ErrorType.ReadError, ErrorSource.UPSTREAM, mark, "inner")
    outer = inner.more_context("outer")
    assert outer is not inner
    assert (outer.etype, outer.esource, outer.retry) == (inner.etype, inner.esource, mark)
    assert (outer.context, outer.cause, inner.context) == ("outer", inner, "inner")


@pytest.mark.parametrize("mark", MARKS)
def test_a_new_error_inherits_the_mark_of_a_proxy_error(mark: RetryType) -> None:
    cause = ProxyError(ErrorType.ReadError, retry=mark)
    assert ProxyError.because(ErrorType.H1Error, "x", cause).retry == mark


def test_a_mark_that_is_given_stands_whatever_the_cause_has() -> None:
    cause = ProxyError(ErrorType.ReadError, retry=RetryType.Decided(True))
    error = ProxyError(ErrorType.H1Error, retry=RetryType.Decided(False), cause=cause)
    assert error.will_retry() is False


def test_another_cause_means_no_retry() -> None:
    assert ProxyError.because(ErrorType.H1Error, "x", OSError()).will_retry() is False


def test_decide_reuse_touches_only_an_open_mark() -> None:
    for reused in (True, False):
        assert RetryType.ReusedOnly.decide_reuse(reused) == RetryType.Decided(reused)
        for mark in (RetryType.Decided(True), RetryType.Decided(False)):
            assert mark.decide_reuse(reused) == mark
        error = ProxyError(ErrorType.ReadError, retry=RetryType.ReusedOnly)
        error.decide_reuse(reused)
        assert error.will_retry() is reused


def test_an_open_mark_cannot_be_read() -> None:
    error = ProxyError(ErrorType.ReadError, retry=RetryType.ReusedOnly)
    with pytest.raises(RuntimeError, match="decide_reuse"):
        error.will_retry()
    with pytest.raises(RuntimeError, match="decide_reuse"):
        RetryType.ReusedOnly.retry()


def test_set_retry_settles_the_mark() -> None:
    error = ProxyError(ErrorType.ReadError, retry=RetryType.ReusedOnly)
    error.set_retry(True)
    assert error.will_retry() is True
    error.set_retry(False)
    assert error.will_retry() is False


def test_root_cause_and_root_etype_look_to_the_end_of_the_chain() -> None:
    root = OSError("gone")
    inner = ProxyError.because(ErrorType.ReadError, "inner", root)
    outer = ProxyError.because(ErrorType.H1Error, "outer", inner)
    assert outer.root_cause() is root
    assert outer.root_etype() == ErrorType.ReadError
    alone = ProxyError.new(ErrorType.H2Error)
    assert alone.root_cause() is alone
    assert alone.root_etype() == ErrorType.H2Error


def test_printing_names_source_kind_context_and_cause() -> None:
    error = ProxyError.because(ErrorType.ReadError, "reading", OSError("gone")).into_up()
    assert str(error) == "Upstream ReadError context: reading cause: OSError: gone"
    assert str(ProxyError.new(ErrorType.ReadError)) == "ReadError"
    assert str(ProxyError.because(ErrorType.ReadError, "x", KeyError())) == (
        "ReadError context: x cause: KeyError"
    )


def test_printing_omits_a_source_and_kind_that_repeat_along_the_chain() -> None:
    inner = ProxyError.explain(ErrorType.ReadError, "inner").into_up()
    assert str(inner.more_context("outer")) == (
        "Upstream ReadError context: outer cause: context: inner"
    )
    other_kind = ProxyError.because(ErrorType.H1Error, "outer", inner).into_up()
    assert str(other_kind) == "Upstream H1Error context: outer cause: ReadError context: inner"
    other_source = ProxyError.because(ErrorType.ReadError, "outer", inner).into_down()
    assert str(other_source) == (
        "Downstream ReadError context: outer cause: Upstream context: inner"
    )
    # A kind counts as repeated only against the one right above it.
    third = ProxyError.because(ErrorType.ReadError, "top", other_kind).into_up()
    assert str(third) == (
        "Upstream ReadError context: top cause: H1Error context: outer "
        "cause: ReadError context: inner"
    )


def test_an_error_is_an_exception_that_compares_by_identity_and_pickles() -> None:
    error = ProxyError.explain(ErrorType.HTTPStatus(403), "no").into_down()
    assert error != ProxyError.explain(ErrorType.HTTPStatus(403), "no").into_down()
    assert len({error, error}) == 1
    again = pickle.loads(pickle.dumps(error))
    assert (again.etype, again.context, str(again)) == (error.etype, "no", str(error))

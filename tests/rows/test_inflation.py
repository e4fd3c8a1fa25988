"""Row R-10: content that becomes much larger when it is decoded."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from trio.testing import MockClock

from tests._support.coding import ENCODE
from tests._support.matrix import H1, H2C, Exchange, Pairing, open_matrix
from tests._support.recording import CutError, Recorder
from trioproxy import ErrorSource, ErrorType
from trioproxy.modules import (
    HttpModules,
    InflationLimits,
    RequestDecompressionBuilder,
    ResponseCompressionBuilder,
)

pairings = pytest.mark.parametrize(
    "pairing", [Pairing(down, up) for down in (H1, H2C) for up in (H1, H2C)], ids=str
)
codings = pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
MIB = 1 << 20
#: 42 MB of nothing, in 42 kB and less.
BOMB = bytes(42_000_000)


@attrs.define(eq=False, slots=False)
class Decoding(Recorder):
    """Decodes both ways."""

    limits: InflationLimits = attrs.field(factory=InflationLimits)

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(RequestDecompressionBuilder(limits=self.limits))
        modules.add_module(ResponseCompressionBuilder(decompress=True, limits=self.limits))


async def _response(
    recorder: Decoding, coding: str, body: bytes, pairing: Pairing
) -> tuple[int, Any]:
    """Return how much of a response arrived, and the error that was left."""

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [("content-encoding", coding)])
        await exchange.send_data(body, end=True)

    async with open_matrix(recorder, origin, pairing, check_windows=False) as gateway:
        try:
            size = len((await gateway.exchange()).body)
        except CutError as cut:
            size = 0 if cut.message is None else len(cut.message.body)
    return size, recorder.the("logging").args["e"]


@pairings
@codings
async def test_r_10_a_response_that_is_a_bomb_is_aborted(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    body = ENCODE[coding](BOMB)
    assert len(body) < 42_000
    size, error = await _response(Decoding(), coding, body, pairing)
    assert size <= max(MIB, 100 * len(body))
    assert (error.etype, error.esource) == (ErrorType.CompressionError, ErrorSource.UPSTREAM)
    assert "100 times" in str(error)


@pairings
@codings
async def test_r_10_a_request_that_is_a_bomb_gets_413(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    taken = 0

    async def origin(exchange: Exchange) -> None:
        nonlocal taken
        with pytest.raises(CutError) as caught:
            await exchange.message()
        taken = len(caught.value.message.body) if caught.value.message is not None else 0

    recorder = Decoding()
    body = ENCODE[coding](BOMB)
    async with open_matrix(recorder, origin, pairing, check_windows=False) as gateway:
        got = await gateway.exchange("POST", fields=[("content-encoding", coding)], body=body)
        assert got.status == 413
    assert taken <= max(MIB, 100 * len(body))
    error = recorder.the("logging").args["e"]
    assert (error.etype, error.esource) == (ErrorType.HTTPStatus(413), ErrorSource.DOWNSTREAM)


@codings
async def test_r_10_the_size_is_limited_whatever_the_ratio(
    coding: str, autojump_clock: MockClock
) -> None:
    recorder = Decoding(limits=InflationLimits(ratio=1_000_000, size=3 * MIB))
    pairing = Pairing(H1, H1)
    size, error = await _response(recorder, coding, ENCODE[coding](bytes(3 * MIB + 1)), pairing)
    assert size <= 3 * MIB
    assert "more than 3145728 bytes" in str(error)
    recorder = Decoding(limits=InflationLimits(ratio=1_000_000, size=3 * MIB))
    size, error = await _response(recorder, coding, ENCODE[coding](bytes(3 * MIB)), pairing)
    assert (size, error) == (3 * MIB, None)


@codings
async def test_r_10_the_first_mib_may_be_anything(coding: str, autojump_clock: MockClock) -> None:
    size, error = await _response(Decoding(), coding, ENCODE[coding](bytes(MIB)), Pairing(H1, H1))
    assert (size, error) == (MIB, None)


def test_r_10_the_limits_are_those_that_are_documented() -> None:
    limits = InflationLimits()
    assert (limits.ratio, limits.free, limits.size) == (100, MIB, 64 * MIB)


async def test_r_10_one_layer_only(autojump_clock: MockClock) -> None:
    """What is coded twice is not touched in a response, and refused in a request."""
    twice = ENCODE["gzip"](ENCODE["gzip"](BOMB))
    size, error = await _response(Decoding(), "gzip, gzip", twice, Pairing(H1, H1))
    assert (size, error) == (len(twice), None)

    async def origin(exchange: Exchange) -> None:
        await exchange.message()

    async with open_matrix(Decoding(), origin, Pairing(H1, H1)) as gateway:
        fields = [("content-encoding", "gzip, gzip")]
        assert (await gateway.exchange("POST", fields=fields, body=twice)).status == 415

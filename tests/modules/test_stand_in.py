"""A response that stands in for one that a module has refused: nothing of the first is left in it."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from tests._support.grpc_web import TEXT
from tests._support.matrix import H1, H2C, Pairing, answers, open_matrix
from tests.modules._modular import Modular
from trioproxy import FailToProxy, ProxyError, ResponseHeader, Session
from trioproxy.modules import BodyGuard, GrpcWeb, HttpModule, HttpModuleBuilder, SseFilter

SORRY = b"not today"


class Refusing(HttpModule):
    """Refuses what comes from the origin, behind all the others."""

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        if response.status == 200:
            raise ProxyError.status(502, "refused")


class RefusingBuilder(HttpModuleBuilder):
    order = -10
    module_type = Refusing

    def init(self) -> Refusing:
        return Refusing()


async def says_sorry(session: Session, error: ProxyError, ctx: Any) -> FailToProxy:
    fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(SORRY)))]
    await session.write_response_header(ResponseHeader(502, fields))
    await session.write_response_body(SORRY, end_of_stream=True)
    return FailToProxy(502)


@pytest.mark.parametrize(
    ("module", "asks", "kind"),
    [
        (SseFilter(lambda session, event: event), "text/plain", "text/event-stream"),
        (GrpcWeb(), TEXT, "application/grpc"),
        (BodyGuard(max_response_bytes=10), "text/plain", "text/plain"),
    ],
    ids=["events", "gRPC-Web", "guard"],
)
@pytest.mark.parametrize("down", [H1, H2C], ids=str)
async def test_what_a_callback_writes_in_place_of_a_refused_response_comes_whole(
    down: Any, module: HttpModuleBuilder, asks: str, kind: str, autojump_clock: MockClock
) -> None:
    proxy = Modular(builders=[module, RefusingBuilder()], hooks={"fail_to_proxy": says_sorry})
    origin = answers(200, [("content-type", kind)], b"data: x")
    async with open_matrix(proxy, origin, Pairing(down, H2C)) as gateway:
        response = await gateway.exchange("POST", "/a.B/C", [("content-type", asks)], body=b"")
    assert (response.status, response.body) == (502, SORRY)

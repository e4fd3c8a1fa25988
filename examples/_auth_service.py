"""A service that forward_auth asks: who has the cookie "session" is let on, others are to log in.

python examples/_auth_service.py 127.0.0.1:9001
"""

from __future__ import annotations

import sys

import attrs
import trio

import trioproxy
from trioproxy import HttpPeer, ProxyError, ResponseHeader, Session

SESSIONS = {"session=of-ann": "ann"}


@attrs.define
class AuthService(trioproxy.ProxyHttp[None]):
    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        user = SESSIONS.get(session.get_header("cookie") or "")
        if user is not None:
            answer = ResponseHeader(204, {"x-user": user})
        else:
            wanted = session.get_header("x-forwarded-uri")
            answer = ResponseHeader(302, {"location": f"https://login.example/?to={wanted}"})
        await session.write_response_header(answer, end_of_stream=True)
        return True

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise ProxyError.status(404)


async def serve(
    bind: str = "127.0.0.1:9001",
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with trio.open_nursery() as nursery:
        running = await nursery.start(trioproxy.serve, AuthService(), bind)
        task_status.started(running.urls[0])


if __name__ == "__main__":
    trio.run(lambda: serve(*sys.argv[1:]))

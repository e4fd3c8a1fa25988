"""The second origin of a scenario: what it gets is a copy, and what it does is felt by nobody."""

from __future__ import annotations

import trio

from .._errors import ProxyError
from ._network import End
from ._proxy import number_of
from ._reference import CutError, MalformedError, Message, Wire, blocks
from ._scenario import Shadow
from ._stage import Stage

ANSWER = b"HTTP/1.1 200 Mirrored\r\nContent-Length: 5\r\n\r\nnever"


async def serve_shadow(stage: Stage, end: End, plan: Shadow) -> None:
    """Serve one connection, which carries one request."""
    try:
        with trio.move_on_after(plan.leaves if plan.leaves is not None else 1000):
            if plan.reads is not None:
                left = plan.reads
                while left > 0 and (data := await end.receive_some(left)):
                    left -= len(data)
                await trio.sleep(1000)
            wire = Wire(end)
            message = await wire.head()
            await wire.body(message)
            _check(stage, message)
            await trio.sleep(plan.wait)
            await wire.send(ANSWER[:-3] if plan.cut else ANSWER)
            if not plan.cut:
                await wire.idle_end()
    except (CutError, ProxyError, trio.ClosedResourceError):
        pass
    except MalformedError as exc:
        stage.problem(f"5: the mirror cannot read what the proxy sent: {exc}")
    finally:
        end.close_now()


def _check(stage: Stage, message: Message) -> None:
    """Check that a copy which came whole is the request that it copies."""
    number = number_of(message.start.split(b" ")[1])
    request = stage.by_number.get(number)
    if request is None:
        stage.problem(f"5: the mirror got a request that nobody sent: {message.start!r}")
        return
    sent = blocks(b"q", number, 0, request.blocks)
    if bytes(message.body) != sent:
        stage.problem(
            f"3: the mirror got {len(message.body)} bytes of request {number}, not {len(sent)}"
        )

"""What is asked for, and how often it came back: values that the bench's processes share."""

from __future__ import annotations

import attrs

SMALL_BODY = b"Hello, world!\n"
HIT_BODY = b"Hello, cache!\n"
LARGE_BODY = bytes(range(256)) * 4096  # 1 MiB


@attrs.frozen
class Workload:
    """A kind of request.

    Attributes:
      name: As the table shows it.
      target: Its request target.
      body: What the origin answers.
      connections: Client connections, each with one request at a time.
    """

    name: str
    target: str
    body: bytes
    connections: int


SMALL = Workload("small", "/small", SMALL_BODY, 32)
#: The same, for what a trait costs that does nothing.
IDLE = Workload("idle", "/small", SMALL_BODY, 32)
#: What a cache may keep.
HIT = Workload("hit", "/hit", HIT_BODY, 32)
LARGE = Workload("1 MiB", "/large", LARGE_BODY, 8)


@attrs.frozen
class Measurement:
    """What a load client saw through one target in one round.

    Attributes:
      rate: Whole responses a second.
      cpu: Microseconds of the proxy's processor time a response, None where that is not known.
    """

    rate: float
    cpu: float | None = None

"""The origin ends idle connections at random, in hundreds of exchanges."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trioproxy.testing import (
    Answer,
    Client,
    Link,
    Path,
    Request,
    Scenario,
    check_invariants,
    run_scenario,
)


def scenario(seed: int) -> Scenario:
    choose: Callable[[Sequence[Any]], Any] = random.Random(seed).choice

    def request() -> Request:
        method = choose(("GET", "POST"))
        after = choose(("keep", "drop", "drop"))
        return Request(
            method,
            blocks=choose((1, 30)) if method == "POST" else 0,
            wait=choose((0.0, 0.005, 0.01, 0.02)),
            answers=(Answer(after=after, after_wait=choose((0.0, 0.005, 0.01))),),
        )

    return Scenario(
        tuple(Client(tuple(request() for _ in range(25))) for _ in range(4)),
        # The origin's end takes time to arrive: until then the proxy cannot know.
        origin_links=(Link(back=Path(latency=0.005)),) * 100,
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_get_always_succeeds_and_a_post_is_never_sent_twice(seed: int) -> None:
    observed = run_scenario(scenario(seed))
    check_invariants(observed)

    arrived = Counter(each.number for each in observed.received)
    for number, asked in observed.asked.items():
        final = asked.final
        assert final is not None
        if asked.request.method == "GET":
            assert final.status == 200
            assert final.get(b"x-answer") is not None
        else:
            assert final.status in (200, 502)
            assert arrived[number] <= 1
    # Requests did meet connections that had just been ended: some were repeated, some not.
    names = [call.name for ctx in observed.contexts for call in ctx.calls]
    assert names.count("error_while_proxy") > 3
    assert names.count("connected_to_upstream") > len(observed.asked)
    assert any(
        each.final is not None and each.final.status == 502 for each in observed.asked.values()
    )

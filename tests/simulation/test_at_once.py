"""Mirrors and hedged requests in the proving ground: no client feels them, and nothing is left.

The small scenarios are ended at their steps in every way that the proving ground knows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from tests._support.steps import some_steps
from trioproxy import BodyChunk, Session
from trioproxy.proxy._hedge import Race
from trioproxy.subrequests import MirrorModule
from trioproxy.subrequests._mirror import _Tee
from trioproxy.testing import (
    Answer,
    Client,
    Filter,
    Name,
    Request,
    Scenario,
    Shadow,
    check_invariants,
    make_scenario,
    run_scenario,
)
from trioproxy.testing._invariants import broken
from trioproxy.testing._world import DEEDS

POST = Request("POST", blocks=64, chunked=True)
HEDGE = Filter("request_filter", "hedge", 0.05)
SLOW = Request(answers=(Answer(wait=1.0), Answer(blocks=3)))

SMALL = {
    "mirrored": Scenario((Client((POST, Request())),), shadow=Shadow()),
    "mirrored to who is slow": Scenario((Client((POST,)),), shadow=Shadow(wait=3.0)),
    "mirrored to who never reads": Scenario((Client((POST,)),), shadow=Shadow(reads=0)),
    "mirrored to who leaves": Scenario(
        (Client((POST, Request())),), shadow=Shadow(wait=1.0, leaves=0.05)
    ),
    "mirrored to nobody": Scenario((Client((POST,)),), shadow=Shadow(refuses=True)),
    "hedged, and the second wins": Scenario((Client((SLOW, Request())),), filters=(HEDGE,)),
    "hedged over HTTP/2": Scenario(
        (Client((SLOW, Request())),),
        filters=(HEDGE,),
        names=(Name("origin.test", "192.0.2.20", "h2c"),),
    ),
    "hedged and mirrored": Scenario(
        (Client((attrs.evolve(SLOW, method="PUT", blocks=8),)),),
        filters=(HEDGE,),
        shadow=Shadow(wait=0.1),
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_s_09_they_can_be_ended_at_each_step(name: str) -> None:
    scenario = SMALL[name]
    plain = run_scenario(scenario)
    check_invariants(plain)
    assert [each.outcome for each in plain.asked.values()] == ["complete"] * len(plain.asked)
    for step in some_steps(plain.steps, 15):
        for deed in DEEDS:
            check_invariants(run_scenario(scenario, step=step, deed=deed))


@pytest.mark.parametrize("seed", range(8))
def test_s_09_a_session_of_a_seed_is_mirrored_and_hedged(seed: int) -> None:
    source = random.Random(seed)
    scenario = make_scenario(source.choice, seed)
    scenario = attrs.evolve(
        scenario,
        filters=(*scenario.filters, HEDGE),
        shadow=Shadow(wait=source.choice((0.0, 3.0, 200.0)), cut=source.choice((False, True))),
    )
    check_invariants(run_scenario(scenario))


def test_a_seed_makes_them_up_too() -> None:
    made = [make_scenario(random.Random(seed).choice, seed) for seed in range(60)]
    assert any(each.shadow is not None for each in made)
    assert any(each.do == "hedge" for scenario in made for each in scenario.filters)


def durations(scenario: Scenario) -> list[float]:
    """Return how long each request took, and what came of it."""
    observed = run_scenario(scenario)
    check_invariants(observed)
    return [round(ctx.ended - ctx.began, 6) for ctx in observed.contexts]


MIRRORED = [name for name, scenario in SMALL.items() if scenario.shadow is not None]


@pytest.mark.parametrize("name", MIRRORED)
def test_s_09_a_mirror_costs_the_client_no_time(name: str) -> None:
    scenario = SMALL[name]
    assert durations(scenario) == durations(attrs.evolve(scenario, shadow=None))


def test_a_mirror_that_costs_time_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits(
        self: MirrorModule, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        await trio.sleep(0.5)

    monkeypatch.setattr(MirrorModule, "request_body_filter", waits)
    scenario = SMALL["mirrored"]
    assert durations(scenario) != durations(attrs.evolve(scenario, shadow=None))


# -- planted bugs --------------------------------------------------------------------------------


def lose_a_piece(patch: pytest.MonkeyPatch) -> None:
    """The copy misses what came while the mirror was behind."""
    put = _Tee.put

    def patched(self: _Tee, data: bytes) -> bool:
        return True if self._pieces else put(self, data)

    patch.setattr(_Tee, "put", patched)


def end_what_was_cut(patch: pytest.MonkeyPatch) -> None:
    """A body that was cut is sent on as if it were whole."""

    def patched(self: MirrorModule, session: Session) -> None:
        if self._tee is not None:
            self._tee.end()
        self._answered.set()

    patch.setattr(MirrorModule, "response_done_filter", patched)


def keep_the_loser(patch: pytest.MonkeyPatch) -> None:
    """The connection of the attempt that lost stays on lease."""
    run = Race.run

    async def patched(self: Race, peer: Any) -> Any:
        pool = self._engine.services.pool
        take_back = pool.take_back
        patch.setattr(pool, "take_back", lambda _slot: None)
        try:
            return await run(self, peer)
        finally:
            patch.setattr(pool, "take_back", take_back)

    patch.setattr(Race, "run", patched)


Plant = Callable[[pytest.MonkeyPatch], None]
CUT = Scenario(
    (Client((Request("POST", blocks=64, chunked=True, stops=100),), leaves=1.0),), shadow=Shadow()
)
LONG = Scenario((Client((Request("POST", blocks=20000, chunked=True),)),), shadow=Shadow())

PLANTED: dict[Plant, tuple[Scenario, str]] = {
    lose_a_piece: (LONG, "3: the mirror got"),
    end_what_was_cut: (CUT, "3: the mirror got"),
    keep_the_loser: (SMALL["hedged, and the second wins"], "4:"),
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, expected = PLANTED[plant]
    assert broken(run_scenario(scenario)) == []
    plant(monkeypatch)
    found = broken(run_scenario(scenario))
    assert any(each.startswith(expected) for each in found), found

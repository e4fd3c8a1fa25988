"""The proving ground with the cache on: a selection. ``nox -s fuzz`` runs it for long."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trioproxy.testing
from trioproxy._messages import RequestHeader
from trioproxy.cache import CacheKey, CacheMeta, SharedPolicy, default_cache_key
from trioproxy.cache._lock import _Core
from trioproxy.cache._memory import MemoryHitHandler, MemoryMissHandler
from trioproxy.testing import (
    Ask,
    CacheClient,
    CacheScenario,
    Deed,
    Http2,
    Resource,
    cache_broken,
    check_cached,
    make_cache_scenario,
    run_cached,
)
from trioproxy.testing._world import DEEDS

Plant = Callable[[pytest.MonkeyPatch], None]


@st.composite
def scenarios(draw: st.DrawFn) -> CacheScenario:
    """Draw the choices of which `make_cache_scenario` makes one."""
    return make_cache_scenario(
        lambda options: draw(st.sampled_from(options)), draw(st.integers(0, 99))
    )


@settings(max_examples=settings().max_examples // 4)
@given(scenarios())
def test_whatever_is_asked_what_is_served_was_sent_for_it_and_is_fresh(
    scenario: CacheScenario,
) -> None:
    check_cached(run_cached(scenario))


def test_sessions_of_a_seed_serve_what_was_sent_and_use_all_that_a_cache_does() -> None:
    phases: dict[str, int] = {}
    evictions = 0
    for seed in range(20):
        observed = run_cached(make_cache_scenario(random.Random(seed).choice, seed))
        check_cached(observed)
        evictions += observed.evictions
        for phase, count in observed.phases.items():
            phases[phase] = phases.get(phase, 0) + count
    assert {"hit", "miss", "revalidated", "expired", "stale", "stale-updating"} <= set(phases)
    assert evictions


# -- the sweeps ----------------------------------------------------------------------------------

SMALL = {
    "a miss that others wait for": CacheScenario(
        (
            CacheClient((Ask(),)),
            CacheClient((Ask(), Ask(wait=0.1)), start=0.1),
            CacheClient((Ask(ranges=((0, 9),)),), start=0.1),
        ),
        (Resource(max_age=60, deeds=(Deed(wait=0.2, pause=0.5),)),),
    ),
    "streams of one connection that want one thing": CacheScenario(
        (CacheClient((Ask(), Ask(wait=0.1), Ask(ranges=((0, 9),))), http2=Http2(window=50)),),
        (Resource(max_age=60, chunked=True, deeds=(Deed(wait=0.2, pause=0.5),)),),
    ),
    "a renewal behind what is stale": CacheScenario(
        (
            CacheClient((Ask(), Ask(wait=5.0), Ask(wait=0.3))),
            CacheClient((Ask(kind="b"),), start=5.0),
        ),
        (
            Resource(
                max_age=3,
                behind=30,
                etag="strong",
                vary="x-kind",
                deeds=(Deed(), Deed(pause=0.1)),
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("deed", DEEDS)
def test_it_can_be_ended_at_its_steps_and_leaves_no_lock_and_no_part(name: str, deed: str) -> None:
    scenario = SMALL[name]
    whole = run_cached(scenario)
    check_cached(whole)
    assert whole.steps > 40
    stride = max(1, whole.steps // 12)
    for step in range(1, whole.steps + 1, stride):
        try:
            check_cached(run_cached(scenario, step=step, deed=deed))
        except AssertionError as exc:
            exc.add_note(f"{deed} at step {step}")
            raise


# -- planted bugs --------------------------------------------------------------------------------


def store_on_short_body(patch: pytest.MonkeyPatch) -> None:
    def abandon(self: MemoryMissHandler) -> None:
        if not self._done:
            self._done = True
            self._shelf.complete(self._entry)

    patch.setattr(MemoryMissHandler, "abandon", abandon)


def serve_beyond_freshness(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CacheMeta, "is_fresh", lambda self, now: now < self.fresh_until + 5)


def ignore_vary(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SharedPolicy, "variance", lambda self, meta, request: None)


def forget_the_key(patch: pytest.MonkeyPatch) -> None:
    """The target is left out of the key."""

    def constant(request: RequestHeader) -> CacheKey:
        return attrs.evolve(default_cache_key(request), primary=b"all the same")

    patch.setattr("trioproxy.proxy._cached.default_cache_key", constant)


def keep_what_was_changed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SharedPolicy, "invalidates", lambda self, request, response: [])


def serve_an_error_for_stale(patch: pytest.MonkeyPatch) -> None:
    """What may never be served stale is, where the origin fails."""
    patch.setattr(CacheMeta, "may_serve_stale_if_error", lambda self, now: True)


def lose_the_age(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CacheMeta, "age", lambda self, now: 0)


def never_let_go_of_a_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Core, "end", lambda self, status: None)


def never_close_a_reader(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryHitHandler, "close_now", lambda self: None)
    patch.setattr(MemoryHitHandler, "__del__", lambda self: None)


@attrs.frozen
class Planted:
    """A bug, a scenario that is well without it, and a part of what is found with it."""

    plant: Plant
    scenario: CacheScenario
    finds: str


def asks(*each: Ask, resources: tuple[Resource, ...] = (Resource(max_age=60),)) -> CacheScenario:
    """Return a scenario of one client."""
    return CacheScenario((CacheClient(each),), resources)


PLANTED = [
    Planted(
        store_on_short_body,
        asks(
            Ask(),
            Ask(wait=1.0),
            resources=(Resource(max_age=60, chunked=True, blocks=50, deeds=(Deed(cut=700),)),),
        ),
        "as all of",
    ),
    Planted(
        store_on_short_body,
        asks(
            Ask(),
            Ask(ranges=((None, 9),), wait=1.0),
            resources=(Resource(max_age=60, blocks=50, deeds=(Deed(cut=700),)),),
        ),
        "9: ",
    ),
    Planted(
        serve_beyond_freshness,
        asks(Ask(), Ask(wait=11.0), resources=(Resource(max_age=10),)),
        "it is fresh for 10",
    ),
    Planted(
        ignore_vary,
        asks(
            Ask(kind="a"),
            Ask(kind="b", wait=1.0),
            resources=(Resource(max_age=60, vary="x-kind"),),
        ),
        "got the variant 'a'",
    ),
    Planted(
        forget_the_key,
        asks(Ask(), Ask(1, wait=1.0), resources=(Resource(max_age=60), Resource(max_age=60))),
        "belongs to resource 0",
    ),
    Planted(
        keep_what_was_changed,
        asks(Ask(), Ask(method="PUT", wait=1.0), Ask(wait=1.0)),
        "from before the change",
    ),
    Planted(
        serve_an_error_for_stale,
        asks(
            Ask(),
            Ask(wait=9.0),
            resources=(Resource(max_age=3, flags=("must-revalidate",), deeds=(Deed(), Deed(503))),),
        ),
        "it is fresh for 3",
    ),
    Planted(lose_the_age, asks(Ask(), Ask(wait=9.0)), "got Age 0"),
    Planted(
        never_let_go_of_a_lock,
        asks(Ask(), Ask(quits=0.5, wait=1.0), resources=(Resource(deeds=(Deed(cut=9),) * 9),)),
        "a lock without an owner",
    ),
    Planted(
        never_close_a_reader,
        attrs.evolve(
            asks(Ask(), Ask(method="PUT"), resources=(Resource(max_age=60, blocks=9),)),
            clients=(
                CacheClient((Ask(), Ask(slow=1.0))),
                CacheClient((Ask(method="PUT"),), start=0.5),
            ),
        ),
        "not at rest",
    ),
]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda each: each.plant.__name__)
def test_a_planted_bug_of_a_cache_is_caught(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_cached(run_cached(planted.scenario))

    planted.plant(monkeypatch)
    found = cache_broken(run_cached(planted.scenario))
    assert any(planted.finds in each for each in found), found


# -- a scenario as a value -----------------------------------------------------------------------


def test_a_scenario_with_a_cache_prints_as_the_program_that_runs_it() -> None:
    scenario = make_cache_scenario(random.Random(4).choice, 4)
    namespace: dict[str, Any] = {}
    exec(compile(scenario.script(), "script", "exec"), namespace)
    assert eval(repr(scenario), vars(trioproxy.testing)) == scenario

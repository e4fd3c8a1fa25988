"""The proving ground as the suite runs it: a selection. ``nox -s fuzz`` runs it for long."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trioproxy.testing
from trioproxy.testing import (
    Answer,
    Client,
    Fault,
    Filter,
    Link,
    Name,
    Path,
    Request,
    Scenario,
    check_invariants,
    make_scenario,
    run_scenario,
    shrink,
)
from trioproxy.testing._world import DEEDS


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Draw the choices of which `make_scenario` makes one; the first of each is the simplest."""
    return make_scenario(lambda options: draw(st.sampled_from(options)), draw(st.integers(0, 99)))


@settings(max_examples=settings().max_examples // 4)
@given(scenarios())
def test_whatever_happens_the_invariants_hold(scenario: Scenario) -> None:
    check_invariants(run_scenario(scenario))


@pytest.mark.parametrize("tens", range(5))
def test_sessions_of_a_seed_hold_the_invariants(tens: int) -> None:
    for seed in range(tens * 10, tens * 10 + 10):
        check_invariants(run_scenario(make_scenario(random.Random(seed).choice, seed)))


# -- the sweeps ----------------------------------------------------------------------------------

SMALL = {
    "two requests on one connection": Scenario((Client((Request(), Request())),)),
    "an upload and a chunked answer with a trailer": Scenario(
        (
            Client(
                (
                    Request(
                        "POST",
                        blocks=64,
                        chunked=True,
                        answers=(Answer(blocks=3, framing="chunked", trailer=True, infos=(103,)),),
                    ),
                )
            ),
        ),
        filters=(
            Filter("request_body_filter", seconds=0.01),
            Filter("response_body_filter", seconds=0.01),
            Filter("logging", seconds=0.01),
        ),
    ),
    "an early answer while the client uploads": Scenario(
        (
            Client(
                (Request("POST", blocks=5000, answers=(Answer(413, early=True, wait=0.01),)),),
                link=Link(out=Path(capacity=8192)),
            ),
        ),
    ),
    "a stale connection, a refused one and a retry": Scenario(
        (Client((Request(), Request(wait=0.1, answers=(Answer(cut=0), Answer())))),),
        connects=("ok", "refused"),
        filters=(Filter("fail_to_connect", "retry"),),
    ),
    "two clients that wait for one connection": Scenario(
        (Client((Request(answers=(Answer(wait=0.1),)),)), Client((Request(),), end="half-close")),
        per_peer=1,
    ),
}
#: What is swept at every step.
WHOLE = ("two requests on one connection", "cancel", "leave")
small = pytest.mark.parametrize("name", SMALL)


@small
@pytest.mark.parametrize("deed", DEEDS)
def test_it_can_be_ended_at_its_steps(name: str, deed: str) -> None:
    scenario = SMALL[name]
    whole = run_scenario(scenario)
    check_invariants(whole)
    assert whole.steps > 40

    # Every step of one small exchange; of the others some, and all in the long run.
    stride = 1 if name in WHOLE and deed in WHOLE else max(1, whole.steps // 11)
    for step in range(1, whole.steps + 1, stride):
        try:
            check_invariants(run_scenario(scenario, step=step, deed=deed))
        except AssertionError as exc:
            exc.add_note(f"{deed} at step {step}")
            raise


@small
def test_each_of_its_stream_operations_may_fail(name: str) -> None:
    scenario = SMALL[name]
    operations = run_scenario(scenario).operations
    assert operations >= 8
    for number in range(1, operations + 1):
        check_invariants(run_scenario(attrs.evolve(scenario, fail_operation=number)))


# -- what it has found ---------------------------------------------------------------------------

FOUND = {
    "no 408 to an idle client whose unread body was dropped": Scenario(
        (Client((Request("POST", blocks=4845), Request(wait=25.0)), pipelined=True, slow=0.3),),
        filters=(Filter(do="keep"),),
    ),
    "a half-close while the first filter runs waits for what that filter says": Scenario(
        (Client((Request(),), pipelined=True, fin=True, link=Link(out=Path(pieces=(39,)))),),
        filters=(Filter(do="stay"), Filter("early_request_filter")),
        seed=501246,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str) -> None:
    observed = run_scenario(FOUND[name])
    check_invariants(observed)
    assert {each.outcome for each in observed.asked.values()} == {"complete"}


# -- a scenario as a value -----------------------------------------------------------------------


def test_a_scenario_prints_as_the_program_that_runs_it() -> None:
    scenario = make_scenario(random.Random(4).choice, 4)
    program = scenario.script()
    namespace: dict[str, Any] = {}
    exec(compile(program, "script", "exec"), namespace)
    assert namespace["Scenario"] is Scenario
    assert eval(repr(scenario), vars(trioproxy.testing)) == scenario


def test_a_scenario_shrinks_to_what_fails() -> None:
    scenario = Scenario(
        (Client(), Client((Request(), Request("POST", blocks=64, answers=(Answer(cut=400),))))),
        origin_links=(Link(back=Path(latency=0.05, fault=Fault("stall", 20, 3.0))),),
        filters=(Filter("logging"),),
    )
    smallest = shrink(scenario, lambda each: any(r.method == "POST" for _, _, r in each.requests()))
    assert smallest == Scenario((Client((Request("POST"),)),))


def test_an_attempt_takes_the_next_name_where_one_cannot_be_looked_up() -> None:
    scenario = Scenario(
        clients=(Client(requests=(Request(),)),),
        names=(Name("origin.test"), Name("second.test", "192.0.2.21")),
        filters=(Filter("fail_to_connect", "retry"),),
    )
    observed = run_scenario(scenario)
    check_invariants(observed)
    asked = observed.asked[0]
    assert asked.final is not None
    assert asked.final.status == 200
    assert [call.name for call in observed.contexts[0].calls].count("upstream_peer") == 2


def test_a_name_that_nobody_knows_is_502() -> None:
    scenario = Scenario(clients=(Client(requests=(Request(),)),), names=(Name("origin.test"),))
    observed = run_scenario(scenario)
    check_invariants(observed)
    asked = observed.asked[0]
    assert asked.final is not None
    assert asked.final.status == 502

"""The proving ground as the suite runs it: a selection. ``nox -s fuzz`` runs it for long."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trioproxy.testing
from tests._support.steps import some_steps
from trioproxy.testing import (
    Answer,
    Change,
    Client,
    Fault,
    Filter,
    GoAway,
    Http2,
    Link,
    Name,
    Path,
    Request,
    Reset,
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


@pytest.mark.parametrize("seed", range(10))
def test_a_session_of_a_seed_holds_the_invariants(seed: int) -> None:
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
SMALL |= {
    "two streams at once over TLS on both sides": Scenario(
        (
            Client(
                (Request(), Request("POST", blocks=64, answers=(Answer(framing="chunked"),))),
                pipelined=True,
                http2=Http2(window=300, pad=5),
            ),
        ),
        names=(Name("origin.test", "192.0.2.20", "h2-tls"),),
        origin_http2=(Http2(window=500, pad=9),),
        secure=True,
    ),
    "a disowned stream, a refused one and a reset one": Scenario(
        (
            Client(
                (
                    Request("POST", blocks=64, answers=(Answer(cut=0, code=7), Answer())),
                    Request("POST", blocks=9, answers=(Answer(wait=0.1),)),
                    Request(reset=Reset(frames=1), answers=(Answer(blocks=9000),)),
                ),
                pipelined=True,
                http2=Http2(),
            ),
        ),
        names=(Name("origin.test", "192.0.2.20", "h2c"),),
        origin_http2=(Http2(goaway=GoAway(frames=6, last=1)),),
    ),
}
#: What is swept at more steps.
WHOLE = ("two requests on one connection", "cancel", "leave")
small = pytest.mark.parametrize("name", SMALL)


@small
@pytest.mark.parametrize("deed", DEEDS)
def test_it_can_be_ended_at_its_steps(name: str, deed: str) -> None:
    scenario = SMALL[name]
    whole = run_scenario(scenario)
    check_invariants(whole)
    assert whole.steps > 40

    # More steps of one small exchange than of the others.
    stride = 3 if name in WHOLE and deed in WHOLE else whole.steps // 4
    for step in some_steps(whole.steps, stride):
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
    for number in some_steps(operations, max(1, operations // 9)):
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
    "the origin of another version is asked once where it wants the version that it refuses": Scenario(
        (Client((Request("POST", answers=(Answer(cut=0, code=13),)),)),),
        names=(Name("origin.test", "192.0.2.20", "h2c"),),
    ),
    "what a client sends before the answer goes through the tunnel, its end too": Scenario(
        (
            Client(
                (
                    Request(
                        blocks=1098,
                        chunked=True,
                        upgrade=True,
                        protocol="websocket",
                        answers=(Answer(101, framing="close", wait=0.1),),
                    ),
                ),
                http2=Http2(),
                end="half-close",
                link=Link(out=Path(latency=0.001)),
            ),
        ),
    ),
    "a connection that turns out to take nothing is no reason to fail": Scenario(
        (Client((Request(upgrade=True, answers=(Answer(101, framing="close"),)),), http2=Http2()),),
        names=(Name("origin.test", "192.0.2.20", "h2c"),),
        origin_http2=(Http2(connect=True, changes=(Change(streams=0),)), Http2(connect=True)),
    ),
    "an offer that HTTP/2 has no word for is left out": Scenario(
        (Client((Request(upgrade=True, answers=(Answer(101, framing="close"),)),)),),
        names=(Name("origin.test", "192.0.2.20", "h2c"),),
        origin_http2=(Http2(connect=True),),
    ),
    "what a filter has made of an answer that was tried again is nothing that was sent": Scenario(
        (Client((Request(answers=(Answer(), Answer(blocks=0))),)),),
        filters=(
            Filter("response_body_filter", do="fail"),
            Filter("error_while_proxy", do="retry"),
        ),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str) -> None:
    observed = run_scenario(FOUND[name])
    check_invariants(observed)
    assert {each.outcome for each in observed.asked.values()} == {"complete"}


# -- pairings ------------------------------------------------------------------------------------

VERSIONS: tuple[Any, ...] = ("h1", "h1-tls", "h2c", "h2-tls")


def paired(down: str, up: Any, *requests: Request) -> Scenario:
    """Return a scenario of one client in which each side speaks its version."""
    http2 = Http2(window=9000, pad=30) if down.startswith("h2") else None
    return Scenario(
        (Client(requests, pipelined=True, http2=http2),),
        names=(Name("origin.test", "192.0.2.20", up),),
        origin_http2=(Http2(window=5000, more=20000, pad=200, connect=True),),
        secure=down.endswith("tls"),
    )


@pytest.mark.parametrize("up", VERSIONS)
@pytest.mark.parametrize("down", VERSIONS)
def test_each_pairing_carries_a_message_both_ways_and_does_the_same_again(
    down: str, up: str
) -> None:
    answer = Answer(blocks=5000, framing="chunked", trailer=True, infos=(103,))
    scenario = paired(down, up, Request(), Request("POST", blocks=5000, answers=(answer,)))
    observed = run_scenario(scenario)

    check_invariants(observed)
    asked = observed.asked[1]
    assert asked.outcome == "complete"
    assert asked.interim == [103]
    assert asked.final is not None
    assert len(asked.final.body) == 80000
    assert [name for name, _ in asked.final.trailers] == [b"x-sum"]
    assert [len(each.head.body) for each in observed.received if each.number == 1] == [80000]
    assert run_scenario(scenario).trace == observed.trace


@pytest.mark.parametrize("up", VERSIONS)
@pytest.mark.parametrize("down", VERSIONS)
def test_each_pairing_carries_a_tunnel(down: str, up: str) -> None:
    request = Request(
        upgrade=True,
        protocol="websocket",
        blocks=2000,
        answers=(Answer(101, blocks=3000, framing="close"),),
    )
    observed = run_scenario(paired(down, up, request))

    check_invariants(observed)
    asked = observed.asked[0]
    assert asked.outcome == "complete"
    assert asked.final is not None
    assert asked.final.status == (200 if down.startswith("h2") else 101)
    assert len(asked.final.body) == 48000
    assert len(observed.received[0].head.body) == 32000


@pytest.mark.parametrize("leave", ["truncate", "close"])
def test_a_body_that_ends_with_its_connection_ends_by_close_notify(leave: Any) -> None:
    answer = Answer(blocks=9, framing="close", cut=170, leave=leave)
    observed = run_scenario(paired("h1", "h1-tls", Request(answers=(answer,))))
    check_invariants(observed)
    assert observed.asked[0].outcome == ("cut" if leave == "truncate" else "complete")


def test_the_certificate_of_another_is_502() -> None:
    observed = run_scenario(paired("h2-tls", "stranger", Request()))
    check_invariants(observed)
    asked = observed.asked[0]
    assert asked.final is not None
    assert asked.final.status == 502
    assert [call.note for call in observed.contexts[0].calls][-1] == "InvalidCert"
    assert not observed.received[:-1]


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

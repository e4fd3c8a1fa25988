"""The long run: session after session, each from its number alone.

A third of them are run once more, with a deed done before one of their steps. Every fourth has a
cache.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence

import attrs

from .._clock import wall_time
from ._cache_oracle import cache_broken
from ._cache_scenario import CacheScenario, make_cache_scenario
from ._cache_world import CacheObserved, run_cached
from ._invariants import broken
from ._making import make_scenario, shrink
from ._observed import Observed
from ._scenario import Scenario
from ._world import DEEDS, run_scenario

#: Failures that end a run.
ENOUGH = 5


@attrs.frozen
class Failure:
    """A session that broke an invariant, made small.

    Attributes:
      seed: Its number.
      found: What is broken.
      script: A program that shows it.
    """

    seed: int
    found: list[str]
    script: str


def _make(source: random.Random, seed: int) -> Scenario | CacheScenario:
    make = make_cache_scenario if seed % 4 == 3 else make_scenario
    return make(source.choice, seed)


def _run(scenario: Scenario | CacheScenario, step: int, deed: str) -> Observed | CacheObserved:
    if isinstance(scenario, CacheScenario):
        return run_cached(scenario, step=step, deed=deed)
    return run_scenario(scenario, step=step, deed=deed)


def _found(observed: Observed | CacheObserved) -> list[str]:
    return cache_broken(observed) if isinstance(observed, CacheObserved) else broken(observed)


def run_session(seed: int) -> Observed | CacheObserved:
    """Run the session of a number; return its only run, or the one that was ended at a step."""
    source = random.Random(seed)
    scenario = _make(source, seed)
    observed = _run(scenario, 0, "cancel")
    if _found(observed) or source.randrange(3) or not observed.steps:
        return observed
    step, deed = source.randint(1, observed.steps), source.choice(DEEDS)
    return _run(scenario, step, deed)


def _explain(seed: int, observed: Observed | CacheObserved) -> Failure:
    """Make a failing session small."""
    kind = _found(observed)[0][:2]

    def fails(scenario: Scenario | CacheScenario) -> bool:
        if isinstance(scenario, CacheScenario) and not scenario.makes_sense():
            return False
        found = _found(_run(scenario, observed.step, observed.deed))
        return any(each.startswith(kind) for each in found)

    small = shrink(observed.scenario, fails)
    found = _found(_run(small, observed.step, observed.deed))
    return Failure(seed, found, small.script(observed.step, observed.deed))


def fuzz(
    seed: int,
    *,
    minutes: float = 1.0,
    sessions: int | None = None,
    write: Callable[[str], object] | None = None,
) -> list[Failure]:
    """Run sessions from a number on; return those that broke an invariant.

    Args:
      seed: The number of the first session.
      minutes: How long, where `sessions` does not say.
      sessions: How many.
      write: Gets what there is to tell, standard output where none is given.
    """
    write = sys.stdout.write if write is None else write
    failures: list[Failure] = []
    started = wall_time()
    count = 0
    while len(failures) < ENOUGH and (
        count < sessions if sessions is not None else wall_time() - started < minutes * 60
    ):
        observed = run_session(seed + count)
        count += 1
        if _found(observed):
            failure = _explain(seed + count - 1, observed)
            failures.append(failure)
            listed = "\n".join(f"# {each}" for each in failure.found)
            write(f"\n# session {failure.seed}\n{listed}\n{failure.script}\n")
    write(f"{count} sessions from seed {seed}: {len(failures)} broke an invariant\n")
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m trioproxy.testing``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trioproxy.testing", description="Run a proxy in memory, under faults."
    )
    parser.add_argument("--seed", type=int, help="the number of the first session")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run")
    parser.add_argument("--sessions", type=int, help="how many to run, in place of a time")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.randrange(10**9)
    failures = fuzz(seed, minutes=options.minutes, sessions=options.sessions)
    return 1 if failures else 0

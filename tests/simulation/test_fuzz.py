from __future__ import annotations

import pytest

from trioproxy.cache import CacheMeta
from trioproxy.proxy._ending import Ending
from trioproxy.testing import _fuzz
from trioproxy.testing._fuzz import fuzz, main, run_session


def test_sessions_of_a_run_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "37", "--sessions", "4"]) == 0
    assert capsys.readouterr().out == "4 sessions from seed 37: 0 broke an invariant\n"


def test_a_run_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(_fuzz, "wall_time", lambda: 20 * next(ticks))
    told: list[str] = []
    assert fuzz(3, minutes=1, write=told.append) == []
    assert told == ["2 sessions from seed 3: 0 broke an invariant\n"]


def test_some_sessions_are_ended_at_a_step() -> None:
    runs = [run_session(seed) for seed in range(40, 50)]
    deeds = {each.deed for each in runs if each.step}
    assert len(deeds) > 1


def test_a_failing_session_is_told_as_a_small_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def no_log(self: Ending, session: object, ctx: object) -> None:
        return None

    monkeypatch.setattr(Ending, "log", no_log)
    assert main(["--seed", "2", "--sessions", "1"]) == 1
    out = capsys.readouterr().out
    assert "# session 2\n# 1: " in out
    program = out[out.index("from trioproxy") : out.rindex("1 sessions")]
    assert len(program) < 200
    with pytest.raises(AssertionError, match="logging must come once"):
        exec(compile(program, "program", "exec"), {})


def test_a_failing_session_with_a_cache_is_told_as_a_small_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CacheMeta, "age", lambda self, now: 0)
    assert main(["--seed", "11", "--sessions", "1"]) == 1
    out = capsys.readouterr().out
    assert "# session 11\n# 9: " in out
    program = out[out.index("from trioproxy") : out.rindex("1 sessions")]
    assert len(program) < 300
    with pytest.raises(AssertionError, match="got Age 0"):
        exec(compile(program, "program", "exec"), {})

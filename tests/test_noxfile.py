from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
NOXFILE = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
SESSIONS = {
    node.name: node
    for node in NOXFILE.body
    if isinstance(node, ast.FunctionDef)
    and any(ast.unparse(each).startswith("nox.session") for each in node.decorator_list)
}


def calls(session: str, function: str) -> list[list[str]]:
    """Return the constant arguments of each call of a function in a session."""
    return [
        [
            each.value
            for each in node.args
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        for node in ast.walk(SESSIONS[session])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function
    ]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_sessions_are_those_that_are_written_about() -> None:
    assert set(SESSIONS) == {"tests", "demo", "lint", "docs", "bench", "fuzz"}
    pages = [text("README.md"), text("CONTRIBUTING.md"), text(".ci/run")]
    named = re.findall(r"nox -s ((?:[a-z]+ ?)+)", "\n".join(pages))
    assert {name for names in named for name in names.split()} == set(SESSIONS)


def test_every_session_says_what_it_does() -> None:
    for name, session in SESSIONS.items():
        assert ast.get_docstring(session), name


@pytest.mark.parametrize("session", sorted(SESSIONS))
def test_a_session_installs_groups_that_exist(session: str) -> None:
    groups = tomllib.loads(text("pyproject.toml"))["dependency-groups"]
    (installed,) = calls(session, "install")
    assert set(installed) <= set(groups)


def test_the_demo_needs_the_core_and_the_extras_that_it_installs_alone() -> None:
    assert calls("demo", "install") == [[]]
    assert '".[auth,compress,selfsigned,websocket]"' in ast.unparse(SESSIONS["demo"]).replace(
        "'", '"'
    )
    allowed = {"attrs", "examples", "h11", "h2", "joserfc", "trio", "trioproxy", "trustme"}
    for path in (ROOT / "examples").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {
            name.partition(".")[0]
            for node in ast.walk(tree)
            for name in (
                [each.name for each in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and node.level == 0
                else []
            )
        }
        assert {each for each in found if each not in sys.stdlib_module_names} <= allowed, path


def test_what_the_sessions_run_is_there() -> None:
    for session, module in (("demo", "examples"), ("bench", "tests/bench")):
        assert (ROOT / module / "__main__.py").is_file(), session
    profiles = [
        argument.partition("=")[2]
        for call in calls("fuzz", "session.run")
        for argument in call
        if argument.startswith("--hypothesis-profile=")
    ]
    assert [settings.get_profile(name).max_examples > 1000 for name in profiles] == [True]


def test_the_checks_end_with_the_commands_of_the_readme() -> None:
    script = text(".ci/run")
    steps = [re.sub(r' --envdir "[^"]*"', "", line) for line in script.splitlines()]
    steps = [line.replace(" --quiet", "") for line in steps if line.startswith("python -m")]
    readme = re.findall(
        r"`(python -m pip install nox) && (python -m nox -s \w+)`", text("README.md")
    )
    assert readme == [
        ("python -m pip install nox", "python -m nox -s demo"),
        ("python -m pip install nox", "python -m nox -s tests"),
    ]
    install, tests = readme[1]
    assert steps[0] == install
    assert steps[-1] == tests
    assert "python -m nox -s demo -- --once" in steps
    assert "python -m nox -s lint docs" in steps
    assert "set -euo pipefail" in script
    assert os.access(ROOT / ".ci/run", os.X_OK)

"""What a developer runs: ``nox -s tests``, ``nox -s demo`` and the rest, by name.

Arguments behind ``--`` go to the program that a session runs. Sessions install from the dependency
groups of pyproject.toml, so that nothing is listed twice.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "docs", "tests"]
# uv where it is installed; virtualenv otherwise, which comes with nox and, unlike venv, works where
# a distribution has split ensurepip off.
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = True

HERE = Path(__file__).parent
CHECKED = ("trioproxy", "tests", "examples", "noxfile.py")


def install(session: nox.Session, *groups: str, package: str = ".") -> None:
    """Install the package, perhaps with extras, and the requirements of dependency groups."""
    project = nox.project.load_toml(HERE / "pyproject.toml")
    requirements = nox.project.dependency_groups(project, *groups) if groups else ()
    session.install("--editable", package, *dict.fromkeys(requirements))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, in parallel and in random order."""
    install(session, "tests")
    session.run("pytest", "-n", "auto", "--maxprocesses", "4", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demo: ``-- --once`` to end after it, ``-- NAME`` for an example, ``-- --list``."""
    install(session, package=".[auth,compress,selfsigned,websocket]")
    # On Ctrl-C the child gets the signal as well, and ends by itself.
    session.run("python", "-m", "examples", *session.posargs, interrupt_timeout=15.0)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", "--strict", *(session.posargs or CHECKED))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session, "docs")
    target = session.posargs[0] if session.posargs else session.create_tmp()
    doctrees = Path(session.create_tmp()) / "doctrees"
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-d", str(doctrees), "docs", target)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure ``reverse`` against bare relays, and over HTTP/2 against hypercorn, in one run."""
    install(session, "bench")
    session.run("python", "-m", "tests.bench", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run proving ground, killed caches, sweeps, property tests: ``-- --seed N --minutes M``."""
    install(session, "tests")
    parser = argparse.ArgumentParser(prog="nox -s fuzz --")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--minutes", default="10", help="of the proving ground")
    parser.add_argument("--rounds", default="200", help="of killing what fills a cache on disk")
    options, arguments = parser.parse_known_args(session.posargs)
    seed = str(options.seed)
    session.run("python", "-m", "trioproxy.testing", "--seed", seed, "--minutes", options.minutes)
    kill_disk = ("tests.cache.kill_disk", "--seed", seed, "--rounds", options.rounds)
    session.run("python", "-m", *kill_disk)
    seeds = (f"--hypothesis-seed={seed}", f"--randomly-seed={seed}")
    sweeps = [path for path in HERE.glob("tests/*/test_*.py") if "some_steps" in path.read_text()]
    every = {"TRIOPROXY_EVERY_STEP": "1"}
    patient = ("-n", "auto", "-o", "faulthandler_timeout=0")
    session.run("pytest", *patient, *map(str, sorted(sweeps)), env=every)
    session.run("pytest", "-m", "hypothesis", "--hypothesis-profile=deep", *seeds, *arguments)

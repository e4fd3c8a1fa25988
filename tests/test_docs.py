"""The documentation says what the code does: tables, charts, options and examples are held to it."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import trio

import trioproxy
from trioproxy import (
    CachingProxy,
    ErrorType,
    H2Limits,
    Listener,
    PeerOptions,
    ProxyHttp,
    ServerConf,
    TlsSettings,
    cache,
    custom,
    modules,
    stream,
    subrequests,
    websocket,
)
from trioproxy._networks import Networks
from trioproxy.cache import (
    CacheKey,
    CacheLock,
    CachePhase,
    LockStatus,
    NoCacheReason,
    Predictor,
    SharedCache,
    SharedPolicy,
    StorageStatistics,
)
from trioproxy.cache._phase import TRANSITIONS
from trioproxy.proxy._compose import _RULES
from trioproxy.proxy._plan import CALLBACKS
from trioproxy.server import _cli
from trioproxy.stream import ProxyStream
from trioproxy.stream._filters import CALLBACKS as STREAM_CALLBACKS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.rst"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
COMMANDS = ("reverse", "run")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- reading the pages ---------------------------------------------------------------------------


def code_blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """Return the code blocks of a page in one language, each with the line it starts at."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    else:
        found = re.finditer(
            rf"^\.\. code-block:: {language}\n\n((?:(?:   .*)?\n)+)", text, re.MULTILINE
        )
    return [(text.count("\n", 0, m.start(1)) + 1, textwrap.dedent(m[1])) for m in found]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=page.name) for page in TEXTS if code_blocks(page, language)]


def table(page: str, label: str) -> list[list[str]]:
    """Return the cells of the list-table behind a label, without its header row."""
    text = read(f"docs/{page}")
    body = text.split(f".. _{label}:\n", 1)[1].split(".. list-table::\n", 1)[1]
    body = re.split(r"^\S", body, maxsplit=1, flags=re.MULTILINE)[0]
    rows: list[list[str]] = []
    for line in body.splitlines():
        if line.startswith("   * - "):
            rows.append([line[7:]])
        elif line.startswith("     - "):
            rows[-1].append(line[7:])
        elif line.startswith("       ") and rows:
            rows[-1][-1] += f" {line.strip()}"
    return rows[1:]


def plain(cell: str) -> str:
    """Return a cell's text without its markup."""
    named = re.fullmatch(r":\w+:`([^<`]+) <[^>]*>`", cell)
    return named[1] if named else cell.strip("`")


# -- the trait -----------------------------------------------------------------------------------


def test_the_phase_chart_has_every_callback_once_and_in_order() -> None:
    text = read("docs/life.rst").split(".. _phase-chart:\n", 1)[1]
    chart = text.split(".. code-block:: text\n", 1)[1].split("\nA request that", 1)[0]
    names = {name for name, _, _ in CALLBACKS}
    charted = [word for word in re.findall(r"─ (\w+)", chart) if "_" in word or word in names]
    assert charted == [name for name, _, _ in CALLBACKS]


def test_the_callback_table_has_every_callback_with_its_kind() -> None:
    rows = table("life.rst", "callback-table")
    documented = [(plain(name), kind) for name, kind, _, _, _ in rows]
    assert documented == [(name, kind) for name, _, kind in CALLBACKS]


def test_required_callbacks_are_the_abstract_ones() -> None:
    rows = table("life.rst", "callback-table")
    required = {plain(row[0]) for row in rows if row[3].endswith("required")}
    assert required == set(ProxyHttp.__abstractmethods__)


def test_both_lists_of_callbacks_that_may_not_fail_agree() -> None:
    rows = table("life.rst", "callback-table")
    by_life = {plain(row[0]) for row in rows if row[4].startswith("may not fail")}
    by_errors: set[str] = set()
    for row in table("errors.rst", "may-not-fail"):
        by_errors.update(plain(cell) for cell in row[0].split(", "))
    assert by_life == by_errors


def test_the_kinds_of_errors_are_those_of_the_error_type() -> None:
    section = read("docs/errors.rst").split(".. _error-types:\n", 1)[1]
    documented = set(re.findall(r"``([A-Z]\w+)", section))
    kinds = {name for name in ErrorType.__annotations__ if name[0].isupper()}
    assert documented == kinds | {"HTTPStatus", "Custom"}


def test_the_reference_has_every_public_name() -> None:
    documented = set(
        re.findall(
            r"^\.\. (?:auto\w+|py:data):: (?:trioproxy\.)?(\w+)",
            read("docs/reference.rst"),
            re.MULTILINE,
        )
    )
    public = {
        name
        for name, value in vars(trioproxy).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == "trioproxy"
    }
    assert public | {"__version__"} <= documented


SUB_PACKAGES = (cache, modules, custom, subrequests, websocket)


def offered(package: ModuleType) -> list[str]:
    """Return the public names of a sub-package."""
    return sorted(
        name
        for name, value in vars(package).items()
        if name[0] != "_" and name != "annotations" and not inspect.ismodule(value)
    )


@pytest.mark.parametrize("package", SUB_PACKAGES)
def test_the_reference_has_every_name_of_a_sub_package(package: ModuleType) -> None:
    name = re.escape(package.__name__)
    pattern = rf"^\.\. (?:auto\w+|py:data):: {name}\.(\w+)(?![.\w])"
    documented = re.findall(pattern, read("docs/reference.rst"), re.MULTILINE)
    assert sorted(documented) == offered(package)


@pytest.mark.parametrize(
    ("package", "name"),
    [(package, name) for package in SUB_PACKAGES for name in offered(package)],
)
def test_what_a_sub_package_offers_says_what_it_is(package: ModuleType, name: str) -> None:
    value = getattr(package, name)
    if not inspect.isclass(value):
        return
    assert value.__doc__
    assert not any(value.__doc__ == base.__doc__ for base in value.__mro__[1:])
    for member, what in vars(value).items():
        if member[0] != "_" and (inspect.isroutine(what) or isinstance(what, property)):
            assert inspect.getdoc(getattr(value, member)), f"{name}.{member}"
    fields = attrs.fields(value) if attrs.has(value) else ()
    for field in (each for each in fields if each.name[0] != "_" or each.init):
        assert re.search(rf"^ +{field.name}: [A-Z`]", value.__doc__, re.MULTILINE), (
            f"{name}.{field.name}"
        )


# -- the cache -----------------------------------------------------------------------------------

CACHE_CALLBACKS = [name for name, _, _ in CALLBACKS if re.search("cache|purge|stale|range", name)]


def test_the_callbacks_of_the_cache_are_listed_in_order() -> None:
    rows = table("cache.rst", "cache-callbacks")
    assert [plain(row[0]) for row in rows] == CACHE_CALLBACKS
    assert len(CACHE_CALLBACKS) == 11
    overridden = {name for name in CACHE_CALLBACKS if name in vars(CachingProxy)}
    assert {plain(row[0]) for row in rows if row[2] != "nothing of its own"} == overridden


def test_the_phases_of_the_cache_are_those_of_the_class() -> None:
    documented = {plain(row[0]): plain(row[1]) for row in table("cache.rst", "cache-phases")}
    plain_ones = {name for name in CachePhase.__annotations__ if name[0].isupper()}
    phases = [getattr(CachePhase, name) for name in plain_ones]
    phases += [
        CachePhase.Disabled(NoCacheReason.Deferred),
        CachePhase.RevalidatedNoCache(NoCacheReason.Deferred),
    ]
    assert documented == {phase.name: phase.text for phase in phases}


def test_the_transitions_are_those_that_the_cache_allows() -> None:
    rows = table("cache.rst", "cache-transitions")
    documented = {plain(row[0]): frozenset(row[1].replace("``", "").split(", ")) for row in rows}
    assert len(documented) == len(rows)
    assert documented == TRANSITIONS


def test_the_chart_of_phases_has_every_transition_that_leads_somewhere() -> None:
    chart = read("docs/cache.rst").split(".. _cache-chart:\n", 1)[1].split("\n.. _", 1)[0]
    arrows = re.findall(r"(\w+)(?: \([^)]*\))? ─*► (\w+)", chart)
    charted: dict[str, set[str]] = {}
    for event, target in arrows:
        charted.setdefault(event, set()).add(target)
    rows = table("cache.rst", "cache-transitions")
    leads = {plain(row[0]): set(row[2].replace("``", "").split(", ")) for row in rows}
    assert charted == {event: targets for event, targets in leads.items() if targets != {"stays"}}
    names = {phase for targets in charted.values() for phase in targets}
    assert names | {"Disabled"} == {plain(row[0]) for row in table("cache.rst", "cache-phases")}


def test_the_reasons_for_no_cache_are_those_of_the_class() -> None:
    rows = table("cache.rst", "no-cache-reasons")
    kinds = {name for name in NoCacheReason.__annotations__ if name[0].isupper()}
    assert {plain(row[0]) for row in rows} == kinds | {"Custom(text)"}
    lock = CacheLock(1)
    for row in rows:
        name = plain(row[0])
        reason = NoCacheReason.Custom("x") if "(" in name else getattr(NoCacheReason, name)
        if reason != NoCacheReason.NeverEnabled:
            assert plain(row[2]) == lock.status_for(reason).value, name
        predictor = Predictor(1)
        marked = predictor.mark_uncacheable(CacheKey(b"", b""), reason)
        assert row[3] == ("yes" if marked else "no"), name


def test_the_ends_of_a_lock_are_those_of_the_class() -> None:
    rows = table("cache.rst", "lock-statuses")
    assert [plain(row[0]) for row in rows] == [status.value for status in LockStatus]
    for row in rows:
        assert row[2].startswith("looks up again") == LockStatus(plain(row[0])).retries(), row


def test_the_table_of_the_policy_has_its_fields_with_their_defaults() -> None:
    documented = {plain(row[0]): row[1] for row in table("cache.rst", "shared-policy")}
    assert documented == {
        field.name: shown(field.default) if field.name != "targets" else "CDN-Cache-Control"
        for field in attrs.fields(SharedPolicy)
    }


def test_the_table_of_the_shared_cache_has_its_fields() -> None:
    rows = table("cache.rst", "shared-cache")
    assert [plain(row[0]) for row in rows] == [field.name for field in attrs.fields(SharedCache)]


def test_the_counters_of_a_store_are_listed() -> None:
    rows = table("cache.rst", "storage-statistics")
    names = [field.name for field in attrs.fields(StorageStatistics)]
    assert [plain(row[0]) for row in rows] == names


# -- below HTTP ----------------------------------------------------------------------------------


def test_the_callbacks_of_a_stream_are_listed_with_their_kinds() -> None:
    rows = table("below-http.rst", "stream-callbacks")
    documented = [(plain(name), kind) for name, kind, _, _ in rows]
    assert documented == [(name, kind) for name, _, kind in STREAM_CALLBACKS]
    required = {plain(row[0]) for row in rows if row[2].endswith("must be there")}
    assert required == set(ProxyStream.__abstractmethods__)
    harmless = {plain(row[0]) for row in rows if row[3].startswith("may not fail")}
    assert harmless == {"fail_to_connect", "error_while_proxy", "logging"}


def test_the_reference_has_every_name_of_streams() -> None:
    text = read("docs/reference.rst")
    documented = re.findall(r"^\.\. auto\w+:: trioproxy\.stream\.(\w+)", text, re.MULTILINE)
    public = [
        name
        for name, value in vars(stream).items()
        if not name.startswith("_") and name != "annotations" and not inspect.ismodule(value)
    ]
    assert sorted(documented) == sorted(public)
    for owner in (ProxyStream, stream.StreamSession):
        methods = {name for name, what in vars(owner).items() if inspect.isroutine(what)}
        for name in methods:
            listed = re.search(
                rf"automethod:: {owner.__name__}\.{name}$|[:,]\s+{name}\b", text, re.MULTILINE
            )
            assert name.startswith("_") or listed, name


@pytest.mark.parametrize("name", sorted(name for name in vars(stream) if name[0] != "_"))
def test_what_streams_offer_says_what_it_is(name: str) -> None:
    value = getattr(stream, name)
    if not inspect.isclass(value):
        return
    assert value.__doc__
    assert not any(value.__doc__ == base.__doc__ for base in value.__mro__[1:])
    for member, what in vars(value).items():
        if member[0] != "_" and (inspect.isroutine(what) or isinstance(what, property)):
            assert inspect.getdoc(getattr(value, member)), f"{name}.{member}"
    for field in attrs.fields(value) if attrs.has(value) else ():
        if not field.name.startswith("_"):
            assert re.search(rf"^ +{field.name}: [A-Z`]", value.__doc__, re.MULTILINE), field.name


# -- settings and options ------------------------------------------------------------------------


def shown(value: object) -> str:
    if isinstance(value, H2Limits):
        return "H2Limits()"
    if isinstance(value, Networks):
        return str(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_tables_of_settings_are_those_of_the_server_conf() -> None:
    documented = {
        plain(row[0]): row[1]
        for label in ("conf-timeouts", "conf-limits", "conf-habits")
        for row in table("limits.rst", label)
    }
    fields = {field.name: shown(field.default) for field in attrs.fields(ServerConf)}
    assert documented == fields


def test_the_table_of_peer_options_is_that_of_the_class() -> None:
    times = table("limits.rst", "peer-options")
    rows = [*times, *table("pooling.rst", "connect-options")]
    options = {
        field.name: shown(field.default) for field in attrs.fields(PeerOptions) if field.init
    }
    assert sorted(plain(row[0]) for row in rows) == sorted(options)
    settings = {field.name for field in attrs.fields(ServerConf)}
    assert {plain(row[1]) for row in times} <= settings | {"no limit"}
    for row in rows[len(times) :]:
        assert plain(row[1]) == options[plain(row[0])]


def test_the_limits_of_http2_are_listed_with_the_counters_that_the_code_has() -> None:
    documented = {plain(row[2]) for row in table("http2.rst", "h2-limits")} - {"none", "refused"}
    rates = {"reset_rate", "control_rate", "window_credit", "max_window_credit"}
    fields = {field.name for field in attrs.fields(H2Limits)}
    assert documented == {"h2_max_streams", *(f"h2_{name}" for name in fields - rates)}


def test_the_table_of_tls_settings_has_every_field() -> None:
    rows = re.findall(r"^   \* - (``.*``)$", read("docs/tls.rst"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"``(\w+)``", row)}
    assert {field.name for field in attrs.fields(TlsSettings)} <= named


def options_of(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Return a command's options as ``--help`` shows them, with what is said of their defaults."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as stopped:
        _cli.main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    options: dict[str, str] = {}
    for line in re.findall(r"^  (--.*(?:\n   .*)*)", text, re.MULTILINE):
        usage, _, about = line.partition("  ")
        default = re.search(r"\(default ([^)]*)\)", about)
        options[usage.strip()] = default[1] if default else "off"
    return options


def test_the_table_of_options_is_that_of_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = {plain(row[0]): row[2] for row in table("command-line.rst", "options")}
    real = {
        **options_of("reverse", capsys, monkeypatch),
        **options_of("run", capsys, monkeypatch),
    }
    assert documented == real


def test_options_of_one_command_alone_are_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_command = {command: options_of(command, capsys, monkeypatch) for command in COMMANDS}
    for row in table("command-line.rst", "options"):
        has = [command for command in COMMANDS if plain(row[0]) in by_command[command]]
        marked = re.search(r"\(``(\w+)`` only\)", row[1])
        assert has == ([marked[1]] if marked else list(COMMANDS)), row


def nox_sessions() -> set[str]:
    return {
        node.name
        for node in ast.parse(read("noxfile.py")).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_in_console_blocks_are_accepted(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = (
        "import trioproxy\n"
        "class Gateway(trioproxy.ProxyHttp[None]):\n"
        "    def new_ctx(self): return None\n"
        "    async def upstream_peer(self, session, ctx): return None\n"
        "Guarded = Gateway\n"
        "proxy = Gateway()\n"
    )
    (tmp_path / "path").mkdir()
    for file in ("gateway.py", "path/gateway.py"):
        (tmp_path / file).write_text(program, encoding="utf-8")
    served: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_cli, "run", lambda proxy, *binds, conf: served.append(proxy))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    lines = [
        line.removeprefix("$ ")
        for _, block in code_blocks(page, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "trioproxy":
            before = len(served)
            monkeypatch.delitem(sys.modules, "gateway", raising=False)
            with pytest.raises(SystemExit) as stopped:
                _cli.main(arguments)
            assert stopped.value.code == 0, line
            assert len(served) == before + ("--version" not in arguments)
        else:
            assert program in ("curl", "python"), line
    sys.modules.pop("gateway", None)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in TEXTS])
def test_nox_sessions_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"nox -s (\w+)", page.read_text(encoding="utf-8")))
    assert named <= nox_sessions() | {"NAME"}


# -- promises under attack -----------------------------------------------------------------------


def all_test_functions() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))
    }


def promises() -> list[list[str]]:
    return table("attacks.rst", "promises")


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in promises()])
def test_each_promise_has_a_test_that_carries_its_name(row: list[str]) -> None:
    prefix = plain(row[3])
    assert prefix == f"test_{row[0].lower().replace('-', '_')}"
    proofs = {name for name in all_test_functions() if name.startswith(f"{prefix}_")}
    assert proofs, f"no test is named {prefix}_..."


def test_promises_are_in_order_and_made_once() -> None:
    names = [row[0] for row in promises()]
    assert names == sorted(set(names))


def test_each_row_that_a_test_is_named_after_is_on_the_page() -> None:
    page = read("docs/attacks.rst")
    for name in all_test_functions():
        row = re.match(r"test_(h1|u1|h2|c|f|t|r|s|tls)_(\d\d)_", name)
        if row:
            assert f"{row[1].upper()}-{row[2]}" in page, name


# -- links and files -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in TEXTS])
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)#]+)[^)]*\)", text) if page.suffix == ".md" else []
    linked += re.findall(r"^\s*\.\. literalinclude:: (\S+)", text, re.MULTILINE)
    for target in linked:
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:docs|examples|tests|trioproxy)/[\w./]*)`", text):
        assert (ROOT / target).exists(), target


def test_documents_are_reachable_from_the_index() -> None:
    listed = set(re.findall(r"^   ([\w-]+)$", read("docs/index.rst"), re.MULTILINE))
    assert listed == {page.stem for page in PAGES} - {"index"}


def test_the_map_in_contributing_names_modules_that_exist() -> None:
    rows = re.findall(r"^\| \d [^|]*\|([^|]*)\|", read("CONTRIBUTING.md"), re.MULTILINE)
    assert len(rows) == 8
    for name in re.findall(r"`([\w/]+)`", "".join(rows)):
        path = ROOT / "trioproxy" / name
        assert path.is_dir() if name.endswith("/") else path.with_suffix(".py").is_file(), name


# -- the first screen of the README --------------------------------------------------------------


def test_the_readme_opens_with_what_why_two_commands_and_a_short_proxy() -> None:
    lines = read("README.md").splitlines()
    screen = "\n".join(lines[:45])
    title, what = lines[0], lines[2]
    assert title == "# trioproxy"
    assert "HTTP proxy" in what
    for name in ("Pingora", "Trio", "nursery"):
        assert name in screen
    for session in ("demo", "tests"):
        assert f"`python -m pip install nox && python -m nox -s {session}`" in screen
        assert session in nox_sessions()
    start, proxy = code_blocks(ROOT / "README.md", "python")[0]
    assert len(proxy.splitlines()) <= 15
    assert start + len(proxy.splitlines()) <= 45


def test_the_readme_counts_the_callbacks() -> None:
    assert len(CALLBACKS) == 40
    assert "**Forty callbacks" in read("README.md")


def test_the_page_on_modules_lists_every_builder() -> None:
    listed = re.findall(
        r"``(\w+)``", " ".join(row[0] for row in table("modules.rst", "shipped-modules"))
    )
    builders = [
        name
        for name in offered(modules)
        if isinstance(kind := getattr(modules, name), type)
        and issubclass(kind, modules.HttpModuleBuilder)
        and kind is not modules.HttpModuleBuilder
    ]
    assert sorted(listed) == builders


def test_the_rules_of_a_chain_name_every_callback_that_has_one() -> None:
    rows = table("composition.rst", "chain-rules")
    named = [plain(cell.strip()) for row in rows for cell in row[1].split(",")]
    assert sorted(named) == sorted(_RULES)
    rules = {plain(cell.strip()): row[0] for row in rows for cell in row[1].split(",")}
    # Callbacks of one line share a rule, and those of two lines do not.
    by_rule: dict[object, set[str]] = {}
    for name, rule in _RULES.items():
        by_rule.setdefault(rule, set()).add(rules[name])
    shared = {"persist_connection_context", "on_connection_reuse"}
    assert all(len(lines) == 1 for rule, lines in by_rule.items()), by_rule
    assert len({rules[name] for name in shared}) == 1


# -- running the code blocks ---------------------------------------------------------------------


class Origin(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"GET {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any, **_kwargs: Any) -> None:
        pass


@pytest.fixture(scope="module")
def origin_port() -> Iterator[int]:
    """Run a server that knows nothing of trioproxy, in a thread."""
    with HTTPServer(("127.0.0.1", 0), Origin) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


async def ask(url: str, path: str) -> bytes:
    host, _, port = url.partition("://")[2].rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(
            f"GET {path} HTTP/1.1\r\nHost: docs\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b""
        async for data in stream:
            answer += data
    return answer


class OneRequest:
    """Stands in for `trioproxy.run`: serves on a free port, sends one request and stops."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []

    def __call__(
        self,
        proxy: ProxyHttp[Any] | ProxyStream[Any],
        *binds: str | Listener,
        conf: ServerConf | None = None,
    ) -> None:
        for bind in binds:
            assert isinstance(
                bind if isinstance(bind, Listener) else Listener.parse(bind), Listener
            )
        self.answers.append(trio.run(self._serve, proxy, conf))

    async def _serve(
        self, proxy: ProxyHttp[Any] | ProxyStream[Any], conf: ServerConf | None
    ) -> bytes:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                running = await nursery.start(
                    lambda task_status: trioproxy.serve(
                        proxy, "127.0.0.1:0", conf=conf, task_status=task_status
                    )
                )
                answer = await ask(running.urls[0], "/hello")
                await running.drain()
        return answer


async def run_in_nursery(function: Callable[..., Any]) -> None:
    """Call a test of a page as pytest-trio would, or a main without arguments."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            given = {"nursery": nursery}
            await function(**{name: given[name] for name in inspect.signature(function).parameters})
            nursery.cancel_scope.cancel()


@pytest.mark.socket
@pytest.mark.parametrize("page", pages_with("python"))
def test_code_blocks_run(
    page: Path, origin_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The blocks of a page are one program, from top to bottom."""
    monkeypatch.chdir(tmp_path)
    one_request = OneRequest()
    monkeypatch.setattr(trioproxy, "run", one_request)
    blocks = code_blocks(page, "python")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    done: set[str] = set()
    for line, source in blocks:
        source = re.sub(r"\b9000\b", str(origin_port), source)
        code = compile("\n" * (line - 1) + source, str(page), "exec", dont_inherit=True)
        exec(code, namespace)
        for name, value in list(namespace.items()):
            wanted = name.startswith("test_") or (name == "main" and "trio.run(main" not in source)
            if wanted and inspect.iscoroutinefunction(value) and name not in done:
                done.add(name)
                trio.run(run_in_nursery, value)
    for answer in one_request.answers:
        # What passes below HTTP has the origin's own version.
        assert answer.startswith((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n")), answer
        assert answer.endswith(b"GET /hello\n")
    calls = sum("trioproxy.run(" in source for _, source in blocks)
    assert len(one_request.answers) == calls


@pytest.mark.socket
def test_the_proxy_of_the_readme_does_what_it_says(
    origin_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_request = OneRequest()
    monkeypatch.setattr(trioproxy, "run", one_request)
    _, source = code_blocks(ROOT / "README.md", "python")[0]
    exec(source.replace("9000", str(origin_port)), {"__name__": "__main__"})
    assert b"\r\nx-served-by: gateway\r\n" in one_request.answers[0]

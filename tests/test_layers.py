"""The layers of CONTRIBUTING.md, read from the imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "trioproxy"
SOCKET_MODULES = {"socket", "ssl", "trio.socket", "_socket", "_ssl", "socketserver", "select"}


@attrs.frozen
class Import:
    importer: str  # below the package, "proxy._engine"
    target: str  # absolute, "trioproxy.streams._abc" or "trio"
    line: int
    typing: bool  # below "if TYPE_CHECKING"


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts)] = path
    return found


MODULES = _modules()


def _nodes(module: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(MODULES[module].read_text("utf-8"))))


NODES = {module: _nodes(module) for module in MODULES}


def _imports(module: str) -> Iterator[Import]:
    package = ["trioproxy", *module.split(".")[:-1]]
    typing = {
        id(below)
        for node in NODES[module]
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for below in ast.walk(node)
    }
    for node in NODES[module]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, id(node) in typing)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            for alias in node.names:
                # "from a import b" may name a module of a package or a name of a module.
                full = f"{source}.{alias.name}"
                below = full.removeprefix("trioproxy.")
                is_module = below in MODULES or f"{below}.__init__" in MODULES
                outside = not source.startswith("trioproxy")
                target = full if is_module or outside else source
                yield Import(module, target, node.lineno, id(node) in typing)


IMPORTS = [each for module in MODULES for each in _imports(module)]


def _table() -> dict[str, int]:
    """Return the layer of each entry of the table in CONTRIBUTING.md."""
    layers: dict[str, int] = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines():
        row = re.match(r"\| (\d) \w+ \| ([^|]*) \|", line)
        if row:
            for name in re.findall(r"`([\w/]+)`", row[2]):
                layers[name.rstrip("/")] = int(row[1])
    return layers


LAYERS = _table()
# The two files that belong to no layer: what is re-exported, and the version they all may tell.
ROOTS = {"__init__", "_version"}


def _entry(module: str) -> str:
    return module.partition(".")[0]


def _inside(target: str) -> str | None:
    if target == "trioproxy":
        return "__init__"
    return target.removeprefix("trioproxy.") if target.startswith("trioproxy.") else None


def _is(target: str, library: str) -> bool:
    return target == library or target.startswith(library + ".")


def test_the_table_was_read() -> None:
    assert set(LAYERS.values()) == set(range(8))
    assert LAYERS["_errors"] == 0
    assert LAYERS["cache"] == LAYERS["upstream"] == 4
    assert LAYERS["proxy"] == 5


def test_the_imports_were_read() -> None:
    pairs = {(each.importer, each.target) for each in IMPORTS}
    assert ("_messages", "trioproxy._headers") in pairs
    assert ("proxy._engine", "trio") in pairs
    assert ("__init__", "trioproxy.proxy._session") in pairs


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module: str) -> None:
    assert _entry(module) in LAYERS or module in ROOTS


def test_a_layer_imports_only_from_the_layers_above_it() -> None:
    wrong = []
    for each in IMPORTS:
        inside = _inside(each.target)
        if inside is None or each.importer == "__init__" or _entry(inside) == "_version":
            continue
        mine, theirs = _entry(each.importer), _entry(inside)
        if mine == theirs:  # modules inside one package may
            continue
        if mine == "__main__" and theirs == "server":  # one program, and nothing else
            continue
        if each.typing and (mine, theirs) == ("modules", "proxy"):  # a session, by its type alone
            continue
        # Layer 0 is one heap of modules, and a codec speaks the values of semantics.
        together = (LAYERS[mine] == LAYERS.get(theirs) == 0) or (mine, theirs) == (
            "codec",
            "semantics",
        )
        if theirs == "__init__" or (not together and LAYERS[theirs] >= LAYERS[mine]):
            wrong.append(f"{each.importer}:{each.line} imports {each.target}")
    assert not wrong


def test_no_two_modules_import_each_other() -> None:
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for each in IMPORTS:
        inside = _inside(each.target)
        if inside is not None and not each.typing:
            edges[each.importer].add(inside if inside in MODULES else f"{inside}.__init__")
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' > '.join([*way, module])}"
        if module not in done:
            for target in edges[module]:
                visit(target, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_h11_is_known_to_the_codec_alone() -> None:
    users = {each.importer for each in IMPORTS if _is(each.target, "h11")}
    assert users
    assert {_entry(each) for each in users} == {"codec"}


def test_the_values_and_the_protocol_know_no_trio() -> None:
    users = {each.importer for each in IMPORTS if _is(each.target, "trio")}
    low = {each for each in users if LAYERS.get(_entry(each), 9) <= 1}
    assert low <= {"_util"}


def test_what_the_cache_decides_is_pure() -> None:
    pure = {"cache._key", "cache._meta", "cache._policy"}
    assert pure <= set(MODULES)
    libraries = ("trio", "os", "io", "trioproxy._clock", "trioproxy.transport", "trioproxy.streams")
    assert not [
        each
        for each in IMPORTS
        if each.importer in pure and any(_is(each.target, library) for library in libraries)
    ]


def test_the_values_and_the_protocol_do_no_io() -> None:
    libraries = ("os", "io", "subprocess", "threading", "tempfile", "pathlib", "selectors")
    users = {each.importer for each in IMPORTS if any(_is(each.target, lib) for lib in libraries)}
    assert not [each for each in users if LAYERS.get(_entry(each), 9) <= 1]


def test_sockets_and_tls_live_in_the_transport_alone() -> None:
    users = {
        each.importer
        for each in IMPORTS
        if any(_is(each.target, library) for library in SOCKET_MODULES)
    }
    users |= {
        module
        for module in MODULES
        for node in NODES[module]
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "trio"
        and (node.attr in ("socket", "SocketStream", "SocketListener") or "tcp" in node.attr)
    }
    assert users
    # The reference parties of the proving ground share no code with the transport.
    users.discard("testing._secure")
    assert {_entry(each) for each in users} == {"transport"}


def test_the_engine_knows_no_stream_but_the_interface() -> None:
    streams = {
        (each.importer, each.target)
        for each in IMPORTS
        if _entry(each.importer) == "proxy" and _is(each.target, "trioproxy.streams")
    }
    # A request that the proxy makes of itself is an exchange in memory.
    streams.remove(("proxy._subrequest", "trioproxy.streams._memory"))
    assert {target for _, target in streams} == {"trioproxy.streams._abc"}


def test_the_engine_knows_no_codec_and_no_socket() -> None:
    low = {
        (each.importer, each.target)
        for each in IMPORTS
        if _entry(each.importer) == "proxy"
        and (_is(each.target, "trioproxy.codec") or _is(each.target, "trioproxy.transport"))
    }
    # A session shows its request as HTTP/1 text where a filter asks for that, and takes the messages
    # of a WebSocket apart where one asks for those.
    assert low <= {
        ("proxy._session", "trioproxy.codec._h1_write"),
        ("proxy._websocket", "trioproxy.codec._websocket"),
    }


def test_the_wall_clock_is_read_in_one_place() -> None:
    users = {each.importer for each in IMPORTS if _is(each.target, "time")}
    assert users == {"_clock"}


def test_nothing_of_the_tests_or_of_another_loop_is_imported() -> None:
    for each in IMPORTS:
        for library in ("tests", "asyncio", "pytest", "hypothesis", "trustme"):
            assert not _is(each.target, library), f"{each.importer}:{each.line}"

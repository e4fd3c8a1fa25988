"""The command line: ``trioproxy reverse`` and ``trioproxy run``.

Every mistake in the arguments is one line on standard error that names the option, the value and
what would be right, and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs

from .._config import Listener, ServerConf
from .._connect_target import ConnectRule
from .._networks import Networks
from .._peer import HttpPeer
from .._tls_settings import TlsSettings
from .._version import __version__
from ..cache._disk import DiskStorage
from ..cache._memory import MemoryStorage
from ..cache._shared import SharedCache
from ..cache._storage import Storage
from ..stream._filters import ProxyStream
from ..stream._peer import StreamPeer
from ..transport._tls_server import TlsAcceptor
from ._kinds import Proxy, kind_of
from ._reverse import CachingReverse, Reverse, compression, upstreams
from ._reverse_stream import StreamReverse, stream_upstreams
from ._run import run

_SIZE = re.compile(r"([0-9]+)([KMGkmg]?)")
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
#: Options that mean nothing to streams below HTTP.
HTTP_ONLY = frozenset(
    {
        "allow_connect",
        "cache",
        "cache_size",
        "compress",
        "h2c",
        "header_timeout",
        "http",
        "http1_codec",
        "max_body_bytes",
        "max_header_bytes",
        "read_timeout",
        "rewrite_host",
        "upstream_http",
    }
)
_LEVELS = ("debug", "info", "warning", "error", "critical")


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def seconds(text: str) -> float:
    """Read a timeout: 0 switches it off."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds: 0 (off) or more is right, such as 30 or 0.5"
        )
    return number or math.inf


def grace(text: str) -> float:
    """Read the seconds that a graceful stop waits: 0 waits for nothing."""
    number = seconds(text)
    return 0.0 if number == math.inf else number


def size(minimum: int) -> Callable[[str], int]:
    """Return a reader of sizes in bytes, with K, M or G behind them."""

    def read(text: str) -> int:
        match = _SIZE.fullmatch(text)
        number = -1 if match is None else int(match[1]) * _FACTORS[match[2].lower()]
        if number < minimum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a size: {minimum} or more bytes are right, such as 65536 or 64K"
            )
        return number

    return read


def bind(text: str) -> Listener:
    """Read the address of a listener."""
    try:
        return Listener.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def origin(text: str) -> HttpPeer | StreamPeer:
    """Read the URL of an origin, or of what streams lead to."""
    try:
        if text.startswith(("tcp:", "tls:", "unix:", "tls+unix:")):
            return StreamPeer.parse(text)
        if "://" not in text and not text.startswith("http+unix:"):
            raise ValueError(
                f"{text!r} is not an origin: http://host[:port], https://host[:port], "
                "http+unix:PATH or tcp://host:port is"
            )
        return HttpPeer.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def allowed(text: str) -> ConnectRule:
    """Read what a CONNECT request may ask for."""
    try:
        return ConnectRule.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def network(text: str) -> str:
    """Check a network of those that are trusted."""
    try:
        Networks.parse([text])
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def load(text: str) -> Proxy:
    """Return the proxy object that ``MODULE:OBJECT`` names; a class or factory is called.

    Raises:
      argparse.ArgumentTypeError: there is none, with what would be right.
    """
    module_name, colon, path = text.rpartition(":")
    if not colon or not module_name or not path:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MODULE:OBJECT: gateway:proxy or gateway.py:Gateway is right"
        )
    found: Any = _module(module_name, text)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise argparse.ArgumentTypeError(
                f"{text!r}: {module_name} has no {path}; the name of a ProxyHttp or "
                "ProxyStream object, class or factory is right"
            ) from None
    if kind_of(found) is None and callable(found):
        try:
            found = found()
        except TypeError as exc:
            if exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
                raise  # it could be called, and failed by itself
            raise argparse.ArgumentTypeError(
                f"{text!r} cannot be called without arguments ({exc}): name an object, or a "
                "factory that takes none"
            ) from exc
    if kind_of(found) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} gives a {type(found).__name__}: a ProxyHttp or ProxyStream object, class or "
            "factory is right"
        )
    proxy: Proxy = found
    return proxy


def _module(name: str, text: str) -> object:
    if name.endswith(".py") or "/" in name or "\\" in name:
        path = Path(name).resolve()
        if not path.is_file():
            raise argparse.ArgumentTypeError(f"{text!r}: there is no file {name}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise argparse.ArgumentTypeError(f"{text!r}: {name} is not a Python file")
        sys.path.insert(0, str(path.parent))
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    if not all(part.isidentifier() for part in name.split(".")):
        raise argparse.ArgumentTypeError(
            f"{text!r}: {name!r} is no module name; a.b or path/to/file.py is right"
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise argparse.ArgumentTypeError(
                f"{text!r}: there is no module {exc.name}; the current directory and the installed "
                "packages were searched"
            ) from None
        raise


def level(text: str) -> str:
    """Read a log level."""
    if text.lower() not in _LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a level: one of {', '.join(_LEVELS)} is")
    return text.lower()


def _options() -> _Parser:
    """Return the options that both commands share."""
    default = ServerConf()
    parser = _Parser(add_help=False)
    parser.add_argument(
        "--bind",
        metavar="ADDR",
        type=bind,
        action="append",
        help="host:port, [v6]:port or unix:PATH, repeatable; port 0 picks one "
        "(default 127.0.0.1:8080)",
    )
    parser.add_argument(
        "--tls-cert",
        metavar="FILE",
        help="serve TLS on every bind with this certificate chain, in PEM; SIGHUP reads it again",
    )
    parser.add_argument("--tls-key", metavar="FILE", help="the certificate's private key, in PEM")
    parser.add_argument(
        "--tls-self-signed",
        action="store_true",
        help="the same with a throw-away certificate for localhost and 127.0.0.1",
    )
    parser.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        help="require client certificates, and verify them by these authorities, in PEM",
    )
    parser.add_argument(
        "--http",
        choices=("1", "2", "auto"),
        default=default.http,
        help="HTTP versions offered to clients; 2 on a cleartext bind means prior knowledge only "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--h2c",
        action="store_true",
        help="also accept HTTP/2 with prior knowledge on cleartext binds",
    )
    parser.add_argument(
        "--allow-connect",
        metavar="HOST:PORT",
        type=allowed,
        action="append",
        default=[],
        help="take CONNECT requests for this target, repeatable; either part may be *, and HOST "
        "*.example.com (default none)",
    )
    parser.add_argument(
        "--http1-codec",
        choices=("auto", "h11"),
        default=default.http1_codec,
        help="HTTP/1 parser; auto takes the fastest that is installed (default %(default)s)",
    )
    parser.add_argument(
        "--proxy-protocol",
        choices=("off", "in", "out", "both"),
        default=default.proxy_protocol,
        help="PROXY headers: in, every connection from a trusted proxy begins with one; out, those "
        "to origins do, in version 2 (default %(default)s)",
    )
    parser.add_argument(
        "--trusted-proxy",
        metavar="CIDR",
        dest="trusted_proxies",
        type=network,
        action="append",
        default=[],
        help="whose PROXY headers and X-Forwarded fields are believed: 10.0.0.0/8, 2001:db8::1, or "
        "unix for unix sockets; repeatable (default none)",
    )
    parser.add_argument(
        "--access-log",
        choices=("off", "common", "json"),
        default=default.access_log,
        help="one line a request, or a stream, on stdout (default %(default)s)",
    )
    for flag, about in (
        ("--connect-timeout", "for connecting to an origin"),
        ("--read-timeout", "for an origin's answer, and for each gap in it"),
        ("--write-timeout", "for a write without progress"),
        ("--idle-timeout", "for an idle client connection"),
        ("--header-timeout", "for a whole request head"),
    ):
        value = getattr(default, flag[2:].replace("-", "_"))
        parser.add_argument(
            flag,
            metavar="S",
            type=seconds,
            default=value,
            help=f"seconds {about}; 0 is off (default {value:g})",
        )
    parser.add_argument(
        "--max-header-bytes",
        metavar="N",
        type=size(64),
        default=default.max_header_bytes,
        help="limit on a request head; K, M, G may follow (default %(default)s)",
    )
    parser.add_argument(
        "--max-body-bytes",
        metavar="N",
        type=size(0),
        default=None,
        help="limit on a request body; K, M, G may follow (default none)",
    )
    parser.add_argument(
        "--grace",
        metavar="S",
        type=grace,
        default=default.grace,
        help=f"seconds that a graceful stop waits for requests in flight (default {default.grace:g})",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        type=level,
        default=default.log_level,
        help=f"{', '.join(_LEVELS)} (default %(default)s); the log goes to stderr",
    )
    return parser


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """Return the parser, and those of its commands by name."""
    parser = _Parser(
        prog="trioproxy",
        description="A programmable HTTP proxy on Trio.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trioproxy {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    shared = _options()
    reverse = commands.add_parser(
        "reverse",
        parents=[shared],
        allow_abbrev=False,
        help="a reverse proxy in front of one or several origins",
        description="A reverse proxy; several URLs are used in turn.",
    )
    reverse.add_argument(
        "origins",
        metavar="URL",
        nargs="+",
        type=origin,
        help="http://host[:port], https://host[:port] or http+unix:PATH; or, for streams of any "
        "protocol, tcp://host:port, tls://host:port, unix:PATH",
    )
    reverse.add_argument(
        "--rewrite-host",
        action="store_true",
        help="send the URL's host as Host, not the client's",
    )
    reverse.add_argument(
        "--upstream-http",
        choices=("1", "2", "auto"),
        default="auto",
        help="HTTP version used with origins; auto takes 2 where an https origin agrees to it, 2 on "
        "an http URL is prior knowledge (default %(default)s)",
    )
    reverse.add_argument(
        "--upstream-ca",
        metavar="FILE",
        help="whom to trust for https and tls URLs, in PEM (default system trust)",
    )
    reverse.add_argument(
        "--upstream-insecure",
        action="store_true",
        help="trust anybody at https and tls URLs; never do this outside of a test",
    )
    reverse.add_argument(
        "--cache",
        metavar="{off,memory,DIR}",
        default="off",
        help="RFC 9111 shared cache, in memory or in a directory; ./memory for one of that name "
        "(default %(default)s)",
    )
    reverse.add_argument(
        "--cache-size",
        metavar="BYTES",
        type=size(65536),
        default=256 << 20,
        help="what the cache may hold; K, M, G may follow (default 256M)",
    )
    reverse.add_argument(
        "--compress",
        action="store_true",
        help="compress responses for clients that accept zstd, br, gzip or deflate, as far as they "
        "are installed",
    )
    program = commands.add_parser(
        "run",
        parents=[shared],
        allow_abbrev=False,
        help="your own ProxyHttp or ProxyStream object, class or factory",
        description="Serve a ProxyHttp or ProxyStream object, or what a class or factory makes.",
    )
    program.add_argument(
        "target", metavar="MODULE:OBJECT", help="such as gateway:proxy or path/gateway.py:Gateway"
    )
    return parser, {"reverse": reverse, "run": program}


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, _Parser]:
    """Return the options and the parser of the command that was chosen."""
    parser, commands = _parser()
    options, rest = parser.parse_known_args(arguments)
    command = commands[options.command]
    if options.command == "reverse" and not any(each.startswith("-") for each in rest):
        # argparse takes only the URLs before the first option, which nobody could guess.
        try:
            options.origins += map(origin, rest)
        except argparse.ArgumentTypeError as exc:
            command.error(f"argument URL: {exc}")
    elif rest:
        command.error(f"{rest[0]!r} is not understood: {command.prog} --help lists what is")
    return options, command


def tls_settings(options: argparse.Namespace) -> TlsSettings | None:
    """Return what the options say of TLS, tried out; None where they say nothing.

    Raises:
      argparse.ArgumentTypeError: they do not go together, or a file cannot be used.
    """
    cert, key, own = options.tls_cert, options.tls_key, options.tls_self_signed
    if cert is None and not own:
        for name in ("tls_key", "tls_client_ca"):
            if (value := getattr(options, name)) is not None:
                raise argparse.ArgumentTypeError(
                    f"argument --{name.replace('_', '-')}: {value!r} needs a certificate: "
                    "--tls-cert FILE or --tls-self-signed is right beside it"
                )
        return None
    if own and (cert is not None or key is not None):
        raise argparse.ArgumentTypeError(
            f"argument --tls-self-signed: it takes the place of --tls-cert {cert or key!r}; "
            "one of them is right"
        )
    option = "--tls-self-signed" if own else "--tls-cert"
    try:
        settings = TlsSettings.self_signed() if own else TlsSettings(cert, key)
        TlsAcceptor(settings, ["h2", "http/1.1"])
        if options.tls_client_ca is not None:
            option = "--tls-client-ca"
            settings = attrs.evolve(settings, client_ca=options.tls_client_ca)
            TlsAcceptor(settings, ["h2", "http/1.1"])
    except (ValueError, ImportError) as exc:
        raise argparse.ArgumentTypeError(f"argument {option}: {exc}") from None
    return settings


def store(options: argparse.Namespace, command: _Parser) -> Storage:
    """Return the storage that ``--cache`` names."""
    if options.cache == "memory":
        return MemoryStorage(options.cache_size)
    if not options.cache:
        command.error("argument --cache: '' is no directory: off, memory or a directory is right")
    try:
        Path(options.cache).mkdir(parents=True, exist_ok=True)
        return DiskStorage(options.cache, options.cache_size)
    except OSError as exc:
        command.error(
            f"argument --cache: {options.cache!r}: {exc.strerror or exc}; off, memory or a "
            "directory that can be written is right"
        )


def _proxy(options: argparse.Namespace, command: _Parser) -> Proxy:
    """Return the proxy object that the options describe, or name."""
    if options.command == "run":
        try:
            return load(options.target)
        except argparse.ArgumentTypeError as exc:
            command.error(f"argument MODULE:OBJECT: {exc}")
    origins = [each for each in options.origins if isinstance(each, HttpPeer)]
    streams = [each for each in options.origins if isinstance(each, StreamPeer)]
    if origins and streams:
        command.error(
            f"argument URL: {streams[0]} is for streams and {origins[0]} is for HTTP: URLs of one "
            "kind are right"
        )
    trust = {"ca": options.upstream_ca, "insecure": options.upstream_insecure}
    try:
        if streams:
            return StreamReverse(stream_upstreams(streams, **trust))
        peers = upstreams(origins, http=options.upstream_http, **trust)
    except ValueError as exc:
        command.error(f"argument {exc}")
    compresses = compression() if options.compress else None
    if options.cache == "off":
        return Reverse(peers, rewrite_host=options.rewrite_host, compression=compresses)
    return CachingReverse(
        peers,
        rewrite_host=options.rewrite_host,
        compression=compresses,
        shared_cache=SharedCache(storage=store(options, command)),
    )


def _given(arguments: Sequence[str] | None, command: str) -> dict[str, object]:
    """Return the options that were given, whatever their values, for defaults look the same."""
    parser, commands = _parser()
    for action in commands[command]._actions:  # noqa: SLF001  # nothing else lists them
        action.default = argparse.SUPPRESS
    options, _ = parser.parse_known_args(arguments)
    return vars(options)


def _of_streams(
    options: argparse.Namespace, command: _Parser, given: dict[str, object]
) -> dict[str, object]:
    """Refuse options that are for HTTP alone; return the settings that streams have of others."""
    program = options.command == "run"
    what = options.target if program else options.origins[0]
    # A program may look at the first bytes of a stream, and does not wait for them for ever.
    # Nor for a PROXY header.
    reads = options.proxy_protocol in ("in", "both")
    refused = HTTP_ONLY - {"header_timeout"} if program or reads else HTTP_ONLY
    for name in sorted(given.keys() & refused):
        value, flag = given[name], f"--{name.replace('_', '-')}"
        shown = "it" if value is True else f"{0 if value == math.inf else value}"
        if isinstance(value, list):
            shown = ", ".join(map(str, value))
        command.error(
            f"argument {flag}: {shown} is for HTTP, and {what} is for streams: leave {flag} out"
        )
    if options.trusted_proxies and not reads:
        command.error(
            f"argument --trusted-proxy: {options.trusted_proxies[0]} is believed in PROXY headers "
            f"alone where {what} is for streams: --proxy-protocol in is right beside it"
        )
    if "idle_timeout" in given:
        return {"tunnel_idle_timeout": options.idle_timeout}
    return {}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line.

    Raises:
      SystemExit: always: 0 after a graceful stop, 1 where a listener cannot be bound or a second
        signal came, 2 for a mistake in the arguments.
    """
    options, command = _parse(arguments)
    if options.proxy_protocol in ("in", "both") and not options.trusted_proxies:
        command.error(
            f"argument --proxy-protocol: {options.proxy_protocol!r} believes nobody without a "
            "trusted proxy: --trusted-proxy CIDR is right beside it, such as --trusted-proxy "
            "10.0.0.0/8"
        )
    proxy = _proxy(options, command)
    names = {field.name for field in attrs.fields(ServerConf)}
    values = {name: value for name, value in vars(options).items() if name in names}
    if isinstance(proxy, ProxyStream):
        values |= _of_streams(options, command, _given(arguments, options.command))
    try:
        values["tls"] = tls_settings(options)
    except argparse.ArgumentTypeError as exc:
        command.error(str(exc))
    try:
        conf = ServerConf(**values)
    except ValueError:
        command.error(
            "argument --h2c: it is HTTP/2, which --http 1 keeps out; --http auto is right"
        )
    run(proxy, *(options.bind or ()), conf=conf)
    raise SystemExit(0)

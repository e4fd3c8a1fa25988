"""The demo: an origin, a gateway in front of it, and what the gateway's filters do to requests.

The gateway speaks HTTP/1.1, and HTTP/2 over TLS at a second address.

python -m examples                 the demo; it stays up until Ctrl-C
python -m examples --once          the same, and out: 0, or 1 where a reply was not right
python -m examples --list          the examples
python -m examples NAME            one of them, with an origin of its own

With TRIOPROXY_DEMO_BREAK=1 in the environment the gateway forgets a filter, and the demo says so.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import math
import os
import re
import signal
import socket
import ssl
import sys
import tempfile
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import attrs
import h11
import trio

import trioproxy
from trioproxy import HttpPeer, Listener, TlsSettings

from ._auth_service import serve as serve_auth
from ._cache_origin import serve as serve_cacheable
from ._chat import serve as serve_chat
from ._connect_server import serve as serve_connect
from ._gateway import Broken, Gateway
from ._grpc_origin import serve as serve_grpc
from ._h2_client import NoHttp2
from ._h2_client import get as get_over_h2
from ._origin import serve as serve_origin

HERE = Path(__file__).parent

#: What the certificates of an example are for, which it finds in its last argument.
CERTIFICATES = {
    "tls_gateway": ("one.test", "two.test"),
    "mtls": ("localhost", "me@example.test"),
    "custom_protocol": ("localhost",),
}
#: The examples whose origin is not that of all others.
ORIGINS = {
    "grpc_router": serve_grpc,
    "grpc_web_page": serve_grpc,
    "custom_protocol": serve_chat,
    "caching_gateway": serve_cacheable,
    "image_origin": serve_cacheable,
    "per_user_key": serve_cacheable,
    "purge": serve_cacheable,
    "stale_on_error": serve_cacheable,
}
#: The examples with a second origin like the first one.
TWO_ORIGINS = ("hedge", "mirror", "subrequest")
#: The examples below HTTP.
STREAMS = ("sni_router", "tcp_proxy")


def say(text: str = "") -> None:
    print(text, flush=True)


# -- the demo --------------------------------------------------------------------------------------


@attrs.frozen
class Step:
    """One request of the demo.

    Attributes:
      title: What it shows.
      target: The request target.
      lines: Lines that the reply must have, and which callback made them so.
      body: What is posted; a GET where there is nothing.
      absent: Field names that the reply must not have.
      http2: Whether it is sent over TLS and HTTP/2.
    """

    title: str
    target: str
    lines: dict[str, str]
    body: str = ""
    absent: tuple[str, ...] = ()
    http2: bool = False

    def curl(self, gateway: Addresses) -> str:
        """Return the command that sends this request."""
        post = f"-d '{self.body}' " if self.body else ""
        if self.http2:
            return f"curl -i -N --http2 --cacert {gateway.ca} {gateway.tls}{self.target}"
        return f"curl -i -N {post}{gateway.plain}{self.target}"


@attrs.frozen
class Addresses:
    """Where the gateway is: its URLs without TLS and with it, and the file of whom to trust."""

    plain: str
    tls: str
    ca: Path


STEPS = (
    Step(
        "Fields: one is added on the way in, one on the way back, and one is removed",
        "/hello",
        {
            "HTTP/1.1 200 OK": "",
            "x-served-by: gateway": "response_filter",
            "GET /hello": "from here on: what the origin was asked",
            "x-gateway: demo": "upstream_request_filter",
        },
        absent=("server",),
    ),
    Step(
        "An answer of the gateway's own: the origin is not asked",
        "/healthz",
        {"HTTP/1.1 200 OK": "request_filter", "fine": "request_filter"},
    ),
    Step(
        "A refusal",
        "/private",
        {"HTTP/1.1 403 Forbidden": "request_filter raised ProxyError.status(403)"},
    ),
    Step(
        "A body that is rewritten while it streams: each piece goes on as it comes",
        "/count",
        {
            "HTTP/1.1 200 OK": "",
            "transfer-encoding: chunked": "",
            "x-served-by: gateway": "response_filter",
            "1: one": "response_body_filter",
            "2: two": "response_body_filter",
            "3: three": "response_body_filter",
            "4: four": "response_body_filter",
            "5: five": "response_body_filter",
        },
    ),
    Step(
        "A POST: its body is rewritten on its way to the origin",
        "/shout",
        {
            "HTTP/1.1 200 OK": "",
            "x-served-by: gateway": "response_filter",
            "POST /shout": "from here on: what the origin was asked",
            "HELLO ORIGIN": "request_body_filter",
        },
        body="hello origin",
    ),
    Step(
        "The same gateway over TLS, where ALPN agrees on HTTP/2; the origin speaks HTTP/1.1",
        "/hello",
        {
            "HTTP/2 200": "",
            "x-served-by: gateway": "response_filter",
            "GET /hello": "from here on: what the origin was asked",
            "x-gateway: demo": "upstream_request_filter",
        },
        absent=("server",),
        http2=True,
    ),
)


@attrs.define
class Reply:
    """A reply as lines, and when each of its body's lines had come, in seconds."""

    head: list[str] = attrs.field(factory=list)
    body: str = ""
    arrived: list[float] = attrs.field(factory=list)


async def ask(gateway: Addresses, step: Step) -> Reply:
    """Send a step's request and read the reply, one connection for each."""
    if step.http2:
        trust = ssl.create_default_context(cafile=gateway.ca)
        head, body = await get_over_h2(gateway.tls, step.target, trust)
        return Reply(head, body)
    return await ask_over_h1(gateway.plain, step)


async def ask_over_h1(url: str, step: Step) -> Reply:
    authority = url.removeprefix("http://")
    host, _, port = authority.rpartition(":")
    connection = h11.Connection(h11.CLIENT)
    reply = Reply()
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        started = trio.current_time()
        fields = [("Host", authority), ("Connection", "close")]
        if step.body:
            fields.append(("Content-Length", str(len(step.body))))
        method = "POST" if step.body else "GET"
        await stream.send_all(
            (connection.send(h11.Request(method=method, target=step.target, headers=fields)) or b"")
            + (connection.send(h11.Data(step.body.encode())) or b"" if step.body else b"")
            + (connection.send(h11.EndOfMessage()) or b"")
        )
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Response):
                reason = event.reason.decode("latin-1")
                reply.head = [f"HTTP/1.1 {event.status_code} {reason}"]
                reply.head += [
                    f"{name.decode().lower()}: {value.decode('latin-1')}"
                    for name, value in event.headers.raw_items()
                ]
            elif isinstance(event, h11.Data):
                reply.body += event.data.decode("latin-1")
                new = reply.body.count("\n") - len(reply.arrived)
                reply.arrived += [trio.current_time() - started] * new
    return reply


def compare(step: Step, reply: Reply) -> list[str]:
    """Print a reply beside what made it so; return what is wrong with it."""
    body = reply.body.splitlines()
    times = (
        [f"{seconds * 1000:3.0f} ms" for seconds in reply.arrived]
        if step.target == "/count"
        else []
    )
    for index, line in enumerate([*reply.head, "", *body] if body else reply.head):
        made_by = step.lines.get(line, "")
        if 0 <= (place := index - len(reply.head) - 1) < len(times):
            made_by += f", {times[place]}"
        say(f"  {line:<44} <- {made_by}" if made_by else f"  {line}")
    names = [line.partition(":")[0] for line in reply.head[1:]]
    return [
        *(
            f"the line {line!r} is missing" + (f" ({made_by})" if made_by else "")
            for line, made_by in step.lines.items()
            if line not in reply.head and line not in body
        ),
        *(f"the field {name!r} is still there" for name in step.absent if name in names),
    ]


async def show(gateway: Addresses, logged: trio.MemoryReceiveChannel[str]) -> int:
    """Run every step; return how many replies were not right."""
    wrong = 0
    for number, step in enumerate(STEPS, 1):
        say(f"\n{number}. {step.title}\n\n$ {step.curl(gateway)}")
        faults: list[str] = []
        try:
            with trio.fail_after(10):
                faults = compare(step, await ask(gateway, step))
                say(f"\n  logging: {await logged.receive()}")
        except (OSError, trio.BrokenResourceError, h11.ProtocolError, NoHttp2) as exc:
            faults.append(f"{type(exc).__name__}: {exc}")
        except trio.TooSlowError:
            faults.append("no whole reply within 10 s")
        for fault in faults:
            say(f"  WRONG: {fault}")
        wrong += bool(faults)
    say()
    if wrong:
        say(f"{wrong} of {len(STEPS)} replies did not come back right.")
    else:
        say(f"All {len(STEPS)} replies came back right.")
    return wrong


async def demo(*, once: bool, gateway: type[Gateway] = Gateway) -> int:
    """Run the demo.

    Args:
      once: End behind the last step, in place of staying up until SIGINT or SIGTERM.
      gateway: What to show.

    Returns:
      The exit code: 1 where a reply was not right and ``once`` is set, else 0.
    """
    with tempfile.TemporaryDirectory(prefix="trioproxy-") as name:
        certificates = Path(name)
        make_certificates(certificates, "localhost")
        return await demo_with(certificates, once=once, gateway=gateway)


async def demo_with(certificates: Path, *, once: bool, gateway: type[Gateway]) -> int:
    wrong = 0
    stopping = False
    send, logged = trio.open_memory_channel[str](math.inf)

    async def stop_on_signal(signals: object, scope: trio.CancelScope) -> None:
        nonlocal stopping
        async for _ in signals:  # type: ignore[attr-defined]  # Trio has no public name for it
            stopping = True
            scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            origin = await nursery.start(serve_origin, "127.0.0.1:0")
            proxy = gateway(HttpPeer.parse(origin), send.send_nowait)
            tls = TlsSettings(str(certificates / "localhost.pem"))
            binds = ("127.0.0.1:0", Listener("127.0.0.1:0", tls=tls))
            running = await nursery.start(trioproxy.serve, proxy, *binds)
            at = Addresses(running.urls[0], running.urls[1], certificates / "ca.pem")
            with trio.CancelScope() as scope:
                nursery.start_soon(stop_on_signal, signals, scope)
                say(f"An origin runs at {origin}, and in front of it a gateway at {at.plain}")
                say(f"and, with TLS and HTTP/2, at {at.tls}.")
                wrong = await show(at, logged)
                if not once:
                    say(
                        f"\nBoth stay up until Ctrl-C. Ask the gateway {at.plain} from another "
                        "terminal:\n"
                    )
                    for step in STEPS:
                        say(f"  {step.curl(at)}")
                    say("\n(-k in place of --cacert FILE trusts anybody.)")
                    say("\nIts logging callback, as requests come:")
                    async for line in logged:
                        say(f"  {line}")
            await running.drain(timeout=5)
            nursery.cancel_scope.cancel()
    if stopping:
        say("\nStopped.")
        return 0
    return 1 if wrong else 0


# -- the examples ----------------------------------------------------------------------------------


def examples() -> dict[str, str]:
    """Return the examples, and the first line of each one's docstring."""
    found = {}
    for path in sorted(HERE.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = text.partition("\n")[0]
    return found


@contextlib.contextmanager
def an_origin(serve: Callable[..., Awaitable[None]] = serve_origin) -> Iterator[str]:
    """Run an origin in a thread, beside a program that has the main thread for itself."""
    started = threading.Event()
    url = ""
    token: trio.lowlevel.TrioToken
    scope: trio.CancelScope

    async def main() -> None:
        nonlocal url, token, scope
        token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                url = await nursery.start(serve, "127.0.0.1:0")
                started.set()
        finally:
            started.set()

    thread = threading.Thread(target=trio.run, args=(main,), name="origin", daemon=True)
    thread.start()
    started.wait()
    try:
        yield url
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join()


def a_tls_origin(name: str) -> contextlib.AbstractContextManager[str]:
    """Run an origin of a name, over TLS.

    Raises:
      SystemExit: the package that makes its certificate is not installed.
    """
    try:
        from ._tls_origin import serve
    except ModuleNotFoundError as exc:
        say(f"{exc.name} is needed here: python -m pip install 'trioproxy[selfsigned]'")
        raise SystemExit(1) from exc
    return an_origin(lambda bind, task_status: serve(bind, name, task_status=task_status))


def make_certificates(directory: Path, *names: str) -> None:
    """Write certificates for names, and whom to trust, into a directory.

    Raises:
      SystemExit: the package that makes them is not installed.
    """
    try:
        from ._certificates import make
    except ModuleNotFoundError as exc:
        say(f"{exc.name} is needed here: python -m pip install 'trioproxy[selfsigned]'")
        raise SystemExit(1) from exc
    make(directory, *names)


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """Hold an address on which nobody answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield "http://{}:{}".format(*sock.getsockname())


def run_example(name: str, about: str) -> None:
    """Run an example until Ctrl-C, on a free port."""
    main = importlib.import_module(f"examples.{name}").main
    text = inspect.cleandoc(inspect.getdoc(sys.modules[f"examples.{name}"]) or "")
    with contextlib.ExitStack() as stack:
        if name == "sni_router":
            origins = [stack.enter_context(a_tls_origin(each)) for each in ("one.test", "two.test")]
        else:
            origins = [stack.enter_context(an_origin(ORIGINS.get(name, serve_origin)))]
        if name in STREAMS:
            origins = [origin.replace("http:", "tcp:") for origin in origins]
        if name == "failover":
            origins.insert(0, stack.enter_context(nobody()))
        if name in TWO_ORIGINS:
            origins.append(stack.enter_context(an_origin()))
        if name == "connect_proxy":
            origins.append(stack.enter_context(an_origin(serve_connect)))
        if name == "forward_auth":
            origins.append(stack.enter_context(an_origin(serve_auth)))
        if name == "grpc_router":
            origins.append(stack.enter_context(an_origin(serve_grpc)))
        if name == "forward_proxy":
            origins = [origins[0].removeprefix("http://")]
        with nobody() as url:
            arguments = [*origins, url.removeprefix("http://")]
        certificates = "certs"
        if name in CERTIFICATES:
            certificates = stack.enter_context(tempfile.TemporaryDirectory(prefix="trioproxy-"))
            make_certificates(Path(certificates), *CERTIFICATES[name])
            arguments.append(certificates)
        if name == "image_origin":
            arguments.append(stack.enter_context(tempfile.TemporaryDirectory(prefix="trioproxy-")))
        # What to try: the docstring from its first command on, with the address that is in use.
        command = re.search(r"^ *\$ ", text, re.MULTILINE)
        assert command is not None
        commands = textwrap.dedent(text[command.start() :]).replace(
            "127.0.0.1:8080", arguments[len(origins)]
        )
        commands = commands.replace("certs/", f"{certificates}/")
        commands = commands.replace("127.0.0.1:9000", origins[0])
        say(f"{about} Ctrl-C ends it.\n\n{commands.strip()}\n")
        if inspect.iscoroutinefunction(main):
            trio.run(lambda: main(*arguments))
        else:
            main(*arguments)


# -- the command line ------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _Parser(prog="examples", description="The demo, or an example by name.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="run this example")
    parser.add_argument("--once", action="store_true", help="end after the demo's last request")
    parser.add_argument("--list", action="store_true", help="list the examples")
    options = parser.parse_args(arguments)
    known = examples()
    if options.list:
        for name, about in known.items():
            say(f"{name:<{max(map(len, known))}}  {about}")
        return 0
    if options.name is not None:
        if options.name not in known:
            parser.error(
                f"there is no example {options.name!r}: one of {', '.join(known)} is right"
            )
        if options.once:
            parser.error("--once is for the demo: an example by name runs until Ctrl-C")
        run_example(options.name, known[options.name])
        return 0
    gateway = Broken if os.environ.get("TRIOPROXY_DEMO_BREAK") else Gateway
    return trio.run(lambda: demo(once=options.once, gateway=gateway))


if __name__ == "__main__":
    sys.exit(main())

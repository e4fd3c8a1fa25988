"""A proxy object as a program: logging, signals, ready lines, an exit code."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator

import trio

from .._config import Listener, ServerConf
from .._errors import ErrorType, ProxyError
from .._util import unwrap
from ._access_log import LOGGER
from ._descriptors import raise_descriptor_limit
from ._kinds import Proxy, storages
from ._serve import Running, serve

log = logging.getLogger("trioproxy")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds for the storage of a cache to be closed.
CLOSE_TIME = 5.0
#: Reads the certificates again; Windows has no such signal.
RELOAD_SIGNALS = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()


def run(proxy: Proxy, *binds: str | Listener, conf: ServerConf | None = None) -> None:
    """Run a proxy as a program, until SIGINT or SIGTERM stops it.

    The log goes to standard error, and so does ``listening on URL`` for each listener when it
    accepts connections. The first signal stops gracefully within ``conf.grace``, a second one at
    once. SIGHUP reads the certificates again.

    Args:
      proxy: The proxy object: a `ProxyHttp`, a `Chain` or a `Route`, or a
        `trioproxy.stream.ProxyStream`.
      *binds: As for `serve`.
      conf: Timeouts, limits, log level and access log.

    Raises:
      SystemExit: 1, a listener cannot be bound (one line says which and why), or a second signal
        came. A graceful stop returns.
      TypeError: ``proxy`` is no such object.
      ValueError: a bind cannot be understood, or TLS settings cannot be used.
    """
    conf = ServerConf() if conf is None else conf
    set_up_logging(conf)
    raise_descriptor_limit()
    try:
        code = trio.run(_main, proxy, binds, conf)
    except BaseExceptionGroup as exc:
        raise unwrap(exc) from None
    if code:
        raise SystemExit(code)


def set_up_logging(conf: ServerConf) -> None:
    """Let the log write to standard error and the access log to standard output."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setLevel(conf.log_level.upper())
    access = logging.getLogger(LOGGER)
    for old in access.handlers.copy():
        access.removeHandler(old)
    if conf.access_log != "off":
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        access.addHandler(handler)
        access.setLevel(logging.INFO)
        access.propagate = False


def say(text: str) -> None:
    """Write one line to standard error, whatever the log level is."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


async def _main(proxy: Proxy, binds: tuple[str | Listener, ...], conf: ServerConf) -> int:
    code = 0

    async def stop_on_signal(running: Running, signals: AsyncIterator[int]) -> None:
        nonlocal code
        draining = False
        async for number in signals:
            name = signal.Signals(number).name
            if number in RELOAD_SIGNALS:
                if running.reload():
                    log.info("%s: the certificates were read again", name)
                continue
            if draining:
                log.warning("%s again: stopping at once", name)
                code = 1
                nursery.cancel_scope.cancel()
                return
            draining = True
            log.info("%s: stopping within %g s", name, conf.grace)
            nursery.start_soon(drain, running)

    async def drain(running: Running) -> None:
        await running.drain()
        nursery.cancel_scope.cancel()

    try:
        # Received from here on: a signal that comes while the listeners open counts as well.
        with trio.open_signal_receiver(*STOP_SIGNALS, *RELOAD_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                running = await nursery.start(
                    lambda task_status: serve(proxy, *binds, conf=conf, task_status=task_status)
                )
                nursery.start_soon(stop_on_signal, running, signals)
                for url in running.urls:
                    say(f"listening on {url}")
    except BaseExceptionGroup as group:
        exc = unwrap(group)
        if isinstance(exc, ProxyError) and exc.etype == ErrorType.BindError:
            say(f"trioproxy: error: {exc.context}")
            return 1
        raise exc from None
    finally:
        for storage in storages(proxy):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIME):
                await storage.aclose()
    return code

"""Sockets that accept connections."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from abc import ABC, abstractmethod

import attrs
import trio

from .._config import Listener
from .._info import ConnectionInfo
from .._peer import host_and_port
from ._byte_stream import ByteStream, SocketStream

BACKLOG = 1024
# Failures of one connection that was still in the queue: no fault of the listener (row R-06).
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "EPERM",
        "ENETDOWN",
        "EPROTO",
        "ENOPROTOOPT",
        "EHOSTDOWN",
        "ENONET",
        "EHOSTUNREACH",
        "EOPNOTSUPP",
        "ENETUNREACH",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)


def address_text(sockname: object) -> str | None:
    """Return a socket address as text, None for an unnamed unix socket."""
    if isinstance(sockname, tuple):
        return host_and_port(sockname[0], sockname[1])
    if isinstance(sockname, bytes):
        sockname = sockname.decode("utf-8", "replace")
    return f"unix:{sockname}" if sockname else None


class Acceptor(ABC):
    """Where connections come from: a listening socket, or a network in memory.

    Attributes:
      url: How it is called in ``Running.urls``.
    """

    url: str

    @abstractmethod
    async def accept(self) -> tuple[ByteStream, ConnectionInfo]:
        """Wait for the next connection.

        Raises:
          OSError: descriptors or memory have run out; trying again later helps.
          trio.ClosedResourceError: it is closed.
        """

    def accept_ready(self) -> tuple[ByteStream, ConnectionInfo] | None:
        """Return a connection that is here already, None where it takes a wait to tell."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Take no more connections."""


@attrs.define(eq=False)
class ListenSocket(Acceptor):
    """One listening socket.

    Attributes:
      url: ``SCHEME://host:port`` with the real port, or ``SCHEME+unix:PATH``; ``unix:PATH`` for
        what is no more than bytes.
    """

    _sock: socket.socket
    url: str
    _path: str | None = None
    _inode: int = 0
    _closed: bool = False

    async def accept(self) -> tuple[ByteStream, ConnectionInfo]:
        """Wait for the next connection.

        Raises:
          OSError: descriptors or memory have run out; trying again later helps.
          trio.ClosedResourceError: the listener is closed.
        """
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this listener is closed")
            await trio.lowlevel.wait_readable(self._sock)
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as exc:
                if exc.errno in _PASSING:
                    continue
                raise
            accepted = self._admit(sock, peer)
            if accepted is not None:
                return accepted

    def accept_ready(self) -> tuple[ByteStream, ConnectionInfo] | None:
        """Return a connection that is here already; an error is left for `accept` to tell."""
        if self._closed:
            return None
        try:
            sock, peer = self._sock.accept()
        except OSError:
            return None
        return self._admit(sock, peer)

    def _admit(self, sock: socket.socket, peer: object) -> tuple[ByteStream, ConnectionInfo] | None:
        try:
            stream = SocketStream(sock)
            local = address_text(sock.getsockname())
        except OSError:  # gone already
            sock.close()
            return None
        return stream, ConnectionInfo(
            local, address_text(peer), trio.current_time(), read_tcp_info=stream.tcp_info
        )

    def close(self) -> None:
        """Stop listening, and take a unix socket's file away."""
        if self._closed:
            return
        self._closed = True
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)


def _bind(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX and os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)  # type: ignore[arg-type]
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Take away a socket file that nobody answers on; anything else is left alone."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue must not stop the loop, and says that it is alive
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return


async def open_listeners(listener: Listener, *, scheme: str = "http") -> list[ListenSocket]:
    """Open the sockets for one bind; a host name may have several addresses.

    Port 0 gives one port for all of them.

    Args:
      listener: The bind.
      scheme: What is spoken there, for the URL.

    Raises:
      OSError: it cannot be bound.
    """
    if listener.path is not None:
        path = listener.path
        _remove_stale(path)
        sock = _bind(socket.AF_UNIX, path)
        url = f"unix:{path}" if scheme == "tcp" else f"{scheme}+unix:{path}"
        return [ListenSocket(sock, url, path, os.stat(path).st_ino)]
    try:
        found = await trio.to_thread.run_sync(
            lambda: socket.getaddrinfo(
                listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        )
    except UnicodeError as exc:
        raise OSError(errno.EINVAL, f"{listener.host!r} is not a host name") from exc
    addresses = list(dict.fromkeys((info[0], info[4]) for info in found))
    for attempt in range(16):
        opened: list[ListenSocket] = []
        port = listener.port
        try:
            for family, address in addresses:
                sock = _bind(family, (address[0], port, *address[2:]))
                name = sock.getsockname()
                port = name[1]
                opened.append(ListenSocket(sock, f"{scheme}://{address_text(name)}"))
        except OSError as exc:
            for each in opened:
                each.close()
            others = [each for each in addresses if each[0] != family]
            if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and others:
                # A family that this machine has no address of; the others will do.
                addresses = others
                continue
            if listener.port == 0 and exc.errno == errno.EADDRINUSE and attempt < 15:
                continue  # the port that was free in one family is taken in the other
            raise
        return opened
    raise OSError(errno.EADDRINUSE, "no port is free for all addresses")

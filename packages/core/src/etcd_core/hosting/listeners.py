"""The sockets this process listens on, and the address others can reach it at. No state.

Listening sockets are found through ``/proc``; where there is none, the first request tells.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..config import Endpoint
from .process import ListeningSocket

_FD_DIRECTORY = "/proc/self/fd"


@dataclass(frozen=True)
class Listener:
    """A TCP socket that listens. The host is an address, or a name where a request told it."""

    host: str
    port: int


def can_list() -> bool:
    """Tell whether this process can find its own listening sockets."""
    return os.path.isdir(_FD_DIRECTORY)


def listening() -> list[Listener]:
    """Return the TCP sockets this process listens on, IPv4 first. A few hundred microseconds."""
    found = {listener for sock in _sockets() if (listener := _tcp_address(sock))}
    return sorted(found, key=lambda each: (":" in each.host, each.port))


def listens_on_unix() -> bool:
    """Tell whether this process listens on a unix socket."""
    return any(sock.family == socket.AF_UNIX and _accepts(sock) for sock in _sockets())


def of_worker(sockets: Sequence[ListeningSocket]) -> list[Listener]:
    """Return the TCP sockets among those a gunicorn worker was given, in its order."""
    names = (each.getsockname() for each in sockets)
    return [Listener(name[0], name[1]) for name in names if isinstance(name, tuple)]


def inode(sock: ListeningSocket) -> int:
    """Return what identifies the socket across processes."""
    return os.fstat(sock.fileno()).st_ino


def holds_socket(pid: int, socket_inode: int) -> bool:
    """Tell whether process ``pid`` has the socket open; False where that cannot be seen."""
    wanted = f"socket:[{socket_inode}]"
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{descriptor}") == wanted:
                return True
    return False


def advertised(listener: Listener, endpoints: Sequence[Endpoint]) -> str:
    """Return ``host:port`` for others: a wildcard becomes the address that faces etcd.

    May resolve host names, so it may block.
    """
    address = _numeric(listener.host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_unspecified:
        return join(_facing(endpoints), listener.port)
    return join(str(address), listener.port)


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach ``host:port``."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def join(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address of a host; the unspecified one for a name that means nothing."""
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
        return ipaddress.ip_address(found[0][4][0])
    return ipaddress.IPv4Address(0)


def _facing(endpoints: Sequence[Endpoint]) -> str:
    """Return this machine's address on the way to etcd. Sends nothing."""
    for endpoint in endpoints:
        with suppress(OSError):
            candidates = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)
            for family, kind, protocol, _, target in candidates:
                with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                    probe.connect(target)
                    return str(probe.getsockname()[0])
    return socket.gethostname()


def _sockets() -> Iterator[socket.socket]:
    try:
        descriptors = os.listdir(_FD_DIRECTORY)
    except OSError:
        return
    for descriptor in descriptors:
        # Anything may be closed by another thread between two steps.
        with suppress(OSError):
            if not os.readlink(f"{_FD_DIRECTORY}/{descriptor}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(descriptor))) as sock:
                yield sock


def _tcp_address(sock: socket.socket) -> Listener | None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not _accepts(sock):
        return None
    try:
        name = sock.getsockname()
    except OSError:
        return None
    return Listener(name[0], name[1])


def _accepts(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False

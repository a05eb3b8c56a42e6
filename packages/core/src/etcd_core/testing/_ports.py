"""Ports for servers that are stopped and started again.

They are taken from below the range the kernel gives to outgoing connections: a client that keeps
dialling a stopped server on a port inside that range may be given that very port as its own,
connects to itself, and the server cannot come back.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_LOWEST = 10_000
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Not the shared generator: tests that seed it would all pick the same ports.
_random = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Pick ports of 127.0.0.1 that nobody listens on. Any thread; raises OSError if none."""
    ports: list[int] = []
    with ExitStack() as held:
        for _ in range(200 + count):
            if len(ports) == count:
                return ports
            sock = held.enter_context(socket.socket())
            try:
                sock.bind(("127.0.0.1", _candidate()))
            except OSError:
                continue
            ports.append(sock.getsockname()[1])
    if len(ports) == count:
        return ports
    raise OSError(f"no {count} free ports on 127.0.0.1")


def in_use(port: int) -> bool:
    """Tell whether somebody listens on the port; old connections of its own do not count."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _candidate() -> int:
    try:
        top = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    return _random.randrange(_LOWEST, top) if top > _LOWEST + 1000 else 0

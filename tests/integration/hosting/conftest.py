"""Fixtures: a view of the registry, and server processes that end with the test."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from etcd_core.testing import EtcdServer
from hosting_table import record
from serving import Registry, ServerProcess, Start, free_port

# Promised is that etcd delays a stop by 2 s at most. The rest is for what a stop takes anyway: a
# server that is told by a signal, an interpreter that shuts down, on a machine that is busy.
_PROMISED = 2.0
_ALLOWED = 3.0


@pytest.fixture
def stop_in_time() -> Callable[[ServerProcess], int]:
    """Stops a server with SIGTERM as etcd does not answer; gives its exit code."""

    def stop(server: ServerProcess) -> int:
        begun = time.monotonic()
        code = server.stop(signal.SIGTERM)
        took = time.monotonic() - begun
        assert took <= _PROMISED + _ALLOWED, f"{took:.1f} s\n{server.output}"
        return code

    return stop


@pytest.fixture
def registry(etcd_server: EtcdServer) -> Iterator[Registry]:
    shown = Registry(etcd_server, f"/hosting/{uuid.uuid4().hex}", "shop")
    yield shown
    shown.close()


@pytest.fixture
def start(request: pytest.FixtureRequest, registry: Registry) -> Iterator[Start]:
    servers: list[ServerProcess] = []
    watched = _watched(request, registry)
    with ExitStack() as stack:

        def run(*command: str, **env: str) -> ServerProcess:
            port = str(free_port())
            words = [word.replace("PORT", port) for word in command]
            server = ServerProcess(words, registry, TEST_PORT=port, **env)
            stack.callback(server.close)
            servers.append(server)
            return server

        yield run
        record(request.node, watched, servers)
        for server in servers:
            # Shown where the test failed.
            print(f"-- {' '.join(server.command)}\n{server.output}")


def _watched(request: pytest.FixtureRequest, registry: Registry) -> Registry:
    """Return where the test's servers registered."""
    if "own_registry" in request.fixturenames:
        own = request.getfixturevalue("own_registry")
        assert isinstance(own, Registry)
        return own
    return registry


@pytest.fixture
def own_etcd() -> Iterator[EtcdServer]:
    """An etcd that the test may stop."""
    with EtcdServer() as server:
        yield server


@pytest.fixture
def own_registry(own_etcd: EtcdServer, registry: Registry) -> Iterator[Registry]:
    shown = Registry(own_etcd, registry.prefix, registry.name)
    yield shown
    shown.close()

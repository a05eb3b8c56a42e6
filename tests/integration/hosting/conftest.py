"""Fixtures: a view of the registry, and server processes that end with the test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from etcd_core.testing import EtcdServer
from hosting_table import record
from serving import Registry, ServerProcess, Start, free_port


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

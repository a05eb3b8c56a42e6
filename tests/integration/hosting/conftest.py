"""Fixtures: a view of the registry, and server processes that end with the test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from etcd_core.testing import EtcdServer
from serving import Registry, ServerProcess, Start, free_port


@pytest.fixture
def registry(etcd_server: EtcdServer) -> Iterator[Registry]:
    shown = Registry(etcd_server, f"/hosting/{uuid.uuid4().hex}", "shop")
    yield shown
    shown.close()


@pytest.fixture
def start(registry: Registry) -> Iterator[Start]:
    with ExitStack() as stack:

        def run(*command: str, **env: str) -> ServerProcess:
            port = str(free_port())
            words = [word.replace("PORT", port) for word in command]
            server = ServerProcess(words, registry, TEST_PORT=port, **env)
            stack.callback(server.close)
            return server

        yield run


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the server matrix."""
    rows = [
        (report.nodeid.partition("[")[2].rstrip("]"), outcome)
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        if "::test_registered_while_serving[" in getattr(report, "nodeid", "")
    ]
    if not rows:
        return
    terminalreporter.section("registered while serving, gone afterwards")
    for name, outcome in sorted(rows):
        terminalreporter.write_line(f"{name:<34} {outcome}")

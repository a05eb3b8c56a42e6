"""Fixtures all suites share; the servers themselves come from ``etcd_core.testing``'s plugin."""

from __future__ import annotations

import os
import textwrap
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

import pytest

import hosting_table
from checkers import library_threads
from etcd_core import Client, Config
from etcd_core.testing import EtcdServer, FaultProxy
from takeovers import show_takeovers

MakeClient = Callable[..., Client]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="more rows of the servers' matrix, a longer soak and nemesis; default where CI is set",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="a further row of the servers' matrix: --full, or CI=1")
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(skip)


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test uses."""
    return f"/test/{uuid.uuid4().hex}"


@pytest.fixture
def make_client(prefix: str) -> Iterator[MakeClient]:
    """Make clients for any endpoints, with the test's prefix; they are closed at the end."""
    clients: list[Client] = []

    def make(*endpoints: str, interceptors: tuple[object, ...] = (), **options: object) -> Client:
        config = Config(list(endpoints), **{"prefix": prefix, **options})  # type: ignore[arg-type]
        client = Client(config, interceptors=interceptors)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def own_server() -> Iterator[EtcdServer]:
    """An etcd of this test's own, to be stopped, paused or wiped."""
    with EtcdServer() as server:
        yield server


@pytest.fixture
def proxy(etcd_server: EtcdServer) -> Iterator[FaultProxy]:
    """A proxy in front of the shared etcd."""
    with FaultProxy(etcd_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _no_leaked_threads() -> Iterator[None]:
    """Every test ends with the library's threads it began with (J8)."""
    before = library_threads()
    yield
    deadline = time.monotonic() + 5.0
    while (leaked := library_threads() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not leaked, f"threads left behind: {sorted(thread.name for thread in leaked)}"


# Here, since the process that prints the summary loads this file only.
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured, and what each suite cost."""
    reports = [
        report
        for group in terminalreporter.stats.values()
        for report in group
        if isinstance(report, pytest.TestReport)
    ]
    hosting_table.pytest_terminal_summary(terminalreporter)
    show_takeovers(terminalreporter, reports)
    _show_suites(terminalreporter, reports)


def _show_suites(
    terminalreporter: pytest.TerminalReporter, reports: Iterable[pytest.TestReport]
) -> None:
    """Print the summed seconds of each suite; several run at a time, so a run takes less."""
    seconds: dict[str, float] = defaultdict(float)
    for report in reports:
        seconds[_suite(report.nodeid)] += report.duration
    if not seconds:
        return
    each = ", ".join(f"{suite} {spent:.0f}" for suite, spent in sorted(seconds.items()))
    text = f"seconds per suite: {each}; in all {sum(seconds.values()):.0f}"
    terminalreporter.ensure_newline()
    for line in textwrap.wrap(text, 100, break_on_hyphens=False):
        terminalreporter.write_line(line)


def _suite(nodeid: str) -> str:
    """Return the folder below ``tests``, or the name of a file that is in none."""
    *folders, file = PurePosixPath(nodeid.partition("::")[0]).parts
    return "/".join(folders[1:]) or PurePosixPath(file).stem.removeprefix("test_")

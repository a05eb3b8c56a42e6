"""Pytest fixtures: a real etcd per test run, a client with a prefix of its own per test.

Pytest imports this module in every run where etcd-core is installed, so nothing heavy is imported
before a fixture is asked for.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from etcd_core import Client, Term

    from .server import EtcdServer


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """Run one etcd for the whole session (one per worker under pytest-xdist).

    Tests share it: use keys of your own and leave it running. Start an :class:`EtcdServer` of
    your own to stop, pause or wipe one. Where no etcd is found the test is skipped, or fails
    if the environment variable ``CI`` is set.
    """
    from .binary import EtcdNotFound, find_binaries
    from .server import EtcdServer

    try:
        find_binaries()
    except EtcdNotFound as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))
    with EtcdServer() as server:
        yield server


@pytest.fixture
def etcd_client(etcd_server: EtcdServer) -> Iterator[Client]:
    """Give a client with a prefix that no other test uses.

    It is closed and its keys are removed when the test ends.
    """
    from etcd_core import Client, Config

    prefix = f"/test/{uuid.uuid4().hex}"
    client = Client(Config(endpoints=[etcd_server.endpoint], prefix=prefix))
    try:
        yield client
    finally:
        client.close()
        if etcd_server.alive:
            etcd_server.delete_prefix(f"{prefix}/")


@pytest.fixture
def etcd_fake_leader() -> Iterator[Callable[..., Term]]:
    """Give ``fake_leader`` without a block: it lasts until the test ends. Needs no etcd.

    Example:
        >>> def test_report(etcd_fake_leader):
        ...     etcd_fake_leader("nightly-report", token=7)
        ...     assert report() is not None
    """
    from .fakes import fake_leader

    with ExitStack() as stack:
        yield lambda name, **options: stack.enter_context(fake_leader(name, **options))


@pytest.fixture
def etcd_no_leader() -> Iterator[Callable[[str], None]]:
    """Give ``no_leader`` without a block: it lasts until the test ends. Needs no etcd."""
    from .fakes import no_leader

    with ExitStack() as stack:
        yield lambda name: stack.enter_context(no_leader(name))

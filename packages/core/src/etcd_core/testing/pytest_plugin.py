"""Pytest fixtures: a real etcd per test run, a client with a prefix of its own per test.

Pytest imports this module in every run where etcd-core is installed, so nothing heavy is imported
before a fixture is asked for.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from etcd_core import Client

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

"""A server whose etcd is away: it serves, registers when etcd is back, and stops in time."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from etcd_core.hosting import HostOptions, ServiceHost, listeners
from etcd_core.hosting.listeners import Listener
from etcd_core.hosting.stopping import STOP_SECONDS
from etcd_core.sharing import SharedRegistration
from etcd_core.testing import EtcdServer, FaultProxy
from serving import PATIENCE, Registry, ServerProcess, Start

pytestmark = pytest.mark.timeout(180)

Stop = Callable[[ServerProcess], int]

GUNICORN = "-m gunicorn -b 127.0.0.1:PORT flask_site:create_app()"
WORKERS = "-m gunicorn -b 127.0.0.1:PORT -w 4 --preload flask_site:create_app()"
UVICORN = "-m uvicorn --port PORT djsite.asgi:application"
FLASK_RUN = "-m flask run -p PORT"
RUNSERVER = "-m django runserver --noreload PORT"
SERVERS = [
    pytest.param(GUNICORN, 0, id="gunicorn"),
    pytest.param(FLASK_RUN, -signal.SIGTERM, id="flask-run"),
    pytest.param(UVICORN, -signal.SIGTERM, id="uvicorn", marks=pytest.mark.full),
    pytest.param(RUNSERVER, -signal.SIGTERM, id="runserver", marks=pytest.mark.full),
    pytest.param(WORKERS, 0, id="gunicorn-preload-4", marks=pytest.mark.full),
]


@pytest.fixture
def proxy(etcd_server: EtcdServer) -> Iterator[FaultProxy]:
    with FaultProxy(etcd_server.endpoint) as proxy:
        yield proxy


@pytest.mark.parametrize(("command", "code"), SERVERS)
def test_a_black_hole_does_not_hold_up_the_stop(
    registry: Registry,
    start: Start,
    stop_in_time: Stop,
    proxy: FaultProxy,
    command: str,
    code: int,
) -> None:
    server = start(*command.split(), TEST_ENDPOINTS=proxy.endpoint)
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    proxy.hold()
    assert stop_in_time(server) == code, server.output
    assert registry.kinds() == ["added"]


@pytest.mark.parametrize(("command", "code"), SERVERS)
def test_etcd_restarted_empty(
    start: Start, own_etcd: EtcdServer, own_registry: Registry, command: str, code: int
) -> None:
    server = start(*command.split(), TEST_ENDPOINTS=own_etcd.endpoint)
    own_registry.wait_for(f"127.0.0.1:{server.port}")
    own_etcd.restart(wipe=True)
    own_registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == code, server.output
    own_registry.wait_for()


@pytest.mark.parametrize(("command", "code"), SERVERS)
def test_etcd_down_at_start(
    start: Start, own_etcd: EtcdServer, own_registry: Registry, command: str, code: int
) -> None:
    own_etcd.stop()
    server = start(*command.split(), TEST_ENDPOINTS=own_etcd.endpoint)
    server.wait_serving()
    own_etcd.start()
    own_registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == code, server.output
    own_registry.wait_for()


def test_etcd_down_all_along(
    start: Start, stop_in_time: Stop, own_etcd: EtcdServer, own_registry: Registry
) -> None:
    own_etcd.stop()
    server = start(*GUNICORN.split(), TEST_ENDPOINTS=own_etcd.endpoint)
    server.wait_serving()
    assert stop_in_time(server) == 0, server.output
    own_etcd.start()
    assert own_registry.addresses() == []


def test_name_resolution_and_etcd_that_hang_share_the_bound_of_the_stop(
    own_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = 1.5
    resolving, resolved = threading.Event(), threading.Event()
    waits: list[float | None] = []
    wait_left = SharedRegistration.wait_left

    def resolve(*_: object) -> str:
        resolving.set()
        resolved.wait(PATIENCE)
        return "10.0.0.1:80"

    def note_wait(share: SharedRegistration, seconds: float | None) -> bool:
        waits.append(seconds)
        return wait_left(share, seconds)

    monkeypatch.setattr(listeners, "listening", lambda: [Listener("0.0.0.0", 80)])
    monkeypatch.setattr(listeners, "advertised", resolve)
    monkeypatch.setattr(SharedRegistration, "wait_left", note_wait)
    own_etcd.pause()
    options = {"ENDPOINTS": own_etcd.endpoint, "SERVICE_NAME": "shop", "TIMEOUT": 20}
    with ServiceHost(HostOptions.parse(options)) as host:
        host.register()
        assert resolving.wait(PATIENCE)
        ends = threading.Timer(slow, resolved.set)
        ends.start()
        assert host.deregister(PATIENCE)
        ends.join()
        # What the name server took is not there for etcd any more.
        assert all(seconds is None or seconds <= STOP_SECONDS - slow + 1 for seconds in waits)


EXITS = """
import atexit, os, time

@atexit.register  # The first that is registered runs last.
def tell():
    print(f"exit took {time.monotonic() - began}, the import {loaded - started}")

started = time.monotonic()
from etcd_core.hosting import HostOptions, ServiceHost
loaded = time.monotonic()
host = ServiceHost(HostOptions.parse(
    {"ENDPOINTS": os.environ["TEST_ENDPOINTS"], "SERVICE_NAME": "shop", "TIMEOUT": 20}
))
host.register("10.0.0.1:80")
while host.registration is None:
    time.sleep(0.05)
began = time.monotonic()
"""


def test_the_client_that_closes_at_exit_too_shares_the_bound(
    start: Start, proxy: FaultProxy
) -> None:
    proxy.hold()
    program = start("-c", EXITS, TEST_ENDPOINTS=proxy.endpoint)
    assert program.wait() == 0, program.output
    found = re.search(r"exit took (\S+), the import (\S+)", program.output)
    assert found, program.output
    took, importing = map(float, found.groups())
    # The import says how busy the machine is; it takes a tenth of a second.
    assert took <= STOP_SECONDS + max(1.0, 3 * importing), program.output

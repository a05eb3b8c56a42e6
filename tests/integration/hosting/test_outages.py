"""A server whose etcd is away: it serves, registers when etcd is back, and stops in time."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from etcd_core.testing import EtcdServer, FaultProxy
from serving import Registry, ServerProcess, Start

pytestmark = pytest.mark.timeout(180)

Stop = Callable[[ServerProcess], int]

GUNICORN = "-m gunicorn -b 127.0.0.1:PORT -w 2 flask_site:create_app()"
UVICORN = "-m uvicorn --port PORT djsite.asgi:application"
FLASK_RUN = "-m flask run -p PORT"
RUNSERVER = "-m django runserver --noreload PORT"
SERVERS = [
    pytest.param(GUNICORN, 0, id="gunicorn"),
    pytest.param(UVICORN, -signal.SIGTERM, id="uvicorn"),
    pytest.param(FLASK_RUN, -signal.SIGTERM, id="flask-run"),
    pytest.param(RUNSERVER, -signal.SIGTERM, id="runserver", marks=pytest.mark.slow),
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

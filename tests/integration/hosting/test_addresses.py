"""What is advertised: given, a worker's socket, the one that listens, or what a request told."""

from __future__ import annotations

import os
import signal
import time

import pytest

from etcd_core.testing import eventually
from serving import PATIENCE, Registry, Start, free_port

pytestmark = pytest.mark.timeout(180)

GUNICORN = "-m gunicorn -b 127.0.0.1:PORT"


def test_unix_socket_is_not_registered(registry: Registry, start: Start) -> None:
    path = f"/tmp/hosting-{os.getpid()}-{time.monotonic_ns()}.sock"
    server = start("-m", "gunicorn", "-b", f"unix:{path}", "flask_site:create_app()")
    server.wait_said("unix socket only")
    assert server.stop() == 0
    assert registry.events == []


@pytest.mark.full
def test_address_given_for_a_unix_socket(registry: Registry, start: Start) -> None:
    path = f"/tmp/hosting-{os.getpid()}-{time.monotonic_ns()}.sock"
    server = start(
        "-m", "gunicorn", "-b", f"unix:{path}", "flask_site:create_app()",
        TEST_SERVICE_ADDRESS="shop.example:80",
    )  # fmt: skip
    registry.wait_for("shop.example:80")
    assert server.stop() == 0
    registry.wait_for()


@pytest.mark.parametrize(
    "command",
    [
        "-m flask run -p PORT",
        "-m uvicorn --port PORT djsite.asgi:application",
        pytest.param("-m django runserver --noreload PORT", marks=pytest.mark.full),
        pytest.param("-m waitress --listen 127.0.0.1:PORT flask_site:app", marks=pytest.mark.full),
    ],
)
def test_the_first_request_tells_where_sockets_cannot_be_listed(
    registry: Registry, start: Start, command: str
) -> None:
    server = start(*command.split(), TEST_NO_PROC="1")
    server.wait_open()
    assert registry.events == []
    server.get()
    registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == -signal.SIGTERM
    registry.wait_for()


def test_workers_need_no_listing(registry: Registry, start: Start) -> None:
    server = start(*GUNICORN.split(), "flask_site:create_app()", TEST_NO_PROC="1")
    registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == 0
    registry.wait_for()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="listed"),
        pytest.param({"TEST_NO_PROC": "1"}, id="not listed", marks=pytest.mark.full),
    ],
)
def test_an_address_that_is_given_comes_first(
    registry: Registry, start: Start, more: dict[str, str]
) -> None:
    more = {"TEST_SERVICE_ADDRESS": "shop.example:80", "TEST_OTHER_SOCKET": "1", **more}
    server = start("-m", "flask", "run", "-p", "PORT", **more)
    server.wait_serving()
    registry.wait_for("shop.example:80")
    assert server.stop() == -signal.SIGTERM
    registry.wait_for()


def test_several_ports_are_not_registered(registry: Registry, start: Start) -> None:
    server = start("-m", "flask", "run", "-p", "PORT", TEST_OTHER_SOCKET="1")
    server.wait_said("listens on several ports")
    assert server.stop() == -signal.SIGTERM
    assert registry.events == []


def test_the_first_of_two_binds_is_registered(registry: Registry, start: Start) -> None:
    other = f"127.0.0.1:{free_port()}"
    server = start(*GUNICORN.split(), "-b", other, "flask_site:create_app()")
    registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == 0
    registry.wait_for()


def test_port_zero_and_wildcard(registry: Registry, start: Start) -> None:
    server = start("-m", "gunicorn", "-b", "0.0.0.0:0", "flask_site:create_app()")
    found = eventually(registry.addresses, PATIENCE, message="registered")
    # The way to this etcd is the loopback interface.
    assert found[0].startswith("127.0.0.1:")
    assert not found[0].endswith(":0")
    assert server.stop() == 0
    registry.wait_for()

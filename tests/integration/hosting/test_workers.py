"""One entry for any number of workers: no gap while they come and go, gone with the last."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from etcd_core.testing import EtcdServer, eventually
from serving import Registry, ServerProcess, Start

pytestmark = pytest.mark.timeout(180)

GUNICORN = "-m gunicorn -b 127.0.0.1:PORT"


def start_four(start: Start, registry: Registry, *more: str, **env: str) -> ServerProcess:
    server = start(*GUNICORN.split(), "-w", "4", *more, "flask_site:create_app()", **env)
    server.wait_serving()
    wait_registered(server, 4)
    registry.wait_for(f"127.0.0.1:{server.port}")
    return server


def wait_registered(server: ServerProcess, count: int) -> None:
    eventually(lambda: server.output.count(": in place") >= count, 30, message=f"{count} workers")


def workers(server: ServerProcess) -> set[int]:
    return {child.pid for child in psutil.Process(server.pid).children()}


def assert_no_gap_and_gone(server: ServerProcess, registry: Registry) -> None:
    assert registry.kinds() == ["added"], server.output
    assert server.stop() == 0
    registry.wait_for()
    eventually(lambda: registry.kinds() == ["added", "removed"], message="one removal")


def test_killed_workers_leave_no_gap(registry: Registry, start: Start) -> None:
    server = start_four(start, registry)
    for count, pid in enumerate(sorted(workers(server)), start=5):
        os.kill(pid, signal.SIGKILL)
        wait_registered(server, count)
    assert_no_gap_and_gone(server, registry)


@pytest.mark.parametrize(
    "preload",
    [
        pytest.param([], id="plain", marks=pytest.mark.slow),
        pytest.param(["--preload"], id="preload"),
    ],
)
def test_reload_leaves_no_gap(registry: Registry, start: Start, preload: list[str]) -> None:
    server = start_four(start, registry, *preload)
    before = workers(server)
    server.process.send_signal(signal.SIGHUP)
    wait_registered(server, 8)
    eventually(lambda: not before & workers(server), 30, message="old workers gone")
    assert_no_gap_and_gone(server, registry)


@pytest.mark.slow
def test_scaling_leaves_no_gap(registry: Registry, start: Start) -> None:
    server = start_four(start, registry)
    server.process.send_signal(signal.SIGTTIN)
    wait_registered(server, 5)
    for left in (4, 3, 2, 1):
        server.process.send_signal(signal.SIGTTOU)
        eventually(lambda left=left: len(workers(server)) == left, 30, message=f"{left} workers")
    assert_no_gap_and_gone(server, registry)


@pytest.mark.slow
def test_the_only_worker_is_recycled_without_a_gap(registry: Registry, start: Start) -> None:
    server = start(*GUNICORN.split(), "-w", "1", "--max-requests", "20", "flask_site:create_app()")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    for count in (1, 2):
        wait_registered(server, count)
        booted = server.output.count("Booting worker")
        for _ in range(20):
            server.try_get()
        eventually(
            lambda booted=booted: server.output.count("Booting worker") > booted,
            60,
            message="recycled",
        )
    wait_registered(server, 3)
    assert_no_gap_and_gone(server, registry)


@pytest.mark.slow
def test_killed_server_goes_by_its_ttl(registry: Registry, start: Start) -> None:
    server = start_four(start, registry, TEST_TTL="2")
    server.signal_group(signal.SIGKILL)
    registry.wait_for()


@pytest.mark.slow
def test_server_started_again_at_once_keeps_the_entry(registry: Registry, start: Start) -> None:
    first = start_four(start, registry, TEST_TTL="6")
    first.signal_group(signal.SIGKILL)
    first.process.wait(10)
    # Nobody told etcd, so the next server finds the lease with part of its time gone.
    second = start(
        *GUNICORN.split()[:-1], f"127.0.0.1:{first.port}", "flask_site:create_app()", TEST_TTL="60"
    )
    wait_registered(second, 1)
    deadline = time.monotonic() + 7
    while time.monotonic() < deadline:
        assert registry.kinds() == ["added"], second.output
        time.sleep(0.1)
    assert second.stop() == 0
    registry.wait_for()


def test_forks_of_a_worker_do_not_disturb_it(registry: Registry, start: Start) -> None:
    server = start_four(start, registry)
    for _ in range(6):
        assert json.loads(server.get("/children"))["codes"] == [0, 0, 0, 0], server.output
    assert_no_gap_and_gone(server, registry)


def test_a_worker_that_is_not_ready_leaves_the_share(registry: Registry, start: Start) -> None:
    server = start(*GUNICORN.split(), "-w", "1", "flask_site:create_app()")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.get("/ready/no")
    registry.wait_for()
    server.get("/ready/yes")
    registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == 0
    registry.wait_for()


def test_drain_marks_the_entry_before_it_goes(registry: Registry, start: Start) -> None:
    server = start("-m", "flask", "run", "-p", "PORT", TEST_DRAIN="1.5")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.process.send_signal(signal.SIGTERM)
    eventually(
        lambda: registry.metadata() == [{"framework": "flask", "status": "draining"}],
        message="draining",
    )
    server.get()
    assert server.process.wait(30) == -signal.SIGTERM
    registry.wait_for()
    eventually(lambda: registry.kinds() == ["added", "modified", "removed"], message="events")


@pytest.mark.slow
def test_second_sigterm_cuts_the_drain_short(registry: Registry, start: Start) -> None:
    server = start("-m", "flask", "run", "-p", "PORT", TEST_DRAIN="600")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: registry.metadata()[0].get("status") == "draining", message="draining")
    assert server.stop() == -signal.SIGTERM
    registry.wait_for()


def test_etcd_restarted_meanwhile(
    start: Start, own_etcd: EtcdServer, own_registry: Registry
) -> None:
    server = start_four(start, own_registry, TEST_ENDPOINTS=own_etcd.endpoint)
    own_etcd.restart(wipe=True)
    own_registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == 0
    own_registry.wait_for()


def test_etcd_down_at_start(start: Start, own_etcd: EtcdServer, own_registry: Registry) -> None:
    own_etcd.stop()
    server = start(*GUNICORN.split(), "flask_site:create_app()", TEST_ENDPOINTS=own_etcd.endpoint)
    server.wait_serving()
    own_etcd.start()
    own_registry.wait_for(f"127.0.0.1:{server.port}")
    own_etcd.pause()
    try:
        begun = time.monotonic()
        assert server.stop() == 0
        # Two seconds are the bound; the rest is the machine's.
        assert time.monotonic() - begun < 15
    finally:
        own_etcd.resume()


def test_unix_socket_is_not_registered(registry: Registry, start: Start) -> None:
    path = f"/tmp/hosting-{os.getpid()}-{time.monotonic_ns()}.sock"
    server = start("-m", "gunicorn", "-b", f"unix:{path}", "flask_site:create_app()")
    eventually(lambda: "unix socket only" in server.output, 30, message="the warning")
    assert server.stop() == 0
    assert registry.events == []


@pytest.mark.slow
def test_address_given_for_a_unix_socket(registry: Registry, start: Start) -> None:
    path = f"/tmp/hosting-{os.getpid()}-{time.monotonic_ns()}.sock"
    server = start(
        "-m", "gunicorn", "-b", f"unix:{path}", "flask_site:create_app()",
        TEST_SERVICE_ADDRESS="shop.example:80",
    )  # fmt: skip
    registry.wait_for("shop.example:80")
    assert server.stop() == 0
    registry.wait_for()


def test_port_zero_and_wildcard(registry: Registry, start: Start) -> None:
    server = start("-m", "gunicorn", "-b", "0.0.0.0:0", "flask_site:create_app()")
    found = eventually(registry.addresses, 30, message="registered")
    # The way to this etcd is the loopback interface.
    assert found[0].startswith("127.0.0.1:")
    assert not found[0].endswith(":0")
    assert server.stop() == 0
    registry.wait_for()

"""One entry for any number of workers: no gap while they come and go, gone with the last."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from etcd_core.testing import eventually
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
    eventually(lambda: server.output.count(": in place") >= count, 60, message=f"{count} workers")


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


def arbiters(server: ServerProcess) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(server.pid).children()
        if any(grandchild.ppid() == child.pid for grandchild in child.children())
    ]


def test_an_upgrade_in_place_leaves_no_gap(registry: Registry, start: Start) -> None:
    # gunicorn starts itself again from sys.argv, which for "-m" would put its folder on the path.
    script = str(Path(sys.executable).with_name("gunicorn"))
    server = start(script, "-b", "127.0.0.1:PORT", "flask_site:create_app()")
    server.wait_serving()
    wait_registered(server, 1)
    server.process.send_signal(signal.SIGUSR2)
    wait_registered(server, 2)
    (successor,) = arbiters(server)
    assert server.stop() == 0
    server.get()
    assert registry.addresses() == [f"127.0.0.1:{server.port}"]
    assert registry.kinds() == ["added"], server.output
    successor.terminate()
    registry.wait_for()
    successor.wait(30)
    eventually(lambda: registry.kinds() == ["added", "removed"], message="one removal")


@pytest.mark.slow
def test_a_reload_on_change_leaves_no_gap(registry: Registry, start: Start, tmp_path: Path) -> None:
    watched = tmp_path / "watched.py"
    watched.touch()
    reloading = ["--reload", "--reload-engine", "poll", "--reload-extra-file", str(watched)]
    server = start(*GUNICORN.split(), *reloading, "flask_site:create_app()")
    server.wait_serving()
    wait_registered(server, 1)

    def noticed() -> bool:
        # The reloader notes the first time it sees; only a later one is a change.
        os.utime(watched)
        return "Worker reloading" in server.output

    eventually(noticed, 30, interval=0.5, message="reloaded")
    wait_registered(server, 2)
    assert_no_gap_and_gone(server, registry)


@pytest.mark.slow
def test_killed_server_goes_by_its_ttl(registry: Registry, start: Start) -> None:
    server = start_four(start, registry, TEST_TTL="2")
    server.signal_group(signal.SIGKILL)
    registry.wait_for()


@pytest.mark.slow
def test_server_started_again_at_once_keeps_the_entry(registry: Registry, start: Start) -> None:
    first = start_four(start, registry, TEST_TTL="10")
    first.signal_group(signal.SIGKILL)
    first.wait()
    # Nobody told etcd, so the next server finds the lease with part of its time gone.
    second = start(
        *GUNICORN.split()[:-1], f"127.0.0.1:{first.port}", "flask_site:create_app()", TEST_TTL="60"
    )
    wait_registered(second, 1)
    deadline = time.monotonic() + 11
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


class Verdict:
    """What the application's READY answers: the words of a file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "not-ready"
        self.env = {
            "TEST_READY": "flask_site.is_ready",
            "TEST_READY_INTERVAL": "0.2",
            "TEST_NOT_READY": str(self._file),
        }

    def set(self, *words: object) -> None:
        written = self._file.with_suffix(".new")
        written.write_text(" ".join(map(str, words)))
        written.replace(self._file)


def count(server: ServerProcess, text: str, times: int) -> None:
    eventually(lambda: server.output.count(text) == times, 30, message=f"{times} times {text!r}")


def test_workers_that_say_they_are_not_ready_leave_the_share(
    registry: Registry, start: Start, tmp_path: Path
) -> None:
    verdict = Verdict(tmp_path)
    verdict.set("all")
    server = start(*GUNICORN.split(), "-w", "2", "flask_site:create_app()", **verdict.env)
    server.wait_serving()
    count(server, "is not ready", 2)
    assert registry.events == []
    verdict.set()
    registry.wait_for(f"127.0.0.1:{server.port}")
    count(server, "is ready", 2)
    wait_registered(server, 2)
    verdict.set(min(workers(server)))
    count(server, "is not ready", 3)
    verdict.set("raise")
    registry.wait_for()
    count(server, "is not ready", 4)
    assert registry.kinds() == ["added", "removed"]
    verdict.set()
    registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == 0
    registry.wait_for()
    assert "no database" in server.output
    assert server.output.count("is not ready") == 4


@pytest.mark.parametrize(("path", "ready"), [("os.getpid", True), ("os.no_such_name", False)])
def test_django_is_asked_too(registry: Registry, start: Start, path: str, ready: bool) -> None:
    server = start(*GUNICORN.split(), "djsite.wsgi:application", TEST_READY=path)
    server.wait_serving()
    count(server, "shop is ready" if ready else "no_such_name", 1)
    registry.wait_for(*([f"127.0.0.1:{server.port}"] if ready else []))
    assert server.stop() == 0
    registry.wait_for()


def test_a_readiness_that_hangs_is_a_no_and_does_not_block_the_stop(
    registry: Registry,
    start: Start,
    stop_in_time: Callable[[ServerProcess], int],
    tmp_path: Path,
) -> None:
    verdict = Verdict(tmp_path)
    verdict.set()
    server = start("-m", "flask", "run", "-p", "PORT", **verdict.env)
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    verdict.set("hang")
    registry.wait_for()
    count(server, "no answer within", 1)
    assert stop_in_time(server) == -signal.SIGTERM


def test_taken_out_by_hand_it_stays_out(registry: Registry, start: Start, tmp_path: Path) -> None:
    verdict = Verdict(tmp_path)
    verdict.set()
    server = start(*GUNICORN.split(), "flask_site:create_app()", **verdict.env)
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.get("/ready/no")
    registry.wait_for()
    verdict.set("all")
    count(server, "is not ready", 1)
    verdict.set()
    count(server, "is ready", 2)
    assert registry.kinds() == ["added", "removed"]
    server.get("/ready/yes")
    registry.wait_for(f"127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    ("command", "framework"),
    [
        ("-m flask run -p PORT", "flask"),
        ("-m django runserver --noreload PORT", "django"),
        ("-m waitress --listen 127.0.0.1:PORT djsite.wsgi:application", "django"),
        pytest.param(
            "-m uvicorn --port PORT djsite.asgi:application", "django", marks=pytest.mark.slow
        ),
    ],
)
def test_drain_marks_the_entry_before_it_goes(
    registry: Registry, start: Start, command: str, framework: str
) -> None:
    server = start(*command.split(), TEST_DRAIN="1.5")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.process.send_signal(signal.SIGTERM)
    eventually(
        lambda: registry.metadata() == [{"framework": framework, "status": "draining"}],
        message="draining",
    )
    server.get()
    assert server.wait() == -signal.SIGTERM
    registry.wait_for()
    eventually(lambda: registry.kinds() == ["added", "modified", "removed"], message="events")


def drain_by_hand(server: ServerProcess, registry: Registry, start: Start) -> None:
    command = start("-m", "flask", "etcd", "drain", "--seconds", "0")
    assert command.wait() == 0, command.output
    assert f"127.0.0.1:{server.port}" in command.output
    assert registry.metadata()[0].get("status") == "draining"


@pytest.mark.parametrize("count", [1, 2])
def test_a_drained_server_stays_drained_when_a_worker_is_recycled(
    registry: Registry, start: Start, count: int
) -> None:
    server = start(*GUNICORN.split(), "-w", str(count), "flask_site:create_app()")
    server.wait_serving()
    wait_registered(server, count)
    drain_by_hand(server, registry, start)
    os.kill(min(workers(server)), signal.SIGTERM)
    wait_registered(server, count + 1)
    assert registry.metadata()[0].get("status") == "draining"
    # Another server at the same address, while the entry of the first one is still there.
    server.signal_group(signal.SIGKILL)
    server.wait()
    again = [*GUNICORN.split()[:-1], f"127.0.0.1:{server.port}", "flask_site:create_app()"]
    second = start(*again)
    wait_registered(second, 1)
    assert registry.metadata() == [{"framework": "flask"}]
    eventually(lambda: registry.kinds() == ["added", "modified", "modified"], message="events")
    assert second.stop() == 0


@pytest.mark.slow
def test_second_sigterm_cuts_the_drain_short(registry: Registry, start: Start) -> None:
    server = start("-m", "flask", "run", "-p", "PORT", TEST_DRAIN="600")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: registry.metadata()[0].get("status") == "draining", message="draining")
    assert server.stop() == -signal.SIGTERM
    registry.wait_for()

"""One entry for any number of workers: no gap while they come and go, gone with the last."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import death_watch
from etcd_core.testing import eventually
from serving import PATIENCE, Registry, ServerProcess, Start, has_ended

pytestmark = pytest.mark.timeout(180)

GUNICORN = "-m gunicorn -b 127.0.0.1:PORT"
UVICORN = "-m uvicorn --port PORT"
FLASK = "flask_site:create_app()"


def serve(start: Start, registry: Registry, count: int, *options: str, **env: str) -> ServerProcess:
    server = start(*GUNICORN.split(), "-w", str(count), *options, FLASK, **env)
    server.wait_serving()
    server.wait_registered(count)
    registry.wait_for(f"127.0.0.1:{server.port}")
    return server


def workers(server: ServerProcess) -> set[int]:
    return {child.pid for child in server.children()}


def assert_no_gap_and_gone(server: ServerProcess, registry: Registry, code: int = 0) -> None:
    assert registry.kinds() == ["added"], server.output
    assert server.stop() == code, server.output
    registry.wait_for()
    eventually(lambda: registry.kinds() == ["added", "removed"], PATIENCE, message="one removal")


def rows(*plain: str, full: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Run a test with so many workers, with or without ``--preload``, as ``"4 preload"`` says.

    Args:
        plain: The rows of any run.
        full: Further ones.
    """

    def row(words: str, *marks: pytest.MarkDecorator) -> object:
        count, how = words.split()
        options = ["--preload"] if how == "preload" else []
        return pytest.param(int(count), options, id=words, marks=marks)

    return pytest.mark.parametrize(
        ("count", "options"),
        [*map(row, plain), *(row(words, pytest.mark.full) for words in full)],
    )


@rows("2 preload", full=("4 plain", "4 preload"))
def test_killed_workers_leave_no_gap(
    registry: Registry, start: Start, count: int, options: list[str]
) -> None:
    server = serve(start, registry, count, *options)
    for told, pid in enumerate(sorted(workers(server)), start=count + 1):
        os.kill(pid, signal.SIGKILL)
        server.wait_registered(told)
    assert_no_gap_and_gone(server, registry)


@rows("2 preload", full=("1 plain", "1 preload", "4 plain", "4 preload"))
def test_reload_leaves_no_gap(
    registry: Registry, start: Start, count: int, options: list[str]
) -> None:
    server = serve(start, registry, count, *options)
    before = workers(server)
    server.process.send_signal(signal.SIGHUP)
    server.wait_registered(2 * count)
    eventually(lambda: not before & workers(server), PATIENCE, message="old workers gone")
    assert_no_gap_and_gone(server, registry)


@rows("2 preload", full=("4 plain", "4 preload"))
def test_scaling_leaves_no_gap(
    registry: Registry, start: Start, count: int, options: list[str]
) -> None:
    server = serve(start, registry, count, *options)
    server.process.send_signal(signal.SIGTTIN)
    server.wait_registered(count + 1)
    for left in range(count, 0, -1):
        server.process.send_signal(signal.SIGTTOU)
        eventually(
            lambda left=left: len(workers(server)) == left, PATIENCE, message=f"{left} workers"
        )
    assert_no_gap_and_gone(server, registry)


@rows("1 preload", full=("1 plain",))
def test_the_only_worker_is_recycled_without_a_gap(
    registry: Registry, start: Start, count: int, options: list[str]
) -> None:
    server = serve(start, registry, count, *options, "--max-requests", "20")
    for booted in (1, 2):
        for _ in range(20):
            server.try_get()
        server.wait_said("Booting worker", booted + 1)
        server.wait_registered(booted + 1)
    assert_no_gap_and_gone(server, registry)


@rows(full=("1 plain", "2 preload"))
def test_a_worker_that_hangs_is_replaced_without_a_gap(
    registry: Registry, start: Start, count: int, options: list[str]
) -> None:
    server = serve(start, registry, count, *options, "--timeout", "5")
    server.try_get("/hang")
    server.wait_said("WORKER TIMEOUT")
    server.wait_registered(count + 1)
    assert_no_gap_and_gone(server, registry)


@rows(full=("2 plain", "2 preload"))
def test_the_entry_goes_with_the_workers_of_a_killed_arbiter(
    registry: Registry, start: Start, count: int, options: list[str]
) -> None:
    server = serve(start, registry, count, *options, "--timeout", "6")
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    # Its time to live is ten minutes; workers look for their parent twice in their timeout.
    registry.wait_for()
    assert registry.kinds() == ["added", "removed"]


def arbiters(server: ServerProcess) -> list[psutil.Process]:
    return [
        child
        for child in server.children()
        if any(grandchild.ppid() == child.pid for grandchild in child.children())
    ]


@rows("1 plain", full=("1 preload",))
def test_an_upgrade_in_place_leaves_no_gap(
    registry: Registry, start: Start, count: int, options: list[str]
) -> None:
    # gunicorn starts itself again from sys.argv, which for "-m" would put its folder on the path.
    script = str(Path(sys.executable).with_name("gunicorn"))
    server = start(script, "-b", "127.0.0.1:PORT", *options, FLASK)
    server.wait_serving()
    server.wait_registered(count)
    server.process.send_signal(signal.SIGUSR2)
    server.wait_registered(2 * count)
    (successor,) = arbiters(server)
    assert server.stop() == 0
    server.get()
    assert registry.addresses() == [f"127.0.0.1:{server.port}"]
    assert registry.kinds() == ["added"], server.output
    successor.terminate()
    registry.wait_for()
    eventually(lambda: has_ended(successor), PATIENCE, message="the new server's end")
    eventually(lambda: registry.kinds() == ["added", "removed"], PATIENCE, message="one removal")


@pytest.mark.full
def test_a_daemon(registry: Registry, start: Start, tmp_path: Path) -> None:
    pid_file, log = tmp_path / "pid", tmp_path / "log"
    options = ["-w", "2", "--daemon", "--pid", str(pid_file), "--error-logfile", str(log)]
    server = start(*GUNICORN.split(), *options, "--capture-output", FLASK)
    assert server.wait() == 0, server.output
    pid = eventually(lambda: int(pid_file.read_text()), PATIENCE, message="the daemon's pid")
    daemon, group = psutil.Process(pid), os.getpgid(pid)
    death_watch.add(group)
    try:
        registry.wait_for(f"127.0.0.1:{server.port}")
        # One that were still on its way in would come when the other has left.
        eventually(lambda: log.read_text().count(": in place") == 2, PATIENCE, message="both in")
        daemon.terminate()
        eventually(lambda: has_ended(daemon), PATIENCE, message="the daemon's end")
        registry.wait_for()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        death_watch.remove(group)
    assert registry.kinds() == ["added", "removed"], log.read_text()


def spawned(server: ServerProcess) -> set[int]:
    """Return the workers of uvicorn; multiprocessing has a process of its own beside them."""
    children = {child.pid: child.cmdline() for child in server.children() if not has_ended(child)}
    return {pid for pid, words in children.items() if any("spawn_main" in word for word in words)}


@pytest.mark.full
@pytest.mark.parametrize("change", ["kill", "HUP"])
def test_workers_of_uvicorn_are_replaced_without_a_gap(
    registry: Registry, start: Start, change: str
) -> None:
    # On a busy machine the 5 s of its own are short for a worker's first answer; and a worker that
    # is killed while it is asked is missed only when that time is over.
    options = ["--workers", "2", "--timeout-worker-healthcheck", "20"]
    server = start(*UVICORN.split(), *options, "through_asgiref:application")
    server.wait_serving()
    server.wait_registered(2)
    before = spawned(server)
    if change == "HUP":
        server.process.send_signal(signal.SIGHUP)
        server.wait_registered(4)
    else:
        for told, pid in enumerate(sorted(before), start=3):
            os.kill(pid, signal.SIGKILL)
            server.wait_registered(told)
    eventually(lambda: not before & spawned(server), PATIENCE, message="old workers gone")
    assert registry.kinds() == ["added"], server.output
    server.stop()
    registry.wait_for()
    eventually(lambda: registry.kinds() == ["added", "removed"], PATIENCE, message="one removal")


@pytest.mark.full
def test_workers_of_uvicorn_that_end_by_ctrl_c_take_the_entry_along(
    registry: Registry, start: Start
) -> None:
    server = start(*UVICORN.split(), "--workers", "2", "through_asgiref:application")
    server.wait_serving()
    server.wait_registered(2)
    # As when they are through before their parent, which got it too, sends them SIGTERM.
    server.process.send_signal(signal.SIGSTOP)
    for pid in spawned(server):
        os.kill(pid, signal.SIGINT)
    registry.wait_for()
    assert registry.kinds() == ["added", "removed"]


@pytest.mark.full
def test_a_parents_sigterm_does_not_kill_a_worker_that_is_about_to_leave(
    registry: Registry, start: Start
) -> None:
    server = start(*UVICORN.split(), "--workers", "2", "through_asgiref:application")
    server.wait_serving()
    server.wait_registered(2)
    server.process.send_signal(signal.SIGSTOP)
    workers = spawned(server)
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    # By now uvicorn has put back what it found, which is what kills.
    eventually(lambda: server.output.count("Finished server") == 2, PATIENCE, interval=0.001)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    registry.wait_for()
    assert registry.kinds() == ["added", "removed"]


@pytest.mark.full
def test_a_reload_on_change_leaves_no_gap(registry: Registry, start: Start, tmp_path: Path) -> None:
    watched = tmp_path / "watched.py"
    watched.touch()
    reloading = ["--reload", "--reload-engine", "poll", "--reload-extra-file", str(watched)]
    server = start(*GUNICORN.split(), *reloading, FLASK)
    server.wait_serving()
    server.wait_registered(1)

    def noticed() -> bool:
        # The reloader notes the first time it sees; only a later one is a change.
        os.utime(watched)
        return "Worker reloading" in server.output

    eventually(noticed, PATIENCE, interval=0.5, message="reloaded")
    server.wait_registered(2)
    assert_no_gap_and_gone(server, registry)


@pytest.mark.full
def test_killed_server_goes_by_its_ttl(registry: Registry, start: Start) -> None:
    server = serve(start, registry, 4, TEST_TTL="5")
    server.signal_group(signal.SIGKILL)
    server.wait()
    registry.wait_for()


# Of the first server; it was renewed at most a third of it ago when that is killed.
_TTL = 15.0


@pytest.mark.full
def test_server_started_again_at_once_keeps_the_entry(registry: Registry, start: Start) -> None:
    first = serve(start, registry, 4, "--preload", TEST_TTL=str(_TTL))
    first.signal_group(signal.SIGKILL)
    killed = time.monotonic()
    first.wait()
    # Nobody told etcd, so the next server finds the lease with part of its time gone.
    second = start(*GUNICORN.split()[:-1], f"127.0.0.1:{first.port}", FLASK, TEST_TTL="60")
    second.wait_registered()
    if time.monotonic() - killed > _TTL / 2:
        pytest.skip("a machine so busy that the entry may have expired before the second start")
    while time.monotonic() < killed + _TTL + 1:
        assert registry.kinds() == ["added"], second.output
        time.sleep(0.1)
    assert second.stop() == 0
    registry.wait_for()


@rows("1 plain", full=("4 plain",))
def test_forks_of_a_worker_do_not_disturb_it(
    registry: Registry, start: Start, count: int, options: list[str]
) -> None:
    server = serve(start, registry, count, *options)
    for _ in range(2 + count):
        codes = json.loads(server.get("/children"))["codes"]
        if codes[0] == -signal.SIGABRT:
            # gRPC's own handlers, in a child with preexec_fn: "The limits of forking".
            assert "epoll_wait error: Bad file descriptor" in server.output
            codes[0] = 0
        assert codes == [0, 0, 0, 0], server.output
    assert_no_gap_and_gone(server, registry)


def test_a_worker_that_is_not_ready_leaves_the_share(registry: Registry, start: Start) -> None:
    server = start(*GUNICORN.split(), "-w", "1", FLASK)
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
    eventually(
        lambda: server.output.count(text) == times,
        PATIENCE,
        interval=0.05,
        message=f"{times} times {text!r}",
    )


def test_workers_that_say_they_are_not_ready_leave_the_share(
    registry: Registry, start: Start, tmp_path: Path
) -> None:
    verdict = Verdict(tmp_path)
    verdict.set("all")
    server = start(*GUNICORN.split(), "-w", "2", FLASK, **verdict.env)
    server.wait_serving()
    count(server, "is not ready", 2)
    assert registry.events == []
    verdict.set()
    registry.wait_for(f"127.0.0.1:{server.port}")
    count(server, "is ready", 2)
    server.wait_registered(2)
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


@pytest.mark.parametrize(
    ("path", "ready"),
    [("os.getpid", True), pytest.param("os.no_such_name", False, marks=pytest.mark.full)],
)
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
    server = start(*GUNICORN.split(), FLASK, **verdict.env)
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
        pytest.param(
            "-m waitress --listen 127.0.0.1:PORT djsite.wsgi:application", "django",
            marks=pytest.mark.full,
        ),
        pytest.param(
            "-m uvicorn --port PORT djsite.asgi:application", "django", marks=pytest.mark.full
        ),
    ],
)  # fmt: skip
def test_drain_marks_the_entry_before_it_goes(
    registry: Registry, start: Start, command: str, framework: str
) -> None:
    server = start(*command.split(), TEST_DRAIN="3")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    told = time.monotonic()
    assert server.stop() == -signal.SIGTERM, server.output
    assert time.monotonic() - told >= 3
    registry.wait_for()
    eventually(lambda: len(registry.events) == 3, PATIENCE, message="events")
    assert registry.kinds() == ["added", "modified", "removed"]
    assert dict(registry.events[1].info.metadata) == {"framework": framework, "status": "draining"}


def drain_by_hand(server: ServerProcess, registry: Registry, start: Start) -> None:
    command = start("-m", "flask", "etcd", "drain", "--seconds", "0")
    assert command.wait() == 0, command.output
    assert f"127.0.0.1:{server.port}" in command.output
    assert registry.metadata()[0].get("status") == "draining"


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_drained_server_stays_drained_when_a_worker_is_recycled(
    registry: Registry, start: Start, count: int
) -> None:
    server = start(*GUNICORN.split(), "-w", str(count), FLASK)
    server.wait_serving()
    server.wait_registered(count)
    drain_by_hand(server, registry, start)
    os.kill(min(workers(server)), signal.SIGTERM)
    server.wait_registered(count + 1)
    assert registry.metadata()[0].get("status") == "draining"
    # Another server at the same address, while the entry of the first one is still there.
    server.signal_group(signal.SIGKILL)
    server.wait()
    again = [*GUNICORN.split()[:-1], f"127.0.0.1:{server.port}", FLASK]
    second = start(*again)
    second.wait_registered(1)
    assert registry.metadata() == [{"framework": "flask"}]
    eventually(lambda: registry.kinds() == ["added", "modified", "modified"], PATIENCE)
    assert second.stop() == 0


@pytest.mark.parametrize(
    "command",
    [
        "-m uvicorn --port PORT through_a2wsgi:application",
        pytest.param("-m uvicorn --port PORT djsite.asgi:application", marks=pytest.mark.full),
        # systemd and Kubernetes signal the workers, and so does their parent then.
        pytest.param(
            "-m uvicorn --port PORT --workers 2 through_asgiref:application", marks=pytest.mark.full
        ),
    ],
)
def test_a_second_sigterm_leaves_a_request_to_its_end(
    registry: Registry, start: Start, command: str
) -> None:
    server = start(*command.split(" "))
    registry.wait_for(f"127.0.0.1:{server.port}")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.get, "/slow/3.0")
        server.wait_said("slow begins")
        server.signal_group(signal.SIGTERM)
        # The first one is with uvicorn by then.
        registry.wait_for()
        server.wait_said("Shutting down")
        server.signal_group(signal.SIGTERM)
        assert answer.result(PATIENCE) == "done"
    assert server.wait() in (-signal.SIGTERM, 0), server.output
    assert registry.kinds() == ["added", "removed"]


def test_second_sigterm_cuts_the_drain_short(registry: Registry, start: Start) -> None:
    server = start("-m", "flask", "run", "-p", "PORT", TEST_DRAIN="600")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: registry.metadata()[0]["status"] == "draining", PATIENCE, message="draining")
    server.get()
    assert server.stop() == -signal.SIGTERM
    registry.wait_for()

"""Real server processes and what the registry shows of them, for the hosting tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

import death_watch
from etcd_core import Client, Config, ServiceEvent, ServiceEventType
from etcd_core.testing import EtcdServer, eventually
from etcd_core.testing._ports import free_ports

APPS = Path(__file__).parents[1] / "integration" / "hosting" / "apps"
PATIENCE = 60.0


class Registry:
    """What watchers see of one service."""

    def __init__(self, server: EtcdServer, prefix: str, name: str) -> None:
        self.name = name
        self.prefix = prefix
        self.endpoint = server.endpoint
        self.client = Client(Config([server.endpoint], prefix=prefix))
        self.events: list[ServiceEvent] = []
        self.times: list[float] = []
        self._told: dict[str, str] = {}
        self._subscription = self.client.watch_service(name, self._note)

    def _note(self, event: ServiceEvent) -> None:
        self.times.append(time.monotonic())
        self.events.append(event)
        if event.type is ServiceEventType.REMOVED:
            self._told.pop(event.info.id, None)
        else:
            self._told[event.info.id] = event.info.address

    def close(self) -> None:
        self.client.close()

    def addresses(self) -> list[str]:
        return [each.address for each in self.client.discover(self.name)]

    def metadata(self) -> list[dict[str, str]]:
        return [dict(each.metadata) for each in self.client.discover(self.name)]

    def wait_for(self, *addresses: str) -> None:
        """Wait until etcd holds these, and watchers were told so."""
        wanted = sorted(addresses)
        eventually(
            lambda: sorted(self.addresses()) == wanted == sorted(self._told.values()),
            PATIENCE,
            message=f"{self.name} at {addresses}",
        )

    def kinds(self) -> list[str]:
        return [str(event.type) for event in self.events]


class ServerProcess:
    """A command in its own process group, its output in a file."""

    def __init__(self, command: list[str], registry: Registry, **env: str) -> None:
        self.command = command
        self.port = int(env.get("TEST_PORT") or 0)
        self.ended_at: float | None = None
        self._log = tempfile.NamedTemporaryFile("w+", prefix="hosting-", suffix=".log")  # noqa: SIM115
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
            "PYTHONPATH": str(APPS),
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "djsite.settings",
            "FLASK_APP": "flask_site:create_app",
            "TEST_ENDPOINTS": registry.endpoint,
            "TEST_PREFIX": registry.prefix,
            "TEST_SERVICE": registry.name,
            **env,
        }
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            # A run in the background of a shell ignores it, and a child would inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            cwd=APPS,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        death_watch.add(self.pid)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        # Not through the descriptor: the child shares its place, and would overwrite its lines.
        return Path(self._log.name).read_text()

    def get(self, path: str = "/") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    def try_get(self, path: str = "/") -> None:
        with suppress(OSError):
            self.get(path)

    def wait_serving(self) -> None:
        eventually(self.get, PATIENCE, interval=0.05, message=f"serving\n{self.output}")

    def wait_open(self) -> None:
        """Wait until it listens, without sending a request."""
        address = ("127.0.0.1", self.port)
        eventually(lambda: socket.create_connection(address, 5).close() is None, PATIENCE)

    def wait_said(self, text: str, times: int = 1) -> None:
        """Wait until its output has ``text`` so many times, or more often."""
        eventually(
            lambda: self.output.count(text) >= times,
            PATIENCE,
            interval=0.05,
            message=f"{times} times {text!r}\n{self.output}",
        )

    def wait_registered(self, workers: int = 1) -> None:
        """Wait until so many processes have said that the entry is in place."""
        self.wait_said(": in place", workers)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children()

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def interrupt_reloader(self) -> int:
        """Press Ctrl-C under the reloader of Django or Flask; return the exit code.

        The process that serves gets it first, and its parent when that has ended. On a terminal
        both get it at once, and the parent, which is in ``subprocess.run()`` or ``call()``, then
        waits a quarter of a second and sends SIGKILL: on a busy machine that is before the child
        has told etcd.
        """
        for child in self.children():
            child.send_signal(signal.SIGINT)
            eventually(lambda child=child: has_ended(child), PATIENCE, message="the child's end")
        with suppress(ProcessLookupError):
            self.signal_group(signal.SIGINT)
        return self.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the parent and wait for its end; return its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the parent's end; return its exit code."""
        code = self.process.wait(seconds)
        self.ended_at = time.monotonic()
        return code

    def close(self) -> None:
        # The group is ours: it was started as a session of its own.
        for _ in range(10):
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
            self.process.poll()
            time.sleep(0.02)
        self.process.wait(5)
        death_watch.remove(self.pid)
        self._log.close()


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process that is not our child has ended, reaped or not."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    return free_ports(1)[0]


Start = Callable[..., ServerProcess]

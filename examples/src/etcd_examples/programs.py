"""Child processes of the demo: each in a session of its own, its output in a file, ended for sure.

Used from the main thread only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import Self

APPS = "etcd_examples.demo_apps"
STOP_SECONDS = 5.0


class Program:
    """One ``python -m ...`` and what it printed."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path, port: int):
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self._log = log
        self._told_to_end = False
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=env,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the demo, which then stops its programs in the right order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def output(self) -> str:
        """Return all it printed."""
        return self._log.read_text(errors="replace")

    def said(self) -> list[dict[str, int | None]]:
        """Return the JSON lines it printed, without the one that may be half written."""
        whole, _, _ = self.output().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def tokens(self) -> list[int]:
        """Return the fencing tokens it ran under, oldest first."""
        return [token for line in self.said() if (token := line["token"]) is not None]

    def get(self) -> dict[str, str]:
        """Return the JSON of its front page.

        Raises:
            OSError: It does not answer.
        """
        with urllib.request.urlopen(f"http://{self.address}/", timeout=5) as answer:
            page: dict[str, str] = json.load(answer)
        return page

    def failed(self) -> bool:
        """Tell whether it ended by an error, and not because it was told to."""
        return not self._told_to_end and self._process.poll() not in (None, 0)

    def done(self) -> bool:
        """Tell whether it ended well."""
        return self._process.poll() == 0

    def terminate(self) -> None:
        """Ask it to end."""
        self._told_to_end = True
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._told_to_end = True
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> int:
        """Wait for its end and return the exit status."""
        return self._process.wait(seconds)

    def close(self, deadline: float) -> None:
        """Wait for its end until ``deadline``, then end its whole process group."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        # A worker that its dead parent left behind is still in the group, which is ours alone.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Programs:
    """Starts programs and ends what is left of them.

    Args:
        env: Environment variables for all of them.
    """

    def __init__(self, **env: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="etcd-demo-")
        self._env = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": self._folder.name,
            "DJANGO_SETTINGS_MODULE": f"{APPS}.office.settings",
            **env,
        }
        self._started: list[Program] = []

    def start(self, name: str, *command: str, port: int = 0) -> Program:
        """Start ``python -m command``."""
        log = Path(self._folder.name) / f"{name}.log"
        with uninterrupted():
            program = Program(name, list(command), self._env, log, port)
            self._started.append(program)
        return program

    def failures(self) -> str:
        """Return the output of those that ended by an error; empty if none did."""
        return "\n".join(
            f"{each.name} ended\n{each.output()}" for each in self._started if each.failed()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for each in self._started:
            each.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for each in self._started:
            each.close(deadline)
        self._folder.cleanup()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back: a program that runs before it is known would be left behind."""
    late: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: late.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if late:
            signal.raise_signal(late[0])


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

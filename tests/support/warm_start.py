"""Starts programs by forking a process that has imported what they need.

The imports of some programs cost more than all that a test does with them. A program that is forked
after its imports is as real as one that is started: a process with an environment, a folder, a
session and an end of its own. Run as a program this file is the process that forks; it imports
modules whose names it is given, has no thread, and runs no code of a program before the fork. When
its owner is gone, it kills what it forked.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path


class Program:
    """One program, as :class:`subprocess.Popen` shows one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.returncode if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code, negative after a signal."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def told_ended(self, status: int) -> None:
        """Note how it ended."""
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


class WarmStart:
    """The process that forks, for ``module:function`` programs. A context manager.

    Args:
        modules: What it imports.
    """

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._programs: dict[int, Program] = {}
        self._started: list[Program] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="etcd-test-warm", daemon=True)
        self._reader.start()

    def start(self, program: str, *args: str, env: dict[str, str], cwd: Path, log: Path) -> Program:
        """Run ``module:function`` with ``args`` as ``sys.argv``, in a session of its own."""
        order = {"program": program, "args": args, "env": env, "cwd": str(cwd), "log": str(log)}
        assert self._process.stdin is not None
        with self._changed:
            number = len(self._started)
            self._process.stdin.write(f"{json.dumps(order)}\n")
            self._process.stdin.flush()
            assert self._changed.wait_for(lambda: len(self._started) > number, 60)
            return self._started[number]

    def __enter__(self) -> WarmStart:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Kill what still runs."""
        for program in self._started:
            program.kill()
            program.wait(20)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, status = json.loads(line)
            with self._changed:
                if status is None:
                    self._programs[pid] = Program(pid)
                    self._started.append(self._programs[pid])
                else:
                    self._programs[pid].told_ended(status)
                self._changed.notify_all()


# -- the process that forks ------------------------------------------------------------------------


def _serve() -> Callable[[], object]:
    """Fork for each order; return, in the child, what it is to run. Ends with its input."""
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    # A handler must be there, or the signal wakes nobody.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake)
    running: set[int] = set()
    rest = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 1 << 12)
            _tell_ended(running)
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                _kill(running)
                sys.exit()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(woken)
                    os.close(wake)
                    return _become(**json.loads(line))
                running.add(pid)
                _tell(pid, None)


def _tell_ended(running: set[int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            running.remove(pid)
            _tell(pid, status)


def _kill(running: set[int]) -> None:
    for group in running:
        # One that was forked a moment ago may not be a group yet.
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, signal.SIGKILL)
            os.killpg(group, signal.SIGKILL)
        os.waitpid(group, 0)


def _tell(pid: int, status: int | None) -> None:
    print(json.dumps([pid, status]), flush=True)


def _become(
    program: str, args: list[str], env: dict[str, str], cwd: str, log: str
) -> Callable[[], object]:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    _redirect(os.open(os.devnull, os.O_RDONLY), 0)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        _redirect(os.dup(target), descriptor)
    os.close(target)
    module, _, function = program.partition(":")
    sys.argv = [module, *args]
    sys.path[0] = cwd
    sys.path[1:1] = env.get("PYTHONPATH", "").split(os.pathsep)
    run: Callable[[], object] = getattr(importlib.import_module(module), function)
    return run


def _redirect(source: int, target: int) -> None:
    os.dup2(source, target)
    os.close(source)


def _main() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    _serve()()


if __name__ == "__main__":
    _main()

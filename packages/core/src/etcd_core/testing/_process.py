"""One child process: started, signalled and reaped here, by the process that started it.

Any thread may call. A forked child of the owner holds a copy of the object, and must neither
signal nor reap: there every control raises, and the clean-up at exit does nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

_KEEPER = Path(__file__).with_name("_keeper.py")


class Process:
    """A running program that ends with its owner, whatever way the owner ends."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], log: Path, trash: Path | None
    ) -> None:
        """Start ``command``, with its output appended to ``log``.

        The guard removes ``trash`` if the owner dies while the program runs.
        """
        self._owner = os.getpid()
        keeper = [sys.executable, "-I", "-S", os.fspath(_KEEPER)]
        arguments = [str(self._owner), os.fspath(trash) if trash else "", *command]
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                [*keeper, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                # Ctrl-C is for the owner: the server must outlive the clean-up of its users.
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(self, _end, self._popen, self._owner)

    @property
    def pid(self) -> int:
        """The process id of the program itself."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended. Reaps it if it has."""
        self._check_owner()
        return self._popen.poll() is None

    def pause(self) -> None:
        """Stop it with SIGSTOP; returns when every thread of it has stopped."""
        self._signal(signal.SIGSTOP)
        if sys.platform == "linux":
            while self.alive:
                # WNOWAIT leaves the status alone: only Popen may collect the exit status.
                flags = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
                if os.waitid(os.P_PID, self.pid, flags) is not None:
                    return
                time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        self._signal(signal.SIGCONT)

    def terminate(self, timeout: float) -> None:
        """End it with SIGTERM, and with SIGKILL if it is still there after ``timeout`` seconds."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._finalizer.detach()

    def kill(self) -> None:
        """End it with SIGKILL and wait for that."""
        self._signal(signal.SIGKILL)
        self._popen.wait()
        self._finalizer.detach()

    def _signal(self, number: int) -> None:
        self._check_owner()
        # Popen polls first, so a pid that was given to another process is never signalled.
        self._popen.send_signal(number)

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"process {self.pid} belongs to process {self._owner}: "
                "a forked child can use the server but not control it"
            )


def _end(popen: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner and popen.poll() is None:
        popen.kill()
        popen.wait()

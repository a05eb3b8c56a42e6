"""Ends process groups whose owner was killed: one guard process for each process that tests run in.

The guard reads from a pipe which groups are alive; that it ends tells of the owner's death. Run as
a program this file is the guard: standard library only.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from contextlib import suppress

_guard: subprocess.Popen[str] | None = None
_guard_of: int | None = None


def add(group: int) -> None:
    """Have the process group killed if this process dies before :func:`remove`."""
    _tell(f"+{group}")


def remove(group: int) -> None:
    """Forget the process group: it has ended."""
    _tell(f"-{group}")


def _tell(line: str) -> None:
    global _guard, _guard_of
    if _guard is None or _guard_of != os.getpid():
        command = [sys.executable, "-S", __file__]
        _guard = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        _guard_of = os.getpid()
        atexit.register(_dismiss, _guard)
    assert _guard.stdin is not None
    _guard.stdin.write(f"{line}\n")
    _guard.stdin.flush()


def _dismiss(guard: subprocess.Popen[str]) -> None:
    if _guard_of == os.getpid():
        guard.communicate(timeout=10)


def _main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    _main()

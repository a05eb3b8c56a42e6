"""Runs as a program: becomes the server, and leaves a guard that ends it with its owner.

``python _keeper.py OWNER_PID TRASH COMMAND...`` forks a guard and then execs COMMAND, so the pid
and the exit status are the command's own. The guard kills the command when the owner dies, even
by SIGKILL, and removes the folder TRASH ("" for none). PR_SET_PDEATHSIG would not do: it follows
the *thread* that started the process. Standard library only, no threads.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time

_POLL = 0.2


def _main(argv: list[str]) -> None:
    owner, trash, command = int(argv[1]), argv[2], argv[3:]
    owner_fd = _pidfd(owner)
    # Checked after the pidfd is open: from here on it cannot mean a recycled pid.
    if os.getppid() != owner:
        return
    server = os.getpid()
    if os.fork() == 0:
        _guard(owner, owner_fd, server, trash)
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execv(command[0], command)


def _guard(owner: int, owner_fd: int | None, server: int, trash: str) -> None:
    server_fd = _pidfd(server)
    if os.getppid() != server:
        return
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if owner_fd is None or server_fd is None:
        ended = _poll_owner(owner, server)
    else:
        ended = _await_owner(owner_fd, server_fd)
    if not ended:
        return
    _kill(server, server_fd)
    if trash:
        shutil.rmtree(trash, ignore_errors=True)


def _await_owner(owner_fd: int, server_fd: int) -> bool:
    """Block until one of the two is gone; true if it is the owner."""
    poll = select.poll()
    poll.register(owner_fd, select.POLLIN)
    poll.register(server_fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    return owner_fd in ready


def _poll_owner(owner: int, server: int) -> bool:
    """As :func:`_await_owner` where the kernel has no pidfd."""
    while os.getppid() == server:
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            return True
        time.sleep(_POLL)
    return False


def _kill(server: int, server_fd: int | None) -> None:
    try:
        if server_fd is not None and sys.platform == "linux":
            signal.pidfd_send_signal(server_fd, signal.SIGKILL)
        elif os.getppid() == server:
            os.kill(server, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _pidfd(pid: int) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old kernel, or a sandbox that does not let us
        return None


if __name__ == "__main__":
    _main(sys.argv)

"""Which processes of this machine serve one address: a lock file that the kernel releases.

Every process holds the file's shared lock while it serves. Whoever leaves and then gets the
exclusive lock was the last one. A process that is killed leaves with its file descriptor. Beside it
lies the mark that the address was drained. Owned by the one thread that looks after a shared
registration; nothing here does network I/O.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from . import forking

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: no shared registrations
    fcntl = None


class Presence:
    """This process's part in serving one address.

    Args:
        name: What is served; processes with an equal name on one machine and of one user meet.
    """

    def __init__(self, name: str) -> None:
        self._file_name = hashlib.sha256(name.encode()).hexdigest()[:32]
        self._fd: int | None = None
        forking.track(self)

    @staticmethod
    def supported() -> bool:
        """Tell whether this platform has the lock files."""
        return fcntl is not None

    def enter(self) -> bool:
        """Take part; return False if one is just leaving as the last: try again in a moment.

        Raises:
            OSError: The runtime directory cannot be used.
        """
        if self._fd is not None:
            return True
        assert fcntl is not None
        path = runtime_directory() / self._file_name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # The last one removes the file; a lock on a file that is gone meets nobody.
            if _is_at(fd, path):
                self._fd, fd = fd, -1
        except BlockingIOError:
            pass
        finally:
            if fd >= 0:
                os.close(fd)
        return self._fd is not None

    @contextmanager
    def leave(self) -> Iterator[bool]:
        """Take part no more; gives whether nobody else does. Newcomers wait until it is left."""
        fd, self._fd = self._fd, None
        if fd is None or fcntl is None:
            yield False
            return
        try:
            yield _is_last(fcntl, fd)
        finally:
            # Not by the close alone: a child of another thread's, on its way to exec, has a copy.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def remove(self) -> None:
        """Remove the file; only inside :meth:`leave`, by the last one."""
        with suppress(OSError):
            (runtime_directory() / self._file_name).unlink()

    def mark_drained(self) -> None:
        """Note that the processes which serve the address now are being drained.

        Raises:
            OSError: The runtime directory cannot be used.
        """
        boot = _boot()
        if boot is not None:
            self._mark().write_text(f"{boot} {_since_boot()}")

    def unmark_drained(self) -> None:
        """Take :meth:`mark_drained` back."""
        with suppress(OSError):
            self._mark().unlink()

    def drained_since(self, started: float | None) -> bool:
        """Tell whether the address was drained after a server started.

        Args:
            started: As :func:`started_at` gives it.
        """
        if started is None:
            return False
        try:
            boot, _, moment = self._mark().read_text().partition(" ")
            return boot == _boot() and float(moment) >= started
        except (OSError, ValueError):
            return False

    def _mark(self) -> Path:
        return runtime_directory() / f"{self._file_name}.drained"

    def after_fork_in_child(self) -> None:
        """Let go of the inherited descriptor: a child must not look like a serving process."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _is_last(flock: ModuleType, fd: int) -> bool:
    # The kernel drops the shared lock before it tries the exclusive one, so of two processes that
    # leave at the same time the later one gets it.
    try:
        flock.flock(fd, flock.LOCK_EX | flock.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def runtime_directory() -> Path:
    """Return this user's private directory for lock files, made if need be.

    Raises:
        PermissionError: Somebody else owns the directory, or may write to it.
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and os.path.isdir(given) and os.stat(given).st_uid == os.getuid():
        path = Path(given) / "etcd-core"
    else:
        path = Path(tempfile.gettempdir()) / f"etcd-core-{os.getuid()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} must be a directory that only its owner can write to")
    return path


def started_at(pid: int) -> float | None:
    """Return the seconds from the machine's boot to the start of a process; None if not known."""
    with suppress(OSError, ValueError, IndexError):
        # The second field, the program's name, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return None


def _since_boot() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _boot() -> str | None:
    """Return what tells this run of the machine from the next; None where that is not known."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def machine_id() -> str:
    """Return what tells this machine, or container, and user from others that share an etcd."""
    parts = [os.uname().nodename, str(os.getuid())]
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text().strip())
    return "/".join(parts)

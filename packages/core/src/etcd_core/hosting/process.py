"""What kind of process this is, told from the call stacks. Pure look-ups, no state.

Environment variables leak into child processes, and code is imported in parents that never serve;
the stack of the thread that imports, and of the main thread, tell the truth. The names looked for
are the servers' own; tests pin them against the installed versions.
"""

from __future__ import annotations

import enum
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol


class ListeningSocket(Protocol):
    """A socket as gunicorn hands it to a worker."""

    def getsockname(self) -> tuple[str, int] | tuple[str, int, int, int] | str | bytes:
        """Return the address it is bound to."""

    def fileno(self) -> int:
        """Return its descriptor."""


class GunicornWorker(Protocol):
    """What we use of ``gunicorn.workers.base.Worker``."""

    pid: int | str
    ppid: int
    sockets: Sequence[ListeningSocket]
    run: Callable[[], object]


class Role(enum.Enum):
    """What this process is, as far as the stacks tell now."""

    PLAIN = "plain"
    """Nothing known: it may serve later, or never."""
    WORKER = "worker"
    """A gunicorn worker that loads its application."""
    SERVING_WORKER = "serving worker"
    """A gunicorn worker in its main loop."""
    ARBITER = "arbiter"
    """gunicorn's parent, which loads the application for its workers."""
    CELERY = "celery"
    """A Celery command: its pool's children are forked from it."""
    SUPERVISOR = "supervisor"
    """A parent that starts the serving process, or gunicorn when it only checks its config."""


@dataclass(frozen=True)
class Place:
    """The role, and the worker where there is one."""

    role: Role
    worker: GunicornWorker | None = None


_SUPERVISORS = frozenset(
    {
        ("werkzeug._reloader", "restart_with_reloader"),
        ("django.utils.autoreload", "restart_with_reloader"),
    }
)
_TEST_RUNNERS = frozenset(
    {
        ("django.core.management.commands.test", "handle"),
        ("unittest.main", "runTests"),
    }
)


_TEST_CLIENTS = frozenset(
    {
        "werkzeug.test",
        "django.test.client",
        "starlette.testclient",
        "httpx._transports.wsgi",
        "httpx._transports.asgi",
        "webtest.app",
    }
)


def here() -> Place:
    """Return what this process is, from the current and the main thread's stack."""
    frames = [*_stack(sys._getframe(1)), *main_stack()]
    names = {_name(frame) for frame in frames}
    worker = _find_worker(frames)
    if worker is not None:
        serving = any(module.startswith("gunicorn.workers.") and function == "run"
                      for module, function in names)  # fmt: skip
        return Place(Role.SERVING_WORKER if serving else Role.WORKER, worker)
    if any(module == "gunicorn.arbiter" for module, _ in names):
        return Place(Role.ARBITER)
    if any(module.startswith(("celery.bin.", "celery.apps.")) for module, _ in names):
        return Place(Role.CELERY)
    if is_supervisor(frames) or any(module.startswith("gunicorn.app.") for module, _ in names):
        return Place(Role.SUPERVISOR)
    return Place(Role.PLAIN)


def is_supervisor(frames: Sequence[FrameType] | None = None) -> bool:
    """Tell whether this process only supervises the serving one.

    Args:
        frames: The stack to look at; default the main thread's.
    """
    frames = [*main_stack()] if frames is None else frames
    names = {_name(frame) for frame in frames}
    if names & _SUPERVISORS:
        return True
    if ("hypercorn.run", "run") in names:
        return not any(m.startswith(("hypercorn.asyncio", "hypercorn.trio")) for m, _ in names)
    return any(_will_reload(frame) for frame in frames)


def runs_tests() -> bool:
    """Tell whether the main thread runs a test suite."""
    names = [_name(frame) for frame in main_stack()]
    return any(name in _TEST_RUNNERS or name[0].startswith("_pytest.") for name in names)


def in_test_client() -> bool:
    """Tell whether the calling thread serves a request that no server received."""
    return any(_name(frame)[0] in _TEST_CLIENTS for frame in _stack(sys._getframe(1)))


def called_by(package: str) -> bool:
    """Tell whether the caller of the caller is code of ``package``."""
    frame = sys._getframe(1).f_back
    module = "" if frame is None else _name(frame)[0]
    return module == package or module.startswith(f"{package}.")


def is_importing() -> bool:
    """Tell whether the main thread is in an ``import``: then nothing is served yet."""
    return any(_name(frame)[0] == "importlib._bootstrap" for frame in main_stack())


def spawned_worker() -> GunicornWorker | None:
    """Return the worker this freshly forked process becomes; None if it is another kind of fork."""
    for frame in _stack(sys._getframe(1)):
        if _name(frame) == ("gunicorn.arbiter", "spawn_worker"):
            worker: GunicornWorker | None = frame.f_locals.get("worker")
            return worker
    return None


def expects_reloader() -> bool:
    """Tell whether a development server loads the application before it starts a reloader."""
    if "django.core.management" in {_name(frame)[0] for frame in main_stack()}:
        runserver = "runserver" in sys.argv[1:2] and "--noreload" not in sys.argv
        return runserver and os.environ.get("RUN_MAIN") != "true"
    context = flask_command()
    return context == "run" and bool(os.environ.get("FLASK_DEBUG")) and not _is_reloaded()


def flask_command() -> str | None:
    """Return the ``flask`` sub-command that loads the application; "" for one not known yet.

    None where Flask's command line is not involved.
    """
    if not any(_name(frame)[0] == "flask.cli" for frame in _stack(sys._getframe(1))):
        return None
    from click import get_current_context

    context = get_current_context(silent=True)
    if context is None or context.parent is None:
        return ""
    return context.info_name or ""


def server_pid(worker: GunicornWorker | None) -> int:
    """Return the process that stays while its workers come and go; this one if it has none.

    uvicorn, hypercorn and granian start their workers through ``multiprocessing``.
    """
    if worker is not None:
        return worker.ppid
    parent = multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def main_stack() -> Iterator[FrameType]:
    """Return the frames of the main thread, innermost first."""
    # Under gevent the identifier is a greenlet's, and there is no stack to see.
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return _stack(frame)


def _find_worker(frames: Sequence[FrameType]) -> GunicornWorker | None:
    for frame in frames:
        module, function = _name(frame)
        if module.startswith("gunicorn.workers.") and function == "init_process":
            worker: GunicornWorker = frame.f_locals["self"]
            # A child that a worker forked has the worker's frames, but serves nothing.
            return worker if worker.pid == os.getpid() else None
    return None


def _will_reload(frame: FrameType) -> bool:
    if _name(frame) != ("werkzeug.serving", "run_simple") or _is_reloaded():
        return False
    return bool(frame.f_locals.get("use_reloader"))


def _is_reloaded() -> bool:
    return os.environ.get("WERKZEUG_RUN_MAIN") == "true"


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _name(frame: FrameType) -> tuple[str, str]:
    return frame.f_globals.get("__name__") or "", frame.f_code.co_name

"""One run of a guarded task: its term, how it learns that it lost it, and how it ends.

Owns the context variable that tells a task its runs. A run belongs to the thread or the coroutine
that it began in; off the loop is a thread ``etcd-task-<name>``, one for each wait.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from .errors import EtcdError, NotLeader
from .events import Event, fields
from .latch import Latch

if TYPE_CHECKING:
    from .election import Term

_log = logging.getLogger("etcd_core.tasks")

T = TypeVar("T")

OnLost = Literal["signal", "raise", "cancel"]
"""How a running task learns that its term is lost."""

_runs: contextvars.ContextVar[tuple[Run, ...]] = contextvars.ContextVar("etcd_runs", default=())


class Guard(Protocol):
    """What a run needs to know of its guard."""

    what: str
    name: str
    thread_name: str
    on_lost: OnLost

    def lost_error(self) -> EtcdError:
        """Return what a task is told whose term was lost."""


def entered_runs() -> tuple[Run, ...]:
    """Return the runs of the calling context, ended ones too, the innermost last."""
    return _runs.get()


def active_runs(operation: str) -> list[Run]:
    """Return the runs that the caller is in, the innermost last.

    Raises:
        NotLeader: There is none.
    """
    runs = [run for run in _runs.get() if run.active]
    if not runs:
        raise NotLeader(f"{operation}: not called from a running guarded task")
    return runs


@dataclass(frozen=True)
class Pass:
    """The permission to run once.

    Attributes:
        term: What the task runs under.
        home: Where it is from, so that a call in another cluster is no re-entrant one.
        end: Gives it back, given the seconds the run took; None where there is nothing to give.
    """

    term: Term
    home: object
    end: Callable[[float], object] | None = None


class Run:
    """One run of a task. It ends where it began, but contexts copied from it live on."""

    def __init__(self, guard: Guard, admitted: Pass) -> None:
        self.guard = guard
        self.term = admitted.term
        self.home = admitted.home
        self._end = admitted.end
        self._started = time.monotonic()
        self._pid = os.getpid()
        self._ended = False

    @property
    def active(self) -> bool:
        """Whether the task still runs, in this process."""
        return not self._ended and self._pid == os.getpid()

    @property
    def lasting(self) -> bool:
        """Whether what it runs under is certainly still ours."""
        return not self.term.lost.is_set() and self.term.remaining() > 0

    def __enter__(self) -> Run:
        """Make it the current one."""
        _runs.set((*_runs.get(), self))
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End it and give its pass back."""
        self._leave()
        self._give_back()

    def _leave(self) -> None:
        # Not by a token of the variable: that is bound to one context.
        _runs.set(tuple(run for run in _runs.get() if run is not self))
        self._ended = True

    def _give_back(self) -> None:
        if self._end is None or self._pid != os.getpid():
            return
        try:
            self._end(time.monotonic() - self._started)
        except EtcdError as exc:
            _log.warning(
                "%s: left to expire: %s",
                self.guard.what,
                exc,
                extra=fields(
                    Event.RELEASE_FAILED, kind="task", name=self.guard.name, reason=str(exc)
                ),
            )


class AsyncRun(Run):
    """One run in a coroutine: gives back beside the loop, and can be cancelled when it is lost."""

    def __init__(self, guard: Guard, admitted: Pass) -> None:
        super().__init__(guard, admitted)
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._cancelled = False

    async def __aenter__(self) -> AsyncRun:
        """Make it the current one."""
        if self.guard.on_lost == "cancel" and isinstance(self.term.lost, Latch):
            self.term.lost.then(self._on_lost)
        self.__enter__()
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        """End it and give its pass back.

        Raises:
            NotLeader: It was cancelled because the leadership was lost.
            LeaseLost: The same, for a lock.
        """
        self._leave()
        if isinstance(self.term.lost, Latch):
            self.term.lost.forget(self._on_lost)
        ours = self._cancelled and self._is_ours(exc)
        if self._end is not None:
            await off_loop(self.guard.thread_name, lambda abandoned: self._give_back())
        if ours:
            raise self.guard.lost_error() from exc

    def _on_lost(self) -> None:
        # The loop may be closed by now.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        # In the loop, where the run cannot end beside it: the cancellation reaches the task's body.
        if self.active and not self._cancelled and self._task is not None:
            self._cancelled = True
            self._task.cancel()

    def _is_ours(self, exc: BaseException | None) -> bool:
        """Take our cancellation back; return whether it is the only one."""
        others = 0
        if sys.version_info >= (3, 11) and self._task is not None:
            others = self._task.uncancel()
        return isinstance(exc, asyncio.CancelledError) and others == 0


async def off_loop(
    thread_name: str,
    ask: Callable[[threading.Event], T],
    undo: Callable[[T], object] | None = None,
) -> T:
    """Await ``ask(abandoned)`` in a thread of its own.

    Not in the loop's executor: that has few threads, and waits for another process may be long. A
    cancelled wait sets ``abandoned`` and has ``undo`` called with what is got in spite of that.
    """
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()
    answer.set_running_or_notify_cancel()
    abandoned = threading.Event()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            answer.set_result(context.run(ask, abandoned))
        except BaseException as exc:  # the coroutine that waits raises it
            answer.set_exception(exc)

    def take_back(done: concurrent.futures.Future[T]) -> None:
        if undo is not None and done.exception() is None:
            threading.Thread(
                target=undo, args=(done.result(),), name=thread_name, daemon=True
            ).start()

    threading.Thread(target=work, name=thread_name, daemon=True).start()
    try:
        return await asyncio.wrap_future(answer)
    except asyncio.CancelledError:
        abandoned.set()
        answer.add_done_callback(take_back)
        raise

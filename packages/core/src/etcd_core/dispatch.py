"""The threads that run user code. Owns a small pool; every subscription is a strand of it.

Callbacks of one strand run in order and never beside each other. A callback that blocks holds up
its own strand only: a worker is added whenever work waits and no worker is idle, so there are at
most as many workers as strands. User callbacks never run on the keep-alive or the watch thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from . import forking
from .events import Event, fields

_log = logging.getLogger("etcd_core.dispatch")

_IDLE_SECONDS = 30.0
_BACKLOG_WARNING = 10_000


class Strand:
    """An ordered queue of callbacks, for any thread; :meth:`Dispatcher.strand` makes it.

    All state is guarded by the dispatcher's lock.
    """

    def __init__(self, dispatcher: Dispatcher, name: str) -> None:
        self.name = name
        self._dispatcher = dispatcher
        self._queue: deque[Callable[[], object]] = deque()
        self._scheduled = False
        self._runner: int | None = None
        self._waits_for: Strand | None = None
        self._closed = False
        self._warned = False

    @property
    def backlog(self) -> int:
        """Number of callbacks that wait."""
        return len(self._queue)

    def post(self, callback: Callable[[], object]) -> bool:
        """Queue ``callback``; return False if the strand is closed and it will never run."""
        return self._dispatcher._post(self, callback)

    def close(self, timeout: float | None = None) -> bool:
        """Drop what waits; return when no callback of this strand can run any more.

        Called from a callback of this strand it returns at once, since the caller is that last
        callback. Two callbacks that close each other's strand do not deadlock: the second one
        returns without waiting.

        Args:
            timeout: Seconds to wait for a running callback; None waits for ever.

        Returns:
            False if a callback was still running when the time was over.
        """
        return self._dispatcher._close(self, timeout)


class Dispatcher:
    """A pool of daemon threads named ``etcd-dispatch-<n>`` that runs the strands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Two conditions on one lock: a wake-up meant for a worker must not reach a closer.
        self._work_waits = threading.Condition(self._lock)
        self._callback_ended = threading.Condition(self._lock)
        self._ready: deque[Strand] = deque()
        self._running: dict[int, Strand] = {}
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._started = 0
        self._stopping = False

    def strand(self, name: str) -> Strand:
        """Return a new strand; ``name`` appears in logs."""
        return Strand(self, name)

    def stop(self, timeout: float) -> None:
        """Run no further callback; wait up to ``timeout`` seconds for those that run."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._stopping = True
            self._ready.clear()
            self._work_waits.notify_all()
            self._callback_ended.notify_all()
            threads = [t for t in self._threads if t is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _post(self, strand: Strand, callback: Callable[[], object]) -> bool:
        with self._lock:
            if strand._closed or self._stopping:
                return False
            strand._queue.append(callback)
            backlog = len(strand._queue)
            if not strand._scheduled:
                strand._scheduled = True
                self._ready.append(strand)
                self._wake_worker()
            warn = backlog >= _BACKLOG_WARNING and not strand._warned
            strand._warned = strand._warned or warn
        if warn:
            _log.warning(
                "%s: its handler is %d callbacks behind",
                strand.name,
                backlog,
                extra=fields(Event.CALLBACK_BEHIND, handler=strand.name, backlog=backlog),
            )
        return True

    def _wake_worker(self) -> None:
        if self._idle >= len(self._ready):
            self._work_waits.notify()
            return
        self._started += 1
        thread = threading.Thread(
            target=self._work, name=f"etcd-dispatch-{self._started}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # The interpreter is shutting down, or the machine has no thread left. A worker that
            # runs will come; without one the next post must try again.
            if not self._threads:
                while self._ready:
                    self._ready.popleft()._scheduled = False
            return
        # It needs our lock to end, so it cannot be gone already.
        self._threads.add(thread)

    def _work(self) -> None:
        me = threading.get_ident()
        try:
            while (strand := self._next()) is not None:
                self._run_one(strand, me)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self) -> Strand | None:
        with self._lock:
            self._idle += 1
            try:
                while not self._ready and not self._stopping:
                    if not self._work_waits.wait(_IDLE_SECONDS) and not self._ready:
                        return None
                return None if self._stopping else self._ready.popleft()
            finally:
                self._idle -= 1

    def _run_one(self, strand: Strand, me: int) -> None:
        with self._lock:
            callback = strand._queue.popleft() if strand._queue else None
            strand._runner = me
            self._running[me] = strand
        if callback is not None:
            try:
                callback()
            except BaseException:  # a SystemExit must not wedge the strand either
                _log.exception(
                    "%s: a callback failed",
                    strand.name,
                    extra=fields(Event.CALLBACK_FAILED, handler=strand.name),
                )
            del callback
        with self._lock:
            strand._runner = None
            del self._running[me]
            if strand._queue and not self._stopping:
                self._ready.append(strand)
                self._wake_worker()
            else:
                strand._scheduled = False
            self._callback_ended.notify_all()

    def _close(self, strand: Strand, timeout: float | None) -> bool:
        me = threading.get_ident()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            strand._closed = True
            strand._queue.clear()
            mine = self._running.get(me)
            if self._would_deadlock(strand, mine):
                return True
            if mine is not None:
                mine._waits_for = strand
            try:
                while strand._runner is not None:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return False
                    self._callback_ended.wait(left)
                return True
            finally:
                if mine is not None:
                    mine._waits_for = None

    @staticmethod
    def _would_deadlock(strand: Strand, mine: Strand | None) -> bool:
        at: Strand | None = strand
        while at is not None and mine is not None:
            if at is mine:
                return True
            at = at._waits_for
        return False


class Subscription:
    """A running subscription: call it, ``cancel()`` it, or leave its ``with`` block to end it.

    When :meth:`cancel` has returned, no further callback runs (unless it was called from one).
    """

    def __init__(self, strand: Strand, stop: Callable[[], object]) -> None:
        self._strand = strand
        self._stop = stop
        self._cancelled = False
        self._forked = False
        forking.track(self)

    @property
    def cancelled(self) -> bool:
        """Whether it has ended."""
        return self._cancelled

    def cancel(self, timeout: float = 5.0) -> None:
        """End it. Idempotent.

        Args:
            timeout: Seconds to wait for a callback that is running now.
        """
        if self._forked:
            return
        if not self._cancelled:
            self._cancelled = True
            self._stop()
        if not self._strand.close(timeout):
            name = self._strand.name
            _log.warning(
                "%s: its handler still runs after %.1f s",
                name,
                timeout,
                extra=fields(Event.CALLBACK_RUNNING, handler=name, seconds=timeout),
            )

    def close_with_client(self, timeout: float) -> None:
        """End it because the client is closed."""
        self.cancel(timeout)

    def after_fork_in_child(self) -> None:
        """Be over in the child: its threads are the parent's, and so may be its locks."""
        self._cancelled = self._forked = True

    def __call__(self) -> None:
        """End it."""
        self.cancel()

    def __enter__(self) -> Subscription:
        """Return the subscription."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End it."""
        self.cancel()

"""Who hears of finished and repeated requests, and where: for metrics, on a thread of their own.

Requests are made under locks of ours and on threads that must not wait, so nothing is called
there: an event is put into a queue, and the thread ``etcd-telemetry`` calls the listeners, in
order. It runs only while there is something to tell, and never while the process forks: a child
then inherits no lock that a listener held at that moment. Without a listener nothing is measured.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from . import forking
from .errors import EtcdError
from .events import Event, fields

__all__ = ["CallFinished", "CallRetried", "Listener", "Observation", "flush", "observe"]

_log = logging.getLogger("etcd_core.telemetry")

_IDLE_SECONDS: Final = 2.0
_BACKLOG: Final = 10_000
_FORK_SECONDS: Final = 0.5


@dataclass(frozen=True)
class CallFinished:
    """A request that was answered or given up, with all its attempts. Streams are not told of.

    Attributes:
        method: The RPC, such as ``"KV/Range"``.
        outcome: ``"ok"``, or the name of the error's class such as ``"RequestTimeout"``;
            ``"interrupted"`` where something else than etcd ended it (Ctrl-C, a bug).
        seconds: From the first attempt's start to the end, pauses included.
        attempts: How often it was sent.
    """

    method: str
    outcome: str
    seconds: float
    attempts: int


@dataclass(frozen=True)
class CallRetried:
    """A request that is about to be sent again, told at that moment and not at its end.

    Attributes:
        method: As :class:`CallFinished`.
        reason: Why the attempt before failed: ``"not_executed"``, ``"ambiguous"`` (it may have been
            executed) or ``"token"`` (a new login was needed).
    """

    method: str
    reason: str


TelemetryEvent = CallFinished | CallRetried
Listener = Callable[[TelemetryEvent], object]


class Observation:
    """A running observation: call it, ``cancel()`` it, or leave its ``with`` block to end it.

    It goes on in a forked child, with the child's own requests. Safe to use from any thread.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._complained = False
        self._cancelled = False
        self._calling = threading.RLock()

    @property
    def cancelled(self) -> bool:
        """Whether it has ended."""
        return self._cancelled

    def cancel(self, timeout: float = 5.0) -> None:
        """End it. Idempotent. When it returned, the listener is not called any more.

        Args:
            timeout: Seconds to wait for a call that is under way.
        """
        self._cancelled = True
        _post.leave(self)
        # Called by the listener itself, this waits for nothing.
        if self._calling.acquire(timeout=timeout):
            self._calling.release()

    def __call__(self) -> None:
        """End it."""
        self.cancel()

    def __enter__(self) -> Observation:
        """Return the observation."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End it."""
        self.cancel()

    def tell(self, event: TelemetryEvent) -> None:
        """Call the listener; the first thing that it raises is logged. Internal."""
        with self._calling:
            if self._cancelled:
                return
            try:
                self._listener(event)
            except Exception as exc:  # the user's code
                self._complain(exc)

    def begin_anew(self) -> None:
        """Forget the call that was under way in the parent process. Internal."""
        self._calling = threading.RLock()

    def _complain(self, exc: Exception) -> None:
        if not self._complained:
            self._complained = True
            _log.exception(
                "a telemetry listener failed; more of it is not logged",
                extra=fields(Event.TELEMETRY_FAILED, reason=type(exc).__name__),
            )


def observe(listener: Listener) -> Observation:
    """Call ``listener(event)`` for every request of every client in this process from now on.

    Costs nothing where nobody does so; does no I/O. The listener runs on the thread
    ``etcd-telemetry``, in the order of the events, a moment after them, for all listeners one after
    the other. One that blocks holds up the other listeners and no request; beyond 10 000 waiting
    events the newest are dropped. What it raises is logged once.

    Args:
        listener: Called with a :class:`CallFinished` or a :class:`CallRetried`.

    Returns:
        The observation. It lasts until it is cancelled.

    Example:
        >>> def slow(event):
        ...     if isinstance(event, CallFinished) and event.seconds > 0.5:
        ...         print(event.method, event.outcome, event.attempts)
        >>> with observe(slow):
        ...     client.leader("scheduler")
    """
    observation = Observation(listener)
    _post.join(observation)
    return observation


def flush(timeout: float = 1.0) -> bool:
    """Wait until the listeners were told of everything up to now; for jobs that end. Thread-safe.

    Args:
        timeout: Seconds to wait.

    Returns:
        Whether they were in time.
    """
    return _post.flush(timeout)


class OpenCall:
    """Measures one request on its way through the channel. Internal.

    Leaving its ``with`` block tells of the end. Used by one thread.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._attempts = 1
        self._outcome: str | None = None
        self._began = time.perf_counter()

    def retried(self, reason: str) -> None:
        """Tell that it is sent again."""
        self._attempts += 1
        _post.put(CallRetried(self._method, reason))

    def failed(self, error: EtcdError) -> None:
        """Note the typed error that the caller gets."""
        self._outcome = type(error).__name__

    def __enter__(self) -> OpenCall:
        """Return the measurement."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell of the end."""
        if isinstance(error, EtcdError):
            self.failed(error)
        outcome = "ok" if error is None else self._outcome or "interrupted"
        seconds = time.perf_counter() - self._began
        _post.put(CallFinished(self._method, outcome, seconds, self._attempts))


def heard() -> bool:
    """Tell whether anybody observes. Internal."""
    return bool(_post.observations)


class _Post:
    """The queue of events and the thread that empties it."""

    def __init__(self) -> None:
        # Replaced, never changed, so that it is read without the lock.
        self.observations: tuple[Observation, ...] = ()
        self._lock = threading.Lock()
        self._events: queue.SimpleQueue[TelemetryEvent | threading.Event | None]
        self._events = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._forking = False
        self._dropped = False
        forking.track(self)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before_fork, after_in_parent=self._after_in_parent)

    def join(self, observation: Observation) -> None:
        with self._lock:
            self.observations = (*self.observations, observation)

    def leave(self, observation: Observation) -> None:
        with self._lock:
            self.observations = tuple(o for o in self.observations if o is not observation)
            if not self.observations and self._thread is not None:
                self._events.put(None)

    def put(self, event: TelemetryEvent | threading.Event) -> None:
        if self._events.qsize() >= _BACKLOG:
            self._complain()
            return
        self._events.put(event)
        if self._thread is None:
            self._start()

    def flush(self, timeout: float) -> bool:
        if self._events.empty() and self._thread is None:
            return True
        told = threading.Event()
        self.put(told)
        return told.wait(timeout)

    def _complain(self) -> None:
        if not self._dropped:
            self._dropped = True
            _log.warning(
                "telemetry listeners are %d events behind; more are dropped",
                _BACKLOG,
                extra=fields(Event.TELEMETRY_BEHIND, backlog=_BACKLOG),
            )

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._forking:
                return
            thread = threading.Thread(target=self._run, name="etcd-telemetry", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # the interpreter is shutting down
            self._thread = thread

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                event = None
            if event is None:
                if self._ends():
                    return
            elif isinstance(event, threading.Event):
                event.set()
            else:
                for observation in self.observations:
                    observation.tell(event)

    def _ends(self) -> bool:
        """End unless there is more to do; whoever puts an event after this starts another."""
        me = threading.current_thread()
        with self._lock:
            self._thread = None
            if self._events.empty() or self._forking:
                return True
            self._thread = me
            return False

    # -- forks ---------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """End the thread, after the event it is at; one that blocks is not waited for long."""
        # A thread that is just being started is waited for.
        locked = self._lock.acquire(timeout=_FORK_SECONDS)
        self._forking = True
        thread = self._thread
        if locked:
            self._lock.release()
        if thread is not None and thread is not threading.current_thread():
            self._events.put(None)
            thread.join(_FORK_SECONDS)

    def _after_in_parent(self) -> None:
        self._forking = False
        if not self._events.empty() and self._thread is None:
            self._start()

    def after_fork_in_child(self) -> None:
        """Begin anew: the events that wait are the parent's."""
        self._lock = threading.Lock()
        self._events = queue.SimpleQueue()
        self._thread = None
        self._forking = False
        for observation in self.observations:
            observation.begin_anew()


_post = _Post()

"""How a serving process takes leave when it ends: at exit, and on signals where that is too late.

Module state, one per process. The signal handler only puts into queues: it may interrupt the main
thread anywhere, so it must take no lock. The agents do the work in threads that run already, since
an exiting interpreter starts none.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Protocol, TypeGuard

STOP_SECONDS = 2.0
# Of these, what is left to the clients, which close after us, where etcd does not answer.
_CLIENTS_SECONDS = 0.5


class Agent(Protocol):
    """A thread that has something to undo before the process ends."""

    def request_stop(self, *, drain: bool = False) -> None:
        """Ask for the end; must not block or lock.

        Args:
            drain: The server still serves, so there is time to tell its callers first.
        """

    def wait(self, seconds: float) -> bool:
        """Wait for the end; tell whether it came."""

    @property
    def stop_seconds(self) -> float:
        """How long the end may take."""


_agents: set[Agent] = set()
_came: list[int] = []
_held: list[int] = []
_finalizer: object = None
_EARLY = 100
_timer: object = None
_LOOK_SECONDS = 0.2
_Handler = Callable[[int, FrameType | None], object] | int | None


def add(agent: Agent) -> None:
    """Have ``agent`` stopped when the process ends."""
    _agents.add(agent)
    run_before_other_exit_handlers()
    claim_signals()
    have_gevent_look()


def finished(agent: Agent) -> None:
    """Note that ``agent`` has ended; the last one lets the signals that waited take effect."""
    _agents.discard(agent)
    while _held and not _agents:
        os.kill(os.getpid(), _held.pop(0))


def run_before_other_exit_handlers() -> None:
    """Stop the agents before anything registered so far is torn down at exit."""
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)
    _run_at_end_of_worker()


def _run_at_end_of_worker() -> None:
    """Stop the agents in a process of multiprocessing too, which runs no exit handlers.

    uvicorn's and granian's workers are such; after Ctrl-C they end by returning.
    """
    global _finalizer
    if _finalizer is None and multiprocessing.parent_process() is not None:
        from multiprocessing.util import Finalize

        _finalizer = Finalize(None, _at_exit, exitpriority=_EARLY)


def claim_signals() -> None:
    """Take SIGTERM where it would kill the process, or end it without its exit handlers.

    Of uvicorn SIGINT too: at its end it puts back what it found, and then its parent's SIGTERM
    kills a worker that is about to leave at its exit. Other servers turn both into an ordinary exit
    themselves. Idempotent. Main thread only, else it does nothing; with no agent to stop a signal
    is passed on.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        current = signal.getsignal(number)
        kills = number == signal.SIGTERM and current == signal.SIG_DFL
        if kills or _is_uvicorns(current):
            # Each handler knows what it is over: uvicorn puts its own over ours, and ours back.
            signal.signal(number, partial(_on_signal, current))


def have_gevent_look() -> None:
    """Have gevent's loop turn now and then, where a server of its runs in this thread.

    It looks for signals when it turns. One that comes just before it waits goes unnoticed until the
    next request, which a server that is about to end need not get. Idempotent.
    """
    global _timer
    if _timer is None and "gevent.baseserver" in sys.modules:
        loop = sys.modules["gevent"].get_hub().loop
        _timer = timer = loop.timer(0.0, _LOOK_SECONDS, ref=False)
        timer.start(int)


def claim_signals_again() -> None:
    """Take the signals from uvicorn once it runs, so that the entry goes before its sockets close.

    Does nothing where there is no agent.
    """
    if _agents:
        claim_signals()


def _is_uvicorns(handler: _Handler) -> TypeGuard[Callable[[int, FrameType | None], object]]:
    function = getattr(handler, "__func__", None)
    return (
        getattr(function, "__qualname__", "") == "Server.handle_exit"
        and getattr(function, "__module__", "").partition(".")[0] == "uvicorn"
    )


def _on_signal(previous: _Handler, number: int, frame: FrameType | None) -> None:
    """Let the agents finish while the server goes on; they send the signal again.

    The second signal while they are at it cuts a drain short, the third is passed on at once.
    """
    _came.append(number)
    _held.append(number)  # before the look at the agents: the last of them may be about to end
    agents = tuple(_agents)
    if agents and len(_came) <= 2:
        for agent in agents:
            agent.request_stop(drain=_came == [signal.SIGTERM])
        return
    try:
        _held.remove(number)
    except ValueError:
        return  # it was sent again just now
    _pass_on(previous, number, frame)


def _pass_on(previous: _Handler, number: int, frame: FrameType | None) -> None:
    if _is_uvicorns(previous):
        # For good: it takes a second signal as a wish to hurry, and puts back what it found.
        signal.signal(number, previous)
        previous(number, frame)
    elif os.getpid() == 1:
        # The kernel ignores the default action for process 1.
        raise SystemExit(128 + number)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _at_exit() -> None:
    agents = tuple(_agents)
    for agent in agents:
        agent.request_stop()
    seconds = max((agent.stop_seconds for agent in agents), default=0.0)
    deadline = time.monotonic() + seconds - _CLIENTS_SECONDS
    if not all(_wait(agent, deadline) for agent in agents):
        _hurry_clients(deadline + _CLIENTS_SECONDS)


def _wait(agent: Agent, deadline: float) -> bool:
    """Wait through a second Ctrl-C, and gevent's second quit: the entry must not outlive us."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return agent.wait(left)
        except (SystemExit, KeyboardInterrupt):
            continue
    return False


def _hurry_clients(deadline: float) -> None:
    # Not imported here: an import that hangs in another thread would hold this one up.
    client = sys.modules.get("etcd_core.client")
    if client is not None:
        client.close_at_exit_by(deadline)


def _after_fork_in_child() -> None:
    global _finalizer, _timer
    _agents.clear()
    _came.clear()
    _held.clear()
    _timer = None
    _finalizer = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

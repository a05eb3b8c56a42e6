"""How a serving process takes leave when it ends: at exit, and on SIGTERM where Python would not.

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
from types import FrameType
from typing import Protocol

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
_sigterms = 0
_finalizer: object = None
_EARLY = 100
# What was there before us, the latest last: uvicorn puts its handler over ours and restores it.
_previous: list[Callable[[int, FrameType | None], object] | int | None] = []


def add(agent: Agent) -> None:
    """Have ``agent`` stopped when the process ends."""
    _agents.add(agent)
    run_before_other_exit_handlers()
    claim_sigterm()


def finished(agent: Agent) -> None:
    """Note that ``agent`` has ended; the last one lets a SIGTERM that waited take effect."""
    _agents.discard(agent)
    if _sigterms and not _agents:
        os.kill(os.getpid(), signal.SIGTERM)


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


def claim_sigterm() -> None:
    """Take SIGTERM where it would kill the process, or end it without its exit handlers.

    Other servers turn it into an ordinary exit themselves. Idempotent. Main thread only, else it
    does nothing; with no agent to stop the signal is passed on.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    current = signal.getsignal(signal.SIGTERM)
    if current == signal.SIG_DFL or _is_uvicorns(current):
        _previous.append(current)
        signal.signal(signal.SIGTERM, _on_sigterm)


def claim_sigterm_again() -> None:
    """Take SIGTERM from uvicorn once it runs, so that the entry goes before it closes its sockets.

    Does nothing where there is no agent.
    """
    if _agents:
        claim_sigterm()


def _is_uvicorns(handler: object) -> bool:
    function = getattr(handler, "__func__", None)
    return (
        getattr(function, "__qualname__", "") == "Server.handle_exit"
        and getattr(function, "__module__", "").partition(".")[0] == "uvicorn"
    )


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Let the agents finish while the server goes on; they send the signal again.

    The second signal while they are at it cuts a drain short, the third is passed on at once.
    """
    global _sigterms
    _sigterms += 1
    agents = tuple(_agents)
    if not agents or _sigterms > 2:
        _pass_on(number, frame)
        return
    for agent in agents:
        agent.request_stop(drain=_sigterms == 1)


def _pass_on(number: int, frame: FrameType | None) -> None:
    handler = _previous.pop() if _previous else signal.SIG_DFL
    if callable(handler):
        # For good: uvicorn takes a second signal as a wish to hurry, and puts back what it found.
        signal.signal(number, handler)
        handler(number, frame)
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
    global _sigterms, _finalizer
    _agents.clear()
    _sigterms = 0
    _finalizer = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

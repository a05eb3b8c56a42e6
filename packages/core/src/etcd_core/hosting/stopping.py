"""How a serving process takes leave when it ends: at exit, and on SIGTERM where Python would not.

Module state, one per process. The signal handler only puts into queues: it may interrupt the main
thread anywhere, so it must take no lock. The agents do the work in threads that run already, since
an exiting interpreter starts none.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

STOP_SECONDS = 2.0


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


def claim_sigterm() -> None:
    """Take SIGTERM where it would kill the process, or end it without its exit handlers.

    Other servers turn it into an ordinary exit themselves. Idempotent; to be called again once
    uvicorn runs, so that the entry goes before it closes its sockets. Main thread only, else it
    does nothing.
    """
    if not _agents or threading.current_thread() is not threading.main_thread():
        return
    current = signal.getsignal(signal.SIGTERM)
    if current == signal.SIG_DFL or _is_uvicorns(current):
        _previous.append(current)
        signal.signal(signal.SIGTERM, _on_sigterm)


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
    deadline = time.monotonic() + max((agent.stop_seconds for agent in agents), default=0.0)
    for agent in agents:
        _wait(agent, deadline)


def _wait(agent: Agent, deadline: float) -> None:
    """Wait through a second Ctrl-C, and gevent's second quit: the entry must not outlive us."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            agent.wait(left)
            return
        except (SystemExit, KeyboardInterrupt):
            continue


def _after_fork_in_child() -> None:
    global _sigterms
    _agents.clear()
    _sigterms = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

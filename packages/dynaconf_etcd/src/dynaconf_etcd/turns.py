"""Who may change what a settings object shows: one thread at a time, in the order of asking.

Readers never come here. For any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock that is fair, for whoever has it to take again, and that nobody waits for for ever.

    Fair: threads that choose environments all the time must not keep a revision out.

    Args:
        patience: Seconds to wait at most. User code runs in a turn, and may wait for a thread that
            wants one too; that thread then goes on without.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have a turn in this block; or none, when the patience is at its end."""
        taken = self._take()
        try:
            yield
        finally:
            if taken:
                self._give_back()

    def _take(self) -> bool:
        me, ticket = threading.get_ident(), object()
        with self._changed:
            if self._owner == me:
                self._depth += 1
                return True
            self._waiting.append(ticket)
            try:
                taken = self._changed.wait_for(lambda: self._is_next(ticket), self._patience)
            finally:
                self._waiting.remove(ticket)
            if taken:
                self._owner, self._depth = me, 1
            else:
                self._changed.notify_all()
            return taken

    def _is_next(self, ticket: object) -> bool:
        return self._owner is None and self._waiting[0] is ticket

    def _give_back(self) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._owner = None
                self._changed.notify_all()

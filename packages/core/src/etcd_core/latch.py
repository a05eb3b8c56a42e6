"""An event that also calls back: for those who must hear of it at once and cannot wait in a thread.

Signals are no means for that: they queue behind whatever their receivers do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from .events import Event, fields

_log = logging.getLogger("etcd_core.latch")


class Latch(threading.Event):
    """A :class:`threading.Event` with actions. Set once, never cleared. Safe for any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._actions_lock = threading.Lock()
        self._actions: list[Callable[[], object]] = []

    def set(self) -> None:
        """Set it, and run the actions in the calling thread. Idempotent."""
        super().set()
        with self._actions_lock:
            actions, self._actions = self._actions, []
        for action in actions:
            self._run(action)

    def then(self, action: Callable[[], object]) -> None:
        """Run ``action`` once when it is set, or now if it is; it must not block."""
        with self._actions_lock:
            if not self.is_set():
                self._actions.append(action)
                return
        self._run(action)

    def forget(self, action: Callable[[], object]) -> None:
        """Do not run ``action`` any more; one that is under way goes on."""
        with self._actions_lock:
            self._actions = [each for each in self._actions if each != action]

    @staticmethod
    def _run(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception:
            _log.exception(
                "an action on the end of a wait failed",
                extra=fields(Event.INTERNAL_ERROR, part="latch"),
            )

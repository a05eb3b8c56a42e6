"""Tells the log that a scheduler cannot go on: once where that begins, and once where it ends.

For one thread, the scheduler's own.
"""

from __future__ import annotations

import logging

from etcd_core.events import Event, fields

_log = logging.getLogger("etcd_core.tasks")


class Suspension:
    """What the log was told of one scheduler's troubles.

    Args:
        what: What the scheduler is called in the log.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._told = False

    def begin(self, name: str, error: Exception) -> None:
        """Tell that no job runs because of ``error``, unless that was told already."""
        if self._told:
            _log.debug("%s: %s; trying again", self._what, error)
            return
        self._told = True
        _log.warning(
            "%s: no job runs: %s; trying again",
            self._what,
            error,
            extra=fields(Event.TASKS_SUSPENDED, name=name, reason=str(error)),
        )

    def end(self, name: str) -> None:
        """Tell that jobs run again, if it was told that they did not."""
        if self._told:
            self._told = False
            _log.warning(
                "%s: jobs run again", self._what, extra=fields(Event.TASKS_RESUMED, name=name)
            )

    def forget(self) -> None:
        """Leave it to others to tell the end: this process leads no more, and that was told."""
        self._told = False
